"""Bytes of a PNG, JPEG or DICOM file -> uint8 grey at its own size; faults that decoders pass over are reasons."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from chexmask_u import storage
from chexmask_u.images import dicom, jpeg, span
from chexmask_u.images.bounds import cut
from chexmask_u.images.spacing import Spacing
from chexmask_u.record import ReadError

_PNG_START = b"\x89PNG\r\n\x1a\n"
_FORMATS: dict[bytes, type[ImageFile]] = {_PNG_START: PngImageFile, b"\xff\xd8\xff": JpegImageFile}

# What else people have under such names, by its first bytes; of unknown bytes nothing is told: they may be a name.
_OTHERS = {
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"BM": "a BMP file",
    b"GIF8": "a GIF file",
    b"RIFF": "a WebP file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "a gzip archive",
    b"PK\3\4": "a ZIP archive",
    b"<": "a web page or XML, as failed downloads leave it",
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the file",
}


def decode(data: bytes, *, max_side: int, dicom_standard: bool = True, full_range: bool = False) -> NDArray[np.uint8]:
    """The pixels of `decode_with_spacing`, uint8 [H, W]."""
    return decode_with_spacing(data, max_side=max_side, dicom_standard=dicom_standard, full_range=full_range)[0]


def decode_with_spacing(
    data: bytes, *, max_side: int, dicom_standard: bool = True, full_range: bool = False
) -> tuple[NDArray[np.uint8], Spacing | None]:
    """Decode an image to 8-bit grey; its first bytes tell what it is.

    Of PNG and JPEG, colour becomes grey and 8-bit values stay, by OpenCV's rules; 16-bit values are scaled from their
    minimum and maximum to 0-255, since files of 10, 12 and 16 significant bits look alike.

    Args:
        data: the whole file.
        max_side: longest side in pixels that is decoded.
        dicom_standard: of DICOM; `standard` of `dicom.decode`.
        full_range: whether the minimum and maximum of 16-bit values are those of all pixels, and not of all but strays,
            such as a detector's hot pixels; see `span.robust`.

    Returns:
        uint8 [H, W], and the spacing of its pixels where a DICOM header tells one.

    Raises:
        ReadError: "unsupported", "damaged" or "too_large"; of DICOM also "no_pixels" or "not_radiograph".
    """
    kind = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        if dicom.recognised(data):
            return dicom.decode(data, max_side=max_side, standard=dicom_standard)
        other = next((f": {name}" for start, name in _OTHERS.items() if data.startswith(start)), "")
        raise ReadError("unsupported", f"not a PNG, JPEG or DICOM file, by its first bytes{other}")
    _check(data, kind, max_side)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ReadError("damaged", storage.explain(error)) from error
    if image is None or not image.size:
        raise ReadError("damaged", "the image data cannot be decoded")
    if image.dtype != np.uint8:
        if not full_range:
            image = _without_strays(image)
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    return np.asarray(image, np.uint8), None


def _without_strays(image: NDArray[Any]) -> NDArray[Any]:
    """The same image uint16 [H, W], whose strays have the lowest or highest value of the others."""
    counts = cv2.calcHist([image], [0], None, [2**16], [0, 2**16]).ravel()
    occurring = np.flatnonzero(counts)
    low, high = span.robust(occurring, counts[occurring])
    if (low, high) == (occurring[0], occurring[-1]):
        return image
    return np.clip(image, np.uint16(low), np.uint16(high))


def _check(data: bytes, kind: type[ImageFile], max_side: int) -> None:
    """Find what a decoder would not say: a bomb before it goes off, and data that end early or fail their checksum."""
    if kind is JpegImageFile:
        _check_jpeg(data)
    try:
        # Not Image.open, which has a limit of its own that `max_side` could not lift.
        with kind(io.BytesIO(data)) as header:
            width, height = header.size
    except Exception as error:  # a damaged header makes its parser raise whatever it stumbles over
        raise ReadError("damaged", storage.explain(error)) from error
    if max(width, height) > max_side:
        raise ReadError("too_large", f"{width} x {height} pixels; the limit is {max_side} a side (--max-side)")
    if kind is PngImageFile:
        _check_png(data)
    # Decoders fill the missing rows of a truncated JPEG with grey and say nothing.
    elif not jpeg.ends(data):
        raise cut()


def _check_jpeg(data: bytes) -> None:
    with suppress(IndexError, struct.error):  # where there is no frame, the header is damaged
        frame = jpeg.frame(data)
        if frame.bits != 8 or not frame.lossy:
            form = f"a JPEG of {frame.bits} bits" if frame.lossy else "a lossless or hierarchical JPEG"
            raise ReadError("unsupported", f"{form}; lossy ones of 8 bits are read, and PNG keeps 16")


def _check_png(data: bytes) -> None:
    """Chunk by chunk to the last, whose checksum counts as well."""
    view = memoryview(data)
    position = len(_PNG_START)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ReadError("damaged", "a part of the PNG fails its checksum")
        if kind == b"IEND":
            return
        position = end + 4
    raise cut()
