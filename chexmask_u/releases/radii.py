"""The columns that a calibration adds to landmarks: radii in original pixels, and how usual the image is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chexmask_u import record, storage
from chexmask_u.anatomy import LATENT_SIZE
from chexmask_u.calibration.calibration import Calibration, Of, calibration_of
from chexmask_u.calibration.seen import Seen
from chexmask_u.columns import node_array, to_landmarks, to_nodes
from chexmask_u.errors import InputError
from chexmask_u.runs.run import Run
from chexmask_u.settings import NO_CALIBRATION, ReleaseSettings
from chexmask_u.weight_files import DEMO

# Of what a radius is made.
NEEDED = ("landmarks_mean", "landmarks_std", "landmarks_xy", "latent_mean", "latent_std", "letterbox")

# Rows at once: their spreads in float64 are some 10 MB.
_ROWS = 1_000


def calibration(run: Run, settings: ReleaseSettings) -> Calibration | None:
    """The calibration of a release: the one that is named, or the one that lies beside its run's weights on disk.

    Raises:
        InputError: if the one that is named is none, of other weights, or has too few images for the radii.
    """
    frozen = run.read_json("run.json")
    if settings.calibration == NO_CALIBRATION or frozen is None:
        return None
    weights = frozen["weights"]
    if settings.calibration is None:
        return _beside(weights)
    found = calibration_of(settings.calibration, weights["sha256"], "--calibration")
    try:
        found.summary(record.RADIUS_COVERAGE)
    except InputError as error:
        raise InputError(f"--calibration {settings.calibration}: {error}") from error
    return found


def _beside(weights: dict[str, Any]) -> Calibration | None:
    """What lies beside the weights, if it is theirs. The Hub is not asked: a release is to be made without it."""
    source = weights["source"]
    if source != DEMO and (source.startswith("hf://") or not storage.is_local(source)):
        return None
    try:
        found = calibration_of(source, weights["sha256"], "--calibration")
        found.summary(record.RADIUS_COVERAGE)
    except InputError:
        return None
    return found


def columns(table: pa.Table, calibration: Calibration) -> dict[str, Any]:
    """The columns of `record.CALIBRATED` for rows that hold `NEEDED`; null where a row has no ``landmarks_xy``."""
    found: dict[str, list[Any]] = {name: [] for name in record.CALIBRATED.names}
    for start in range(0, len(table), _ROWS):
        part = table.slice(start, _ROWS).combine_chunks()
        for name, values in _of(part, calibration).items():
            found[name] += values
    radii = {name: node_array(found[name]) for name in ("landmarks_radius", "contour_radius")}
    return {**radii, "ood_score": pa.array(found["ood_score"], pa.float32())}


def _of(table: pa.Table, calibration: Calibration) -> dict[str, list[Any]]:
    covariance = list(to_nodes(table["landmarks_xy"]))
    rows = [row for row, value in enumerate(covariance) if value is not None]
    found: dict[str, list[Any]] = {name: [None] * len(table) for name in record.CALIBRATED.names}
    if not rows:
        return found
    mean, std = (list(to_landmarks(table[name])) for name in ("landmarks_mean", "landmarks_std"))
    scale = pc.struct_field(table["letterbox"], "scale").to_numpy()[rows]
    # A shift moves neither a contour's direction nor a spread.
    seen = Seen.from_arrays(
        _stacked(mean, rows) * scale[:, None, None],
        _stacked(std, rows) * scale[:, None, None],
        _stacked(covariance, rows) * scale[:, None] ** 2,
        *(_latents(table[name])[rows] for name in ("latent_mean", "latent_std")),
    )
    for name, of in _RADII.items():
        if getattr(calibration, of) is not None:
            for row, radii in zip(
                rows, calibration.radii(seen, record.RADIUS_COVERAGE, of) / scale[:, None], strict=True
            ):
                found[name][row] = radii
    if calibration.known is not None:
        for row, score in zip(rows, calibration.known.score(seen.image_features()), strict=True):
            found["ood_score"][row] = float(score)
    return found


_RADII: dict[str, Of] = {"landmarks_radius": "landmark", "contour_radius": "contour"}


def _stacked(values: list[Any], rows: list[int]) -> NDArray[np.float64]:
    return np.stack([values[row] for row in rows]).astype(np.float64)


def _latents(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.combine_chunks().flatten().to_numpy(), np.float64).reshape(-1, LATENT_SIZE)
