"""Bytes of a PNG or JPEG -> uint8 grey at its own size; every fault that a decoder would pass over is a reason."""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from chexmask_u import storage
from chexmask_u.record import ReadError

_FORMATS = {b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile}

# The last chunk of every PNG, with its checksum.
_PNG_END = b"IEND\xaeB`\x82"

# In image data, FF is followed by 00 or a restart marker; anything else begins the next segment.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = b"\xff\xd9"


def decode(data: bytes, *, max_side: int) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG to 8-bit grey.

    Colour becomes grey and 8-bit values stay, by OpenCV's rules. 16-bit values are scaled from
    their minimum and maximum to 0-255, since files of 10, 12 and 16 significant bits look alike.

    Returns:
        uint8 [H, W].

    Raises:
        ReadError: "unsupported", "damaged" or "too_large".
    """
    _check(data, max_side)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ReadError("damaged", storage.explain(error)) from error
    if image is None or not image.size:
        raise ReadError("damaged", "the image data cannot be decoded")
    if image.dtype != np.uint8:
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    return np.asarray(image, np.uint8)


def _check(data: bytes, max_side: int) -> None:
    """Find what a decoder would not say: a bomb before it goes off, and data that end early or fail their checksum."""
    kind = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ReadError("unsupported", f"not a PNG or JPEG image; it begins with {data[:8]!r}")
    try:
        # Not Image.open, which has a limit of its own that `max_side` could not lift.
        with kind(io.BytesIO(data)) as header:
            width, height = header.size
            if max(width, height) > max_side:
                raise ReadError("too_large", f"{width} x {height} pixels; the limit is {max_side} a side (--max-side)")
            if kind is PngImageFile:
                header.verify()
    except ReadError:
        raise
    except Exception as error:  # a damaged header makes its parser raise whatever it stumbles over
        raise ReadError("damaged", storage.explain(error)) from error
    # Decoders fill the missing rows of a truncated JPEG with grey and say nothing.
    if not (_PNG_END in data if kind is PngImageFile else _jpeg_ends(data)):
        raise ReadError("damaged", "the data end before the image does")


def _jpeg_ends(data: bytes) -> bool:
    """Whether the segments of a JPEG lead to its end marker; a thumbnail within a segment has one of its own."""
    position = len(b"\xff\xd8")
    while marker := _JPEG_MARKER.search(data, position):
        if marker[0] == _JPEG_END:
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
