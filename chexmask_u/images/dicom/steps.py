"""What a DICOM file's values pass before they are grey: modality LUT, then VOI LUT or window; and which are padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_windowing

from chexmask_u.images.dicom.elements import finite, first_value, integer, number, text, values
from chexmask_u.record import ReadError

_RESCALE = ("RescaleSlope", "RescaleIntercept")
_WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction")
_TABLES = {"ModalityLUTSequence": "Modality LUT (0028,3000)", "VOILUTSequence": "VOI LUT (0028,3010)"}
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
ELEMENTS = (*_TABLES, *_WINDOW, *_RESCALE, *_PADDING)
"""The elements that tell how values are shown, by keyword."""


@dataclass(frozen=True)
class Step:
    """What values float64 or int64 [V] pass, and the elements that ask for it, in words.

    `bits` says of how many bits all values are told apart, and no others, as placeholders have it; 0 of none.
    """

    name: str
    apply: Callable[[NDArray[Any]], NDArray[Any]]
    bits: int = 0


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


def of_values(dataset: Dataset, standard: bool, little: bool) -> tuple[Step, ...]:
    """What the values of a file pass, in order; see `decode` for `standard`.

    Args:
        dataset: with `ELEMENTS`, as far as the file has them.
        standard: whether the modality LUT is one of them.
        little: whether the file's words are little endian.
    """
    signed = integer(dataset, "PixelRepresentation", 0) == 1
    modality = _table(dataset, "ModalityLUTSequence", little, signed) or _rescale(dataset) if standard else None
    voi = _table(dataset, "VOILUTSequence", little, signed and not modality) or _window(dataset, standard)
    return tuple(step for step in (modality, voi) if step)


def _rescale(dataset: Dataset) -> Step | None:
    slope, intercept = (number(dataset, name) for name in _RESCALE)
    if slope is None or intercept is None:
        return None
    return Step("Rescale Slope and Intercept (0028,1053 and 1052)", _Rescale(slope, intercept))


def _table(dataset: Dataset, name: str, little: bool, signed: bool) -> Step | None:
    """The table of the first item that has one, for stored values that may be `signed`."""
    # Empty items are placeholders.
    item = next((item for item in dataset.get(name) or () if "LUTDescriptor" in item or "LUTData" in item), None)
    if item is None:
        return None
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if not isinstance(descriptor, MultiValue | list) or len(descriptor) < 3:
        raise ReadError("damaged", f"the {_TABLES[name]} of the DICOM header does not say how many entries it has")
    # 65,536 entries do not fit 16 bits and are written as 0; more than 32,767 are negative where the VR is signed.
    count = descriptor[0] % 2**16 or 2**16
    entries = _entries(data, count, descriptor[2], little)
    if len(entries) < count:
        raise ReadError("damaged", f"the {_TABLES[name]} of the DICOM header holds {len(entries)} of {count} entries")
    first = int(descriptor[1])
    # The descriptor's own VR is often wrong; the pixels' is meant.
    first -= 2**16 if signed and first >= 2**15 else 0
    return Step(_TABLES[name], _Table(first, entries[:count]))


def _entries(data: Any, count: int, bits: int, little: bool) -> NDArray[np.int64]:
    """The entries int64 [N] of a table's data, which are whole numbers or the bytes of 16-bit words.

    Entries of 8 bits may be packed, two to a word: then there are no more bytes than there should be entries, and some
    word is larger than an entry can be.
    """
    order = "<" if little else ">"
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype(np.int64)
    else:
        # Entries are never negative, whatever their VR says.
        words = np.atleast_1d(np.asarray([] if data is None else data, np.int64)) % 2**16
    if bits <= 8 and len(words) <= (count + 1) // 2 < count and words.max(initial=0) > 255:
        return np.frombuffer(words.astype(f"{order}u2").tobytes(), np.uint8).astype(np.int64)
    return words


def _window(dataset: Dataset, standard: bool) -> Step | None:
    function = text(dataset, "VOILUTFunction") or "LINEAR"
    windows = list(zip(values(dataset, "WindowCenter"), values(dataset, "WindowWidth"), strict=False))
    # A width of 0 is no window but a placeholder; the first that is one counts.
    chosen = next((pair for pair in windows if None not in pair and finite(pair[1], "WindowWidth") != 0), None)
    if chosen is None:
        return None
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ReadError("unsupported", "an unknown VOI LUT Function (0028,1056)")
    _, width = (finite(value, name) for value, name in zip(chosen, _WINDOW, strict=False))
    if width < 0 or (width < 1 and function == "LINEAR"):
        least = "1" if function == "LINEAR" else "more than 0"
        raise ReadError(
            "damaged",
            f"the Window Width (0028,1051) is too small; {function} needs {least}. Correct it, or remove the window to"
            " show the pixels by their own range",
        )
    elements = Dataset()
    # pydicom derives the window's output range from these. As the range is stretched later, it only matters for the
    # last bit, and for a negative slope, which turns the window upside down; the standard does not ask for that.
    range_from = () if standard else ("ModalityLUTSequence", *_RESCALE)
    for name in ("BitsStored", *range_from):
        if name in dataset:
            elements[name] = dataset[name]
    elements.WindowCenter, elements.WindowWidth = chosen
    elements.VOILUTFunction = function
    elements.PhotometricInterpretation = "MONOCHROME2"
    elements.PixelRepresentation = integer(dataset, "PixelRepresentation", 0)
    return Step("Window Center and Width (0028,1050 and 1051)", _Window(elements), _whole_bits(*map(float, chosen)))


def _whole_bits(center: float, width: float) -> int:
    """Of how many bits a window has all values, from 0 on, to within the ways in which people count; 0 of none."""
    bits = round(math.log2(width + 1)) if width > 0 else 0
    return bits if bits >= 8 and abs(width - 2**bits) <= 1 and abs(center - 2 ** (bits - 1)) <= 1 else 0


def padding(dataset: Dataset, allocated: int, signed: bool) -> tuple[int, int] | None:
    """The lowest and highest value that is padding, of pixels of so many bits."""
    if first_value(dataset, "PixelPaddingValue") is None:
        return None
    first = integer(dataset, "PixelPaddingValue", 0)
    ends = np.array([first, integer(dataset, "PixelPaddingRangeLimit", first)]) % 2**allocated
    # The value's own VR is often wrong; the pixels' is meant.
    ends = np.where(signed & (ends >= 2 ** (allocated - 1)), ends - 2**allocated, ends)
    return int(ends.min()), int(ends.max())
