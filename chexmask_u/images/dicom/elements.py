"""Values of a parsed header, and what is said where one is not what it should be; never the value itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from chexmask_u.record import ReadError


def values(dataset: Dataset, name: str) -> list[Any]:
    """All values of an element; None for those that are empty."""
    try:
        value = dataset.get(name)
    except Exception:
        raise ReadError("damaged", f"the value of {name} in the DICOM header cannot be read") from None
    several = list(value) if isinstance(value, MultiValue | list) else [value]
    return [None if one == "" else one for one in several]


def first_value(dataset: Dataset, name: str) -> Any:
    """The first value of an element; None if it is absent or empty."""
    return next(iter(values(dataset, name)), None)


def integer(dataset: Dataset, name: str, default: int) -> int:
    """The first value as a whole number."""
    value = first_value(dataset, name)
    try:
        return default if value is None else int(value)
    except Exception:
        raise ReadError("damaged", f"the value of {name} in the DICOM header is no whole number") from None


def number(dataset: Dataset, name: str) -> float | None:
    """The first value as a finite number."""
    value = first_value(dataset, name)
    return None if value is None else finite(value, name)


def text(dataset: Dataset, name: str) -> str:
    """The first value in upper case; "" for what is no text."""
    value = first_value(dataset, name)
    return value.strip().upper() if isinstance(value, str) else ""


def finite(value: Any, name: str) -> float:
    """A value of the element of that name as a finite number."""
    try:
        number = float(value)
    except Exception:
        number = np.nan
    if not np.isfinite(number):
        raise ReadError("damaged", f"the value of {name} in the DICOM header is no number")
    return number
