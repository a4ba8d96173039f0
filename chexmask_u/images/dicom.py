"""Bytes of a DICOM file -> uint8 grey at its own size; of its text, only what tells how to show it is ever parsed."""

from __future__ import annotations

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_windowing
from pydicom.tag import BaseTag

from chexmask_u.record import ReadError

_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
_BASELINE = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)

# Which of pydicom's plugins decodes what, so that other packages that happen to be installed change no pixel.
_PLUGINS: dict[uid.UID, str] = {
    # Slower than pylibjpeg-rle, whose panics on damaged data are no Exception.
    uid.RLELossless: "pydicom",
    **dict.fromkeys(_BASELINE, "pillow"),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    # Not GDCM, which ends the process on damaged JPEG-LS.
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "pylibjpeg"),
}

# Forms whose values may hold other things, such as an overlay, above the bits stored.
_UNUSED_BITS = (*_NATIVE, *_BASELINE, uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1)

_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction")
_RESCALE = ("RescaleSlope", "RescaleIntercept")
# The only elements that are parsed; the rest, every name and id among it, is skipped by its length.
_ELEMENTS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence"),
    *_WINDOW,
    *_RESCALE,
)
_PIXEL_DATA = 0x7FE00010
_FLOAT_PIXEL_DATA = (0x7FE00008, 0x7FE00009)

_GREYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")

_PREAMBLE = 128
_ITEM, _LAST_ITEM = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED_LENGTH = 0xFFFFFFFF

# What a deflated file may hold besides two bytes a pixel.
_HEADER_BYTES = 16 * 2**20

_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JPEG_END = b"\xff\xd9"
# SOF0 to SOF15, less DHT, JPG and DAC, which lie between; and SOF55 of JPEG-LS.
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}

_CUT = "the data end before the image does"

_reading: ContextVar[bool] = ContextVar("reading", default=False)
_one_at_a_time = threading.Lock()
# pydicom's messages may quote values.
logging.getLogger("pydicom").addFilter(lambda _: not _reading.get())


@dataclass(frozen=True)
class _Table:
    """A lookup table int64 [N]: entry i is for first + i; the first entry for all below, the last for all above."""

    first: int
    entries: NDArray[np.int64]

    def __call__(self, values: NDArray[Any]) -> NDArray[np.int64]:
        # Whole numbers index a table, and a rescaled value may not be one.
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)]


@dataclass(frozen=True)
class _Rescale:
    slope: float
    intercept: float

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        return values * self.slope + self.intercept


@dataclass(frozen=True)
class _Window:
    """A window in the elements that pydicom's function takes it from."""

    elements: Dataset

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # a steep sigmoid
            return apply_windowing(values, self.elements)


_Step = _Table | _Rescale | _Window


@dataclass(frozen=True)
class _Header:
    """What a file says of its pixels, and what its values pass on the way to grey."""

    syntax: uid.UID
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    padding: tuple[int, int] | None
    steps: tuple[_Step, ...]


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


def decode(data: bytes, *, max_side: int, standard: bool = True) -> NDArray[np.uint8]:
    """Decode a single grey frame and map its values to 8 bits.

    Stored values x pass the VOI LUT, which is its table if the file has one, or else the first window by pydicom's
    `apply_windowing` (PS3.3 C.11.2); MONOCHROME1 changes the sign; and v becomes
    uint8((v - min) / (max - min) * 255), in float64 and cut, not rounded. An image of a single value becomes black.

    Args:
        data: the whole file.
        max_side: longest side in pixels that is decoded.
        standard: as PS3.3 C.11.1 and C.7.5.1.1.2 ask, the modality LUT comes first, and what has the pixel padding
            value counts neither for min nor for max. The published preparation of VinDr-CXR does neither.

    Returns:
        uint8 [H, W].

    Raises:
        ReadError: "unsupported", "no_pixels", "not_radiograph", "damaged" or "too_large". Messages are in our own
            words and quote counts and sizes only.
    """
    with _unheard():
        header, pixels, vr = _parse(data, max_side, standard)
        stored = _stored_values(header, pixels, vr)
        try:
            return _grey(stored, header)
        except MemoryError:
            raise
        except Exception:
            raise ReadError("damaged", "the window or lookup table of the DICOM header cannot be applied") from None


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep what pydicom logs and warns; one file at a time, since filters of warnings belong to all threads."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = _reading.set(True)
        try:
            yield
        finally:
            _reading.reset(token)


# The header


def _parse(data: bytes, max_side: int, standard: bool) -> tuple[_Header, memoryview, str]:
    """The header, the bytes from the value of Pixel Data on, and its value representation."""
    try:
        body, start, syntax = _dataset(data, max_side)
        stream = BytesIO(body)
        stream.seek(start)
        dataset = read_dataset(
            stream,
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=_at_pixels,
            specific_tags=[tag_for_keyword(name) or 0 for name in _ELEMENTS],
        )
        implicit, little = (bool(kind) for kind in dataset.original_encoding)
        rest = memoryview(body)[stream.tell() :]
        if stream.tell() > len(body):
            raise ReadError("damaged", _CUT)
        _check_has_pixels(rest, little)
        header = _header(dataset, syntax, standard, little)
    except (ReadError, MemoryError):
        raise
    except Exception:
        raise ReadError("damaged", "the DICOM header cannot be parsed") from None
    if max(header.rows, header.columns) > max_side:
        size = f"{header.columns} x {header.rows}"
        raise ReadError("too_large", f"{size} pixels; the limit is {max_side} a side (--max-side)")
    pixels, vr = _pixel_data(rest, header, implicit, little)
    return header, pixels, vr


def _dataset(data: bytes, max_side: int) -> tuple[bytes, int, uid.UID]:
    """The bytes that hold the data set, inflated if need be, where it begins in them, and the transfer syntax."""
    stream = BytesIO(data)
    stream.seek(_PREAMBLE + 4 if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    start = stream.tell()
    if start >= len(data):
        raise ReadError("damaged", _CUT)
    syntax = uid.UID(str(meta.get("TransferSyntaxUID") or ""))
    if not syntax:
        # Nothing says; but the group of the first element is a small number, so 0 comes first in big endian only.
        syntax = uid.ExplicitVRBigEndian if data[start : start + 1] == b"\0" else uid.ImplicitVRLittleEndian
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return _inflate(data[start:], 2 * max_side**2 + _HEADER_BYTES), 0, syntax
    if syntax not in _NATIVE and syntax not in _PLUGINS:
        # A name from pydicom's dictionary: the file's own text, which stands for an unknown one, is not to be told.
        name = f"the transfer syntax {syntax.name}" if syntax.name != syntax else "a transfer syntax unknown here"
        raise ReadError(
            "unsupported", f"{name}; uncompressed, deflated, RLE, JPEG, JPEG-LS and JPEG 2000 files are read"
        )
    return data, start, syntax


def _inflate(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data, limit)
    if stream.unconsumed_tail:
        raise ReadError("too_large", f"the file inflates to more than {limit:,} bytes; the limit follows --max-side")
    if not stream.eof:
        raise ReadError("damaged", _CUT)
    return inflated


def _at_pixels(tag: BaseTag, *_: Any) -> bool:
    return tag == _PIXEL_DATA or tag in _FLOAT_PIXEL_DATA or tag > _PIXEL_DATA


def _header(dataset: Dataset, syntax: uid.UID, standard: bool, little: bool) -> _Header:
    samples, frames = _integer(dataset, "SamplesPerPixel", 1), _integer(dataset, "NumberOfFrames", 1)
    photometric = _text(dataset, "PhotometricInterpretation")
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
    allocated, stored = _integer(dataset, "BitsAllocated", 0), _integer(dataset, "BitsStored", 0)
    if allocated not in (8, 16) or not 2 <= stored <= allocated:
        raise ReadError("unsupported", f"{stored} bits stored in {allocated}; 2 to 16 in 8 or 16 are read")
    high = _integer(dataset, "HighBit", stored - 1)
    if high != stored - 1 and (syntax in _NATIVE or syntax == uid.RLELossless):
        raise ReadError("unsupported", f"{stored} bits stored up to bit {high}; up to bit {stored - 1} is read")
    signed = _integer(dataset, "PixelRepresentation", 0) == 1
    modality = _modality(dataset, little) if standard else None
    voi = _table(dataset, "VOILUTSequence", little) or _window(dataset, standard)
    return _Header(
        syntax=syntax,
        rows=_integer(dataset, "Rows", 0),
        columns=_integer(dataset, "Columns", 0),
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        inverted=photometric == "MONOCHROME1",
        padding=_padding(dataset, allocated, signed) if standard else None,
        steps=tuple(step for step in (modality, voi) if step),
    )


def _modality(dataset: Dataset, little: bool) -> _Table | _Rescale | None:
    table = _table(dataset, "ModalityLUTSequence", little)
    slope, intercept = (_float(dataset, name) for name in _RESCALE)
    if table or slope is None or intercept is None:
        return table
    return _Rescale(slope, intercept)


def _table(dataset: Dataset, name: str, little: bool) -> _Table | None:
    sequence = dataset.get(name)
    item = sequence[0] if sequence else Dataset()
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or data is None:
        return None
    # 65,536 entries do not fit 16 bits and are written as 0; more than 32,767 are negative where the VR is signed.
    count = descriptor[0] % 2**16 or 2**16
    if isinstance(data, bytes):
        # Entries of 8 bits may be packed.
        words = "u1" if len(data) < 2 * count else "<u2" if little else ">u2"
        data = np.frombuffer(data[: len(data) // np.dtype(words).itemsize * np.dtype(words).itemsize], words)
    entries = np.asarray([data] if isinstance(data, int) else data, np.int64)[:count]
    if len(entries) < count:
        raise ReadError("damaged", f"{name} holds {len(entries)} of {count} entries")
    return _Table(int(descriptor[1]), entries)


def _window(dataset: Dataset, standard: bool) -> _Window | None:
    width = _float(dataset, "WindowWidth")
    if width is None or _float(dataset, "WindowCenter") is None:
        return None
    function = _text(dataset, "VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ReadError("unsupported", "an unknown VOI LUT Function (0028,1056)")
    if width <= 0 or (width < 1 and function == "LINEAR"):
        least = "1" if function == "LINEAR" else "more than 0"
        raise ReadError("damaged", f"the Window Width (0028,1051) is too small; {function} needs {least}")
    elements = Dataset()
    # pydicom derives the window's output range from these. As min and max are stretched later, it only matters for the
    # last bit, and for a negative slope, which turns the window upside down; the standard does not ask for that.
    range_from = () if standard else ("ModalityLUTSequence", *_RESCALE)
    for name in (*_WINDOW, "BitsStored", "PixelRepresentation", *range_from):
        if name in dataset:
            elements[name] = dataset[name]
    elements.VOILUTFunction = function
    elements.PhotometricInterpretation = "MONOCHROME2"
    elements.PixelRepresentation = _integer(dataset, "PixelRepresentation", 0)
    return _Window(elements)


def _padding(dataset: Dataset, allocated: int, signed: bool) -> tuple[int, int] | None:
    """The lowest and highest value that is padding."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    first = _integer(dataset, "PixelPaddingValue", 0)
    ends = np.array([first, _integer(dataset, "PixelPaddingRangeLimit", first)]) % 2**allocated
    # The value's own VR is often wrong; the pixels' is meant.
    ends = np.where(signed & (ends >= 2 ** (allocated - 1)), ends - 2**allocated, ends)
    return int(ends.min()), int(ends.max())


def _first(dataset: Dataset, name: str) -> Any:
    try:
        value = dataset.get(name)
    except Exception:
        raise ReadError("damaged", f"the value of {name} in the DICOM header cannot be read") from None
    if isinstance(value, MultiValue | list):
        value = value[0] if value else None
    return None if value == "" else value


def _integer(dataset: Dataset, name: str, default: int) -> int:
    value = _first(dataset, name)
    try:
        return default if value is None else int(value)
    except Exception:
        raise ReadError("damaged", f"the value of {name} in the DICOM header is no whole number") from None


def _float(dataset: Dataset, name: str) -> float | None:
    value = _first(dataset, name)
    if value is None:
        return None
    try:
        number = float(value)
    except Exception:
        number = np.nan
    if not np.isfinite(number):
        raise ReadError("damaged", f"the value of {name} in the DICOM header is no number")
    return number


def _text(dataset: Dataset, name: str) -> str:
    value = _first(dataset, name)
    return value.strip().upper() if isinstance(value, str) else ""


# The pixels


def _check_has_pixels(rest: memoryview, little: bool) -> None:
    tag = _tag(rest, 0, "<" if little else ">") if len(rest) >= 12 else None
    if tag in _FLOAT_PIXEL_DATA:
        raise ReadError("not_radiograph", "the pixels are floating point numbers; those of a radiograph are whole")
    if tag != _PIXEL_DATA:
        raise ReadError("no_pixels", "no Pixel Data (7FE0,0010): the file holds no image, or ends before it")


def _pixel_data(rest: memoryview, header: _Header, implicit: bool, little: bool) -> tuple[memoryview, str]:
    """The value of Pixel Data, checked for what a decoder would pass over, and its value representation."""
    if min(header.rows, header.columns) < 1:
        raise ReadError("damaged", f"the DICOM header says {header.columns} x {header.rows} pixels")
    start = 8 if implicit else 12
    length = struct.unpack_from("<L" if little else ">L", rest, start - 4)[0]
    vr = "OW" if implicit else bytes(rest[4:6]).decode("latin-1")
    value = rest[start:]
    if header.syntax.is_encapsulated != (length == _UNDEFINED_LENGTH):
        raise ReadError("damaged", "the pixel data are not laid out as the transfer syntax says")
    if header.syntax.is_encapsulated:
        _check_codestream(_codestream(value), header)
        return value, vr
    expected = header.rows * header.columns * header.bits_allocated // 8
    found = min(length, len(value))
    if found < expected:
        raise ReadError("damaged", f"{_CUT}: {found:,} of {expected:,} bytes")
    # Bytes of 8-bit images may be swapped pairwise in big endian: keep the one that pads.
    return value[: expected + expected % 2], vr


def _codestream(value: memoryview) -> bytes:
    """All fragments of the only frame, without the offset table, which comes first."""
    fragments: list[memoryview] = []
    position = 0
    while position + 8 <= len(value):
        tag, length = _tag(value, position, "<"), struct.unpack_from("<L", value, position + 4)[0]
        position += 8
        if tag == _LAST_ITEM:
            return b"".join(fragments[1:])
        if tag != _ITEM:
            raise ReadError("damaged", "the fragments of the pixel data do not follow one another")
        fragments.append(value[position : position + length])
        position += length
    raise ReadError("damaged", _CUT)


def _check_codestream(codestream: bytes, header: _Header) -> None:
    """Decoders allocate what a codestream declares, whatever the header says, and fill what is missing with grey."""
    if header.syntax == uid.RLELossless:
        return
    try:
        height, width, components, bits = _frame(codestream)
    except (IndexError, struct.error):
        raise ReadError("damaged", "the compressed image has no header") from None
    if (height, width, components) != (header.rows, header.columns, 1):
        raise ReadError(
            "damaged",
            f"the compressed image is {width} x {height} of {components} components,"
            f" the DICOM header says {header.columns} x {header.rows} of 1",
        )
    if header.syntax in _BASELINE and bits != 8:
        raise ReadError("unsupported", f"lossy JPEG of {bits} bits; 8 are read")
    # In all of these, an FF within the image data is followed by something smaller.
    if _JPEG_END not in codestream:
        raise ReadError("damaged", _CUT)


def _frame(codestream: bytes) -> tuple[int, int, int, int]:
    """Height, width, number of components and bits of a JPEG, JPEG-LS or JPEG 2000 image, as it declares them."""
    start = codestream.find(_JPEG_2000_START)
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">4L", codestream, start + 8)
        components, bits = struct.unpack_from(">HB", codestream, start + 40)
        return bottom - top, right - left, components, bits % 128 + 1
    position = len(b"\xff\xd8")
    while codestream[position] == 0xFF:
        marker = codestream[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _JPEG_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", codestream, position + 4)
            return height, width, components, bits
        position += 2 + struct.unpack_from(">H", codestream, position + 2)[0]
    raise IndexError


def _stored_values(header: _Header, pixels: memoryview, vr: str) -> NDArray[Any]:
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
    if header.syntax in _UNUSED_BITS:
        # `_grey` does that, once for each value.
        options["correct_unused_bits"] = False
    # A codestream is copied, for pydicom's sake; what is not compressed is read where it lies.
    source: Any = bytes(pixels)
    if not header.syntax.is_encapsulated:
        source = pixels
        options["view_only"] = True
    plugin = _PLUGINS.get(header.syntax, "")
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


def _grey(stored: NDArray[Any], header: _Header) -> NDArray[np.uint8]:
    """Every step is a function of a pixel's value alone, so each value that occurs passes them once."""
    codes = stored.view(f"u{stored.itemsize}")
    levels = 256**stored.itemsize
    occurring = np.flatnonzero(cv2.calcHist([codes], [0], None, [levels], [0, levels]))
    values = occurring.astype(codes.dtype).view(stored.dtype)
    if header.syntax in _UNUSED_BITS:
        unused = 8 * stored.itemsize - header.bits_stored
        values = values << unused >> unused
    values = values.astype(np.int64)
    shown: NDArray[Any] = values
    for step in header.steps:
        shown = step(shown)
    shown = shown.astype(np.float64)
    if header.inverted:
        shown = -shown
    counting = shown
    if header.padding:
        low, high = header.padding
        counting = shown[(values < low) | (values > high)]
    table = np.zeros(levels, np.uint8)
    if counting.size and counting.min() < counting.max():
        shown = np.clip(shown, counting.min(), counting.max()) - counting.min()
        table[occurring] = shown / shown.max() * 255
    return np.asarray(cv2.LUT(codes, table), np.uint8)


def _tag(data: memoryview, position: int, order: str) -> int:
    group, element = struct.unpack_from(f"{order}HH", data, position)
    return int(group << 16 | element)
