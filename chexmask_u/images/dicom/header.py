"""What a DICOM file says of its pixels: found without parsing, or ever telling, any other text of the file."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from chexmask_u.images import spacing
from chexmask_u.images.bounds import cut, max_bytes
from chexmask_u.images.dicom import steps
from chexmask_u.images.dicom.elements import integer, text
from chexmask_u.images.dicom.forms import NATIVE, PLUGINS, UNUSED_BITS
from chexmask_u.record import ReadError

# The only elements that are parsed; the rest, every name and id among it, is skipped by its length.
_ELEMENTS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *steps.ELEMENTS,
    *spacing.ELEMENTS,
)
_TAGS: list[BaseTag | int] = [tag_for_keyword(name) or 0 for name in _ELEMENTS]
_PIXEL_DATA = 0x7FE00010
_FLOATS = (0x7FE00008, 0x7FE00009)
_PIXELS = (_PIXEL_DATA, *_FLOATS)

_GREYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")

_PREAMBLE = 128
ITEM, _ITEM_END, LAST_ITEM = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DELIMITERS = (ITEM, _ITEM_END, LAST_ITEM)
UNDEFINED_LENGTH = 0xFFFFFFFF


@dataclass(frozen=True)
class Header:
    """What a file says of its pixels, and what its values pass on the way to grey.

    Attributes:
        syntax: how the pixels are laid out.
        implicit: whether its elements have an implicit VR.
        little: whether it is little endian.
        rows, columns: pixels.
        bits_allocated, bits_stored: of a pixel.
        signed: whether values may be negative.
        inverted: whether the lowest value is white.
        padding: the lowest and highest value that is padding; None where none is.
        steps: what the values pass, in order.
        spacing: millimetres per pixel, where it tells.
    """

    syntax: uid.UID
    implicit: bool
    little: bool
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    padding: tuple[int, int] | None
    steps: tuple[steps.Step, ...]
    spacing: spacing.Spacing | None

    @property
    def unused_bits(self) -> bool:
        """Whether values may hold other things above the bits stored."""
        return self.syntax in UNUSED_BITS


def recognised(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does: with a preamble or, as older files, with the first element."""
    if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return True
    if len(data) < 8:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}HHL", data)
        if (group == 2 and element <= 0x10) or (group == 8 and element <= 0x18):
            # Then come two letters, the value representation, or a length of these short elements.
            return (data[4:6].isalpha() and data[4:6].isupper()) or length <= 128
    return False


def parse(data: bytes, max_side: int, standard: bool) -> tuple[Header, memoryview]:
    """The header, and the bytes from the element of the pixels on; see `decode` for `standard`."""
    try:
        body, start, syntax = _dataset(data, max_side)
        dataset, end, implicit, little = _before_pixels(body, start, syntax)
        if end > len(body):
            raise cut()
        rest = memoryview(body)[end:]
        _check_has_pixels(rest, little)
        header = _header(dataset, syntax, standard, implicit, little)
    except (ReadError, MemoryError):
        raise
    except Exception:
        raise ReadError("damaged", "the DICOM header cannot be parsed") from None
    if max(header.rows, header.columns) > max_side:
        size = f"{header.columns} x {header.rows}"
        raise ReadError("too_large", f"{size} pixels; the limit is {max_side} a side (--max-side)")
    return header, rest


def _dataset(data: bytes, max_side: int) -> tuple[bytes, int, uid.UID]:
    """The bytes that hold the data set, inflated if need be, where it begins in them, and the transfer syntax."""
    stream = BytesIO(data)
    stream.seek(_PREAMBLE + 4 if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    start = stream.tell()
    if start >= len(data):
        raise cut()
    syntax = uid.UID(str(meta.get("TransferSyntaxUID") or ""))
    if not syntax:
        # Nothing says; but the group of the first element is a small number, so 0 comes first in big endian only.
        syntax = uid.ExplicitVRBigEndian if data[start : start + 1] == b"\0" else uid.ImplicitVRLittleEndian
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return _inflate(data[start:], max_bytes(max_side)), 0, syntax
    if syntax not in NATIVE and syntax not in PLUGINS:
        # A name from pydicom's dictionary: the file's own text, which stands for an unknown one, is not to be told.
        name = f"the transfer syntax {syntax.name}" if syntax.name != syntax else "a transfer syntax unknown here"
        raise ReadError(
            "unsupported",
            f"{name}; convert it to one that is read: uncompressed, deflated, RLE, JPEG, JPEG-LS, JPEG 2000",
        )
    return data, start, syntax


def _inflate(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data, limit)
    if stream.unconsumed_tail:
        raise ReadError("too_large", f"the file inflates to more than {limit:,} bytes; the limit follows --max-side")
    if not stream.eof:
        raise cut()
    return inflated


def _before_pixels(body: bytes, start: int, syntax: uid.UID) -> tuple[Dataset, int, bool, bool]:
    """What stands before the pixels, which may come after elements of a higher group and after stray items.

    An item is stray where its sequence says that its length is 0: it is passed over, and what it holds with it.

    Returns:
        The elements that are parsed; where the pixels begin in `body`, or its end; whether its elements have an
        implicit VR; and whether it is little endian.
    """
    stream, found = BytesIO(body), Dataset()
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    position, open_items = start, 0
    while position + 8 <= len(body):
        tag = tag_at(body, position, little)
        if tag in _PIXELS and not open_items:
            break
        if tag in _DELIMITERS:
            length = struct.unpack_from("<L" if little else ">L", body, position + 4)[0]
            open_items = max(0, open_items + (tag == ITEM and length == UNDEFINED_LENGTH) - (tag == _ITEM_END))
            position += 8 + (length if length != UNDEFINED_LENGTH else 0)
            continue
        stream.seek(position)
        stop = _at_delimiter if open_items else _at_pixels
        part = read_dataset(stream, implicit, little, stop_when=stop, specific_tags=_TAGS)
        if position == start:
            implicit, little = (bool(kind) for kind in part.original_encoding)
        if not open_items:
            found.update(dict(part.items()))
        position = stream.tell()
        # The end of an item is the one delimiter that pydicom does not stop before.
        if position >= 8 and tag_at(body, position - 8, little) == _ITEM_END and not any(body[position - 4 : position]):
            position -= 8
    return found, position, implicit, little


def _at_delimiter(tag: BaseTag, *_: Any) -> bool:
    return tag in _DELIMITERS


def _at_pixels(tag: BaseTag, *_: Any) -> bool:
    return tag in _DELIMITERS or tag in _PIXELS


def _header(dataset: Dataset, syntax: uid.UID, standard: bool, implicit: bool, little: bool) -> Header:
    samples, frames = integer(dataset, "SamplesPerPixel", 1), integer(dataset, "NumberOfFrames", 1)
    photometric = text(dataset, "PhotometricInterpretation")
    if samples != 1 or photometric in _COLOURS:
        kind = photometric if photometric in _COLOURS else "unnamed"
        raise ReadError("not_radiograph", f"colour ({kind}, samples a pixel: {samples}); a radiograph is grey")
    if frames > 1:
        raise ReadError("not_radiograph", f"{frames} frames; a radiograph has 1")
    if photometric not in _GREYS:
        found = "an unknown" if photometric else "no"
        raise ReadError(
            "unsupported", f"{found} Photometric Interpretation (0028,0004): it must say {' or '.join(_GREYS)}"
        )
    allocated, stored = integer(dataset, "BitsAllocated", 0), integer(dataset, "BitsStored", 0)
    if allocated not in (8, 16) or not 2 <= stored <= allocated:
        raise ReadError(
            "unsupported",
            f"{stored} bits stored in {allocated}, as Bits Stored (0028,0101) and Bits Allocated (0028,0100) say; 2 to"
            " 16 in 8 or 16 are read",
        )
    high = integer(dataset, "HighBit", stored - 1)
    if high != stored - 1 and (syntax in NATIVE or syntax == uid.RLELossless):
        raise ReadError("unsupported", f"{stored} bits stored up to bit {high}; up to bit {stored - 1} is read")
    signed = integer(dataset, "PixelRepresentation", 0) == 1
    return Header(
        syntax=syntax,
        implicit=implicit,
        little=little,
        rows=integer(dataset, "Rows", 0),
        columns=integer(dataset, "Columns", 0),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        inverted=photometric == "MONOCHROME1",
        padding=steps.padding(dataset, allocated, signed) if standard else None,
        steps=steps.of_values(dataset, standard, little),
        spacing=spacing.told(dataset),
    )


def _check_has_pixels(rest: memoryview, little: bool) -> None:
    tag = tag_at(rest, 0, little) if len(rest) >= 12 else None
    if tag in _FLOATS:
        raise ReadError("not_radiograph", "the pixels are floating point numbers; those of a radiograph are whole")
    if tag != _PIXEL_DATA:
        raise ReadError("no_pixels", "no Pixel Data (7FE0,0010): the file holds no image, or ends before it")


def tag_at(data: bytes | memoryview, position: int, little: bool) -> int:
    """The tag at a position, group and element in one number."""
    group, element = struct.unpack_from("<HH" if little else ">HH", data, position)
    return int(group << 16 | element)
