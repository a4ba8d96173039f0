"""The columns that a calibration adds to records: radii in original pixels, and how usual the image is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chexmask_u import record
from chexmask_u.calibration.calibration import Calibration, Of
from chexmask_u.calibration.known import Known
from chexmask_u.calibration.seen import COLUMNS, Seen
from chexmask_u.columns import node_array, to_landmarks

# Of what a radius is made.
NEEDED = (*COLUMNS, "letterbox")

# Rows at once: their spreads in float64 are some 10 MB.
_ROWS = 1_000

_RADII: dict[str, Of] = {"landmarks_radius": "landmark", "contour_radius": "contour"}


def columns(table: pa.Table, calibration: Calibration) -> dict[str, Any]:
    """The columns of `record.CALIBRATED` for rows that hold `NEEDED`; null where a row has no ``landmarks_across``."""
    radii: dict[str, list[Any]] = {name: [None] * len(table) for name in _RADII}
    scores: list[float | None] = [None] * len(table)
    for rows, seen, scale in _seen(table):
        for name, of in _RADII.items():
            if getattr(calibration, of) is not None:
                found = calibration.radii(seen, record.RADIUS_COVERAGE, of) / scale[:, None]
                for row, radius in zip(rows, found, strict=True):
                    radii[name][row] = radius
        if calibration.known is not None:
            for row, score in zip(rows, calibration.known.score(seen.image_features()), strict=True):
                scores[row] = float(score)
    return {
        **{name: node_array(values) for name, values in radii.items()},
        "ood_score": pa.array(scores, pa.float32()),
    }


def of_record(made: Mapping[str, Any], calibration: Calibration) -> dict[str, Any]:
    """The same of one record that holds `NEEDED`: radii float32 [120], or the score, each where the calibration can."""
    seen, scale = Seen.of(made), made["letterbox"]["scale"]
    found: dict[str, Any] = {
        name: (calibration.radii(seen, record.RADIUS_COVERAGE, of)[0] / scale).astype(np.float32)
        for name, of in _RADII.items()
        if getattr(calibration, of) is not None
    }
    if calibration.known is not None:
        found["ood_score"] = float(calibration.known.score(seen.image_features())[0])
    return found


def ood_scores(table: pa.Table, known: Known) -> NDArray[np.float64]:
    """Scores alone of rows that hold `NEEDED`, float64 [rows]; NaN where a row has no ``landmarks_across``."""
    scores = np.full(len(table), np.nan)
    for rows, seen, _ in _seen(table):
        scores[rows] = known.score(seen.image_features())
    return scores


def _seen(table: pa.Table) -> Iterator[tuple[NDArray[Any], Seen, NDArray[np.float64]]]:
    """Places of rows with ``landmarks_across``, what a calibration looks at of them, and their letterboxes' scales."""
    for start in range(0, len(table), _ROWS):
        part = table.slice(start, _ROWS).combine_chunks()
        rows = np.flatnonzero(part["landmarks_across"].is_valid().to_numpy())
        if not len(rows):
            continue
        scale = np.asarray(pc.struct_field(part["letterbox"], "scale").to_numpy()[rows], np.float64)
        mean, std = (_stacked(list(to_landmarks(part[name])), rows) for name in COLUMNS[:2])
        across, along, *latents = (_vectors(part[name], rows) for name in COLUMNS[2:])
        # A shift moves neither a contour's shape nor a spread.
        seen = Seen.from_arrays(
            mean * scale[:, None, None],
            std * scale[:, None, None],
            across * scale[:, None],
            along * scale[:, None],
            *latents,
        )
        yield start + rows, seen, scale


def _stacked(values: list[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
    return np.stack([values[row] for row in rows]).astype(np.float64)


def _vectors(column: pa.ChunkedArray, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Some rows of a column of fixed-size lists in one chunk, float64 [rows, size]."""
    (lists,) = column.chunks
    # Not flatten(), which leaves the slots of null rows out.
    values = lists.values.slice(lists.offset * lists.type.list_size, len(lists) * lists.type.list_size)
    return np.asarray(values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)[rows], np.float64)
