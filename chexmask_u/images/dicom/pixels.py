"""The pixels of a DICOM file, uncompressed or decoded, checked for what decoders would pass over."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from chexmask_u.images import jpeg
from chexmask_u.images.bounds import cut
from chexmask_u.images.dicom.forms import BASELINE, PLUGINS
from chexmask_u.images.dicom.header import ITEM, LAST_ITEM, UNDEFINED_LENGTH, Header, tag_at
from chexmask_u.record import ReadError

_JPEG_2000_START = b"\xff\x4f\xff\x51"


def pixel_data(rest: memoryview, header: Header) -> tuple[memoryview, str]:
    """The value of Pixel Data, checked for what a decoder would pass over, and its value representation."""
    if min(header.rows, header.columns) < 1:
        size = f"{header.columns} x {header.rows}"
        raise ReadError("damaged", f"Columns (0028,0011) and Rows (0028,0010) of the DICOM header say {size} pixels")
    start = 8 if header.implicit else 12
    length = struct.unpack_from("<L" if header.little else ">L", rest, start - 4)[0]
    vr = "OW" if header.implicit else bytes(rest[4:6]).decode("latin-1")
    value = rest[start:]
    if header.syntax.is_encapsulated != (length == UNDEFINED_LENGTH):
        raise ReadError("damaged", "the pixel data are not laid out as the transfer syntax says")
    if header.syntax.is_encapsulated:
        codestream, end = _codestream(value)
        _check_codestream(codestream, header)
        return value[:end], vr
    expected = header.rows * header.columns * header.bits_allocated // 8
    found = min(length, len(value))
    if found < expected:
        raise cut(f"{found:,} of {expected:,} bytes")
    # Bytes of 8-bit images may be swapped pairwise in big endian: keep the one that pads.
    return value[: expected + expected % 2], vr


def _codestream(value: memoryview) -> tuple[bytes, int]:
    """All fragments of the only frame, without the offset table, which comes first; and where they end.

    A delimiter comes last, for which some writers put zeros.
    """
    fragments: list[memoryview] = []
    position = 0
    while position + 8 <= len(value):
        tag, length = tag_at(value, position, True), struct.unpack_from("<L", value, position + 4)[0]
        position += 8
        if tag == LAST_ITEM or (tag == 0 and not bytes(value[position:]).strip(b"\0")):
            return b"".join(fragments[1:]), position - 8
        if tag != ITEM:
            raise ReadError("damaged", "the fragments of the pixel data do not follow one another")
        fragments.append(value[position : position + length])
        position += length
    raise cut()


def _check_codestream(codestream: bytes, header: Header) -> None:
    """Decoders allocate what a codestream declares, whatever the header says, and fill what is missing with grey."""
    if header.syntax == uid.RLELossless:
        return
    try:
        height, width, components, bits, _ = _frame(codestream)
    except (IndexError, struct.error):
        raise ReadError("damaged", "the compressed image has no header") from None
    if (height, width, components) != (header.rows, header.columns, 1):
        raise ReadError(
            "damaged",
            f"the compressed image is {width} x {height} of {components} components,"
            f" the DICOM header says {header.columns} x {header.rows} of 1",
        )
    if header.syntax in BASELINE and bits != 8:
        raise ReadError("unsupported", f"lossy JPEG of {bits} bits; 8 are read")
    # In all of these, an FF within the image data is followed by something smaller.
    if jpeg.END not in codestream:
        raise cut()


def _frame(codestream: bytes) -> jpeg.Frame:
    """What a JPEG, JPEG-LS or JPEG 2000 image declares."""
    start = codestream.find(_JPEG_2000_START)
    if start < 0:
        return jpeg.frame(codestream)
    right, bottom, left, top = struct.unpack_from(">4L", codestream, start + 8)
    components, bits = struct.unpack_from(">HB", codestream, start + 40)
    return jpeg.Frame(bottom - top, right - left, components, bits % 128 + 1)


def stored_values(header: Header, pixels: memoryview, vr: str) -> NDArray[Any]:
    """uint8, int8, uint16 or int16 [H, W], as pydicom's `Dataset.pixel_array`, but for the bits that are not stored."""
    options: Any = {
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": vr,
    }
    if header.unused_bits:
        # `tones.grey` does that, once for each value.
        options["correct_unused_bits"] = False
    # A codestream is copied, for pydicom's sake; what is not compressed is read where it lies.
    source: Any = bytes(pixels)
    if not header.syntax.is_encapsulated:
        source = pixels
        options["view_only"] = True
    plugin = PLUGINS.get(header.syntax, "")
    try:
        stored, _ = get_decoder(header.syntax).as_array(source, index=0, decoding_plugin=plugin, **options)
    except MemoryError:
        raise
    except Exception:
        raise ReadError("damaged", "the pixel data cannot be decoded") from None
    if stored.dtype.itemsize > 2:
        raise ReadError(
            "unsupported", f"the compressed image has {8 * stored.dtype.itemsize} bits a pixel; 16 are read"
        )
    return np.ascontiguousarray(stored, stored.dtype.newbyteorder("="))
