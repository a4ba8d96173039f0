"""Millimetres per pixel, where a DICOM file tells; of its text, the two elements that say so are all that is parsed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO

from pydicom import dcmread

from chexmask_u import storage
from chexmask_u.images.dicom import recognised, unheard

# Ends far behind both elements, which come before the pixels, and spares a storage the rest.
_HEAD_BYTES = 2**20

# What can be no DICOM file by its name is not asked for a second time.
_OTHER_SUFFIXES = (".png", ".jpg", ".jpeg")


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

    def __str__(self) -> str:
        return f"{self.element}, at the detector" if self.at_detector else self.element


def read_spacing(uri: str) -> Spacing | None:
    """The spacing of an image that was read before, or None where its file tells none."""
    if uri.lower().endswith(_OTHER_SUFFIXES):
        return None
    fs, path = storage.resolve(uri)
    return find_spacing(fs.cat_file(path, start=0, end=_HEAD_BYTES))


def find_spacing(head: bytes) -> Spacing | None:
    """The spacing by the beginning of a file.

    PixelSpacing goes first: it may be corrected for the magnification. Where it equals ImagerPixelSpacing it is not
    (PS3.3, 10.7.1.3).
    """
    if not recognised(head):
        return None
    told = _told(head)
    for element in ("PixelSpacing", "ImagerPixelSpacing"):
        if element in told:
            y, x = told[element]
            return Spacing(x, y, element, at_detector=told.get("ImagerPixelSpacing") == told[element])
    return None


def _told(head: bytes) -> dict[str, tuple[float, float]]:
    """Millimetres between rows and between columns, by element; what is no pair of lengths is left out."""
    found = {}
    with unheard():
        try:
            dataset = dcmread(
                BytesIO(head), stop_before_pixels=True, force=True, specific_tags=["PixelSpacing", "ImagerPixelSpacing"]
            )
        except Exception:  # whatever a header that ends early, or is deflated and cut, makes its parser raise
            return {}
        for element in ("PixelSpacing", "ImagerPixelSpacing"):
            try:
                y, x = (float(value) for value in dataset[element].value)
            except (KeyError, TypeError, ValueError):
                continue
            if all(math.isfinite(value) and value > 0 for value in (x, y)):
                found[element] = (y, x)
    return found
