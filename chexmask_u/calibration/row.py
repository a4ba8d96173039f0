"""One record as a mapping, of whatever library: its columns as numpy has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import N_LANDMARKS
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.record import SINCE

_ONE_ROW = (
    "record must be one row of a release, not {}; give records[0] of a dataset, frame.iloc[0] of pandas,"
    " frame.row(0, named=True) of Polars, or table.to_pylist()[0] of Arrow"
)


def column(record: Mapping[str, Any], name: str) -> Any:
    """One value of a record.

    Raises:
        TypeError: if what is given is no record but many of them, or none.
        ValueError: if it has no such column.
    """
    # A row of pandas has one axis, a frame two; a table of Arrow or a dataset may have the column, all rows of it.
    if not hasattr(record, "__getitem__") or isinstance(record, str | bytes) or _has_rows(record):
        raise TypeError(_ONE_ROW.format(named(record)))
    if name not in record:
        raise ValueError(f"the record has no {name}; give a row of a release, with that column")
    return record[name]


def _has_rows(record: Any) -> bool:
    """Whether it is a table, a dataset, a list or an array: records, and not one of them."""
    return isinstance(record, Sequence) or hasattr(record, "column_names") or len(getattr(record, "shape", ())) > 1


def named(given: Any) -> str:
    """What somebody gave, in few words."""
    return repr(given) if isinstance(given, str | bytes | PathLike) else f"a {type(given).__name__}"


def points(record: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """Float64 [120, 2] of lists, arrays, tensors, or an array of arrays as pandas has it."""
    found = np.array([np.asarray(point, np.float64) for point in column(record, name)])
    if found.shape != (N_LANDMARKS, 2):
        raise ValueError(f"{name} must be [{N_LANDMARKS}, 2], not {list(found.shape)}")
    return found


def letterbox(record: Mapping[str, Any]) -> Letterbox:
    """How the record's image became the 1024 frame.

    Raises:
        TypeError: if it is that of several records.
    """
    row = column(record, "letterbox")
    if not hasattr(row, "items") or any(np.asarray(value).size != 1 for value in row.values()):
        raise TypeError(_ONE_ROW.format("several as one mapping"))
    # Formats of `datasets` make arrays or tensors of the members.
    return Letterbox.from_row({name: np.asarray(value).item() for name, value in row.items()})


def number(given: object, name: str) -> float:
    """What somebody gave for a number.

    Raises:
        TypeError: if it is none, or more than one.
        ValueError: if it is NaN.
    """
    if not isinstance(given, Real) or isinstance(given, bool):
        raise TypeError(f"{name} must be a number, not {given!r}")
    if math.isnan(given):
        raise ValueError(f"{name} must be a number, not NaN")
    return float(given)


def distance(given: object, name: str) -> float:
    """What somebody gave for a number of pixels.

    Raises:
        TypeError: if it is no number, or more than one.
        ValueError: if it is NaN or negative.
    """
    pixels = number(given, name)
    if pixels < 0:
        raise ValueError(f"{name} must be a number of pixels, 0 or more, not {given}")
    return pixels


def nodes(record: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """Float64 [120] likewise.

    Raises:
        ValueError: if the record has no such column, or null in it.
    """
    value = column(record, name)
    if value is None:
        raise ValueError(f"{name} of the record is null: {_why_null(name)}")
    found = np.asarray(value, np.float64)
    if found.shape != (N_LANDMARKS,):
        raise ValueError(f"{name} of the record must be [{N_LANDMARKS}], not {list(found.shape)}")
    return found


def _why_null(name: str) -> str:
    """Why a column of `nodes` may be null, and what to do."""
    if name in SINCE:
        return (
            f"its run was begun before schema {SINCE[name]}, which brought that column; make the record again with"
            " `chexmask-u generate` and another --output"
        )
    return (
        "its release's calibration has no such radius, or its run was begun before schema"
        f" {SINCE['landmarks_across']}; give another as calibration=, or make the record again"
    )
