"""Calibrations of invented predictions, whose errors go with their spread."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import chexmask_u as cu
from chexmask_u.anatomy import LANDMARKS
from chexmask_u.calibration import fit
from chexmask_u.calibration.calibration import Calibration, Of, Radius
from chexmask_u.calibration.fit import CLEAN, Measured
from chexmask_u.calibration.known import Known
from chexmask_u.calibration.seen import Seen
from chexmask_u.model.spread import across_and_along

_TRIED = 40


def predictions(rng: np.random.Generator, count: int) -> cu.Prediction:
    """Rings whose draws spread by image and by landmark."""
    mean = np.empty((count, 120, 2))
    for nodes in LANDMARKS.values():
        angle = np.linspace(0, 2 * np.pi, nodes.stop - nodes.start, endpoint=False)
        mean[:, nodes] = 500 + 150 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    spread = 4 * np.exp(rng.normal(0, 0.4, (count, 1, 1)) + rng.normal(0, 0.3, (count, 120, 1)))
    std = spread * np.exp(rng.normal(0, 0.1, (count, 120, 2)))
    mean = mean + rng.normal(0, 3, mean.shape)
    covariance = rng.uniform(-0.7, 0.7, (count, 120)) * std.prod(axis=2)
    across, along = across_and_along(mean, std, covariance)
    latents = rng.normal(0, 1, (count, 64)), np.exp(rng.normal(-1, 0.1, (count, 64)))
    return cu.Prediction(*(part.astype(np.float32) for part in (mean, std, covariance, across, along, *latents)))


def errors(rng: np.random.Generator, prediction: cu.Prediction) -> NDArray[np.float64]:
    """Three times the spread at the mean, all of an image larger or smaller together."""
    spread = prediction.landmarks_std.mean(axis=2)
    return np.asarray(
        3 * spread * rng.exponential(1, spread.shape) * np.exp(rng.normal(0, 0.3, (len(spread), 1))), np.float64
    )


def measured(rng: np.random.Generator, count: int, prefix: str = "there") -> Measured:
    """So many images as they are, and once more as if shifted."""
    of_kind = {kind: predictions(rng, count) for kind in (CLEAN, "shifted")}
    landmark = {kind: errors(rng, prediction) for kind, prediction in of_kind.items()}
    return Measured(
        [f"{prefix}/{index}" for index in range(count)],
        {kind: Seen.of(prediction) for kind, prediction in of_kind.items()},
        {"landmark": landmark, "contour": {kind: 0.5 * values for kind, values in landmark.items()}},
    )


@functools.cache
def fitted(count: int) -> tuple[dict[Of, Radius | None], dict[Of, dict[str, Any]], Known]:
    """Radii, what they are worth, and what is known, of so many images."""
    found = measured(np.random.default_rng(7), count)
    radii = {of: fit.radius(found, of, found.annotated(of)) for of in found.errors}
    # More would only take longer.
    tried = found if count <= _TRIED else measured(np.random.default_rng(7), _TRIED)
    trials = {of: fit.trial(tried, of) for of in tried.errors}
    return radii, trials, Known.fit(found.seen[CLEAN].image_features())


def calibration(weights_sha256: str, count: int = 40, about: Mapping[str, Any] | None = None) -> Calibration:
    """One of so many images, written and read again."""
    radii, trials, known = fitted(count)
    content = {
        "made_with": "chexmask_u test",
        "images": {"there": {"images": count, "masks_alone": 0}},
        "started_from": None,
        "edge_features": False,
        "trials": trials,
        "known_radiographs": count,
        "assumes": "The coverage is promised for images drawn as these were.",
    }
    made = Calibration(weights_sha256, radii["landmark"], radii["contour"], known, {**content, **(about or {})})
    return Calibration.from_text(made.text, "made here")
