"""numpy <-> Arrow columns of a batch, with nulls where a row failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u.anatomy import LATENT_SIZE, N_LANDMARKS


def replace(batch: pa.Table, schema: pa.Schema, **columns: Any) -> pa.Table:
    """`batch` with new columns, in the order and types of `schema`; columns that the schema lacks are dropped."""
    arrays = [
        _array(columns[field.name], field.type) if field.name in columns else batch[field.name].cast(field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def landmark_array(values: Sequence[NDArray[Any] | None]) -> pa.Array:
    """One [120, 2] array or None per row -> `record.LANDMARK_ARRAY`."""
    filled, valid = _filled(values, (N_LANDMARKS, 2))
    points = pa.FixedSizeListArray.from_arrays(pa.array(filled[valid].ravel()), 2)
    offsets = np.concatenate(([0], np.cumsum(valid))) * N_LANDMARKS
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), points, mask=pa.array(~valid))


def node_array(values: Sequence[NDArray[Any] | None]) -> pa.Array:
    """One [120] array or None per row -> `record.NODE_ARRAY`."""
    return _vectors(values, N_LANDMARKS)


def latent_array(values: Sequence[NDArray[Any] | None]) -> pa.Array:
    """One [64] array or None per row -> `record.LATENT_ARRAY`."""
    return _vectors(values, LATENT_SIZE)


def to_landmarks(column: pa.ChunkedArray) -> Iterator[NDArray[np.float32] | None]:
    """One float32 [120, 2] array, or None where the row failed, per row of a landmark column."""
    for chunk in column.chunks:
        # flatten() leaves out the rows that are null, so rows are counted off rather than indexed.
        values = chunk.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, N_LANDMARKS, 2)
        present = iter(values)
        for valid in chunk.is_valid().to_pylist():
            yield np.asarray(next(present), np.float32) if valid else None


def to_nodes(column: pa.ChunkedArray) -> Iterator[NDArray[np.float32] | None]:
    """One float32 [120] array, or None where there is none, per row of a `record.NODE_ARRAY` column."""
    for values in column:
        yield np.array(values.values, np.float32) if values.is_valid else None


def _vectors(values: Sequence[NDArray[Any] | None], size: int) -> pa.Array:
    filled, valid = _filled(values, (size,))
    return pa.FixedSizeListArray.from_arrays(pa.array(filled.ravel()), size, mask=pa.array(~valid))


def _filled(values: Sequence[NDArray[Any] | None], shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Rows stacked with zeros for None, float32 [B, *shape], and which of them are there, bool [B]."""
    filled = np.zeros((len(values), *shape), np.float32)
    valid = np.array([value is not None for value in values], bool)
    for row, value in enumerate(values):
        if value is not None:
            filled[row] = value
    return filled, valid


def _array(values: Any, type_: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values if values.type == type_ else values.cast(type_)
    return pa.array(values, type_)
