"""Millimetres per pixel, where a DICOM header tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

# PixelSpacing goes first: it may be corrected for the magnification. Where it equals ImagerPixelSpacing it is not
# (PS3.3, 10.7.1.3).
ELEMENTS = ("PixelSpacing", "ImagerPixelSpacing")
"""The elements that say so, by keyword."""

# Two decimal strings of 16 characters at most, and what stands between and behind them.
_LONGEST = 34


@dataclass(frozen=True)
class Spacing:
    """Millimetres per pixel of an image as distributed.

    Attributes:
        x, y: between two columns, and between two rows.
        element: of DICOM that says so: "PixelSpacing" or "ImagerPixelSpacing".
        at_detector: whether it is known to hold in the detector's plane, where everything in a chest is shown larger
            than it is, by a tenth or so; else the file does not say.
    """

    x: float
    y: float
    element: str
    at_detector: bool

    @classmethod
    def from_row(cls, row: Mapping[str, Any] | None) -> Self | None:
        """From the struct of the read step's ``spacing`` column."""
        return None if row is None else cls(**row)

    def to_row(self) -> dict[str, Any]:
        """As the struct of the read step's ``spacing`` column."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.element}, at the detector" if self.at_detector else self.element


def told(header: Dataset) -> Spacing | None:
    """The spacing that a header with `ELEMENTS`, as far as the file has them, tells; never the header's own text."""
    found = {element: pair for element in ELEMENTS if (pair := _lengths(header, element))}
    for element, (y, x) in found.items():
        return Spacing(x, y, element, at_detector=found.get("ImagerPixelSpacing") == (y, x))
    return None


def _lengths(header: Dataset, element: str) -> tuple[float, float] | None:
    """Millimetres between rows and between columns; None for what is no pair of lengths."""
    try:
        raw = header.get_item(element)
        # Of a value of megabytes, which some headers allow, the parser would make millions of numbers first.
        if isinstance(raw, RawDataElement) and len(raw.value or b"") > _LONGEST:
            return None
        y, x = (float(value) for value in header[element].value)
    except Exception:  # whatever a hostile value makes its parser raise: an image is not worth failing for a length
        return None
    return (y, x) if all(math.isfinite(value) and value > 0 for value in (x, y)) else None
