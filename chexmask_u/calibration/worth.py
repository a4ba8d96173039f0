"""What an uncertainty is worth: whether it ranks landmarks and images as their errors do, with intervals by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import LANDMARKS

# Resamplings of the images that an interval comes from, and its two ends.
_RESAMPLINGS = 200
_ENDS = (0.05, 0.95)


def landmark_errors(landmarks: NDArray[np.floating], annotated: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distance of each landmark [B, 120, 2] to its annotation, float64 [B, 120]; NaN where there is none."""
    return np.asarray(np.linalg.norm(np.asarray(landmarks, np.float64) - annotated, axis=-1), np.float64)


def contour_errors(landmarks: NDArray[np.floating], annotated: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distance of each landmark [B, 120, 2] to the annotated contour of its organ, the closed polygon of its landmarks.

    Returns:
        float64 [B, 120]; NaN for an organ that is not annotated.
    """
    found = np.empty(landmarks.shape[:-1], np.float64)
    for nodes in LANDMARKS.values():
        points, start = (np.asarray(values[:, nodes], np.float64) for values in (landmarks, annotated))
        edge = np.roll(start, -1, axis=1) - start
        away = points[:, :, None] - start[:, None]
        # An edge between two landmarks in one place is that place.
        length = np.maximum(np.square(edge).sum(axis=-1), 1e-12)
        share = ((away * edge[:, None]).sum(axis=-1) / length[:, None]).clip(0, 1)
        found[:, nodes] = np.linalg.norm(away - share[..., None] * edge[:, None], axis=-1).min(axis=2)
    return found


def trust(uncertainty: NDArray[np.floating], errors: NDArray[np.floating]) -> dict[str, Any]:
    """Whether an uncertainty tells errors apart.

    Args:
        uncertainty, errors: [B, 120]; NaN errors are left out.

    Returns:
        ``r`` and ``rho``: Pearson's and Spearman's correlation over all landmarks; ``ause``: the area between the mean
        error of what is left as the most uncertain landmarks are dropped one by one and as the worst ones are, over the
        mean error (0: as good as knowing the errors); ``image_rho``: Spearman's over the images' means. Each with an
        ``..._interval`` of 90%, over resampled images; None for fewer than three images, or where nothing varies.
    """
    measures: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
        "r": lambda u, e: _correlation(u[np.isfinite(e)], e[np.isfinite(e)]),
        "rho": lambda u, e: _correlation(_ranks(u[np.isfinite(e)]), _ranks(e[np.isfinite(e)])),
        "ause": lambda u, e: _ause(u[np.isfinite(e)], e[np.isfinite(e)]),
        "image_rho": lambda u, e: _correlation(
            _ranks(np.nanmean(np.where(np.isfinite(e), u, np.nan), axis=1)), _ranks(np.nanmean(e, axis=1))
        ),
    }
    if len(errors) < 3:
        return dict.fromkeys([*measures, *(f"{name}_interval" for name in measures)])
    rng = np.random.Generator(np.random.Philox(0))
    samples = [rng.integers(0, len(errors), len(errors)) for _ in range(_RESAMPLINGS)]
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        value = measure(uncertainty, errors)
        again = np.array([measure(uncertainty[rows], errors[rows]) for rows in samples])
        known = np.isfinite(value) and np.isfinite(again).any()
        found[name] = value if known else None
        ends = np.quantile(again[np.isfinite(again)], _ENDS) if known else None
        found[f"{name}_interval"] = None if ends is None else [float(end) for end in ends]
    return found


def by_image(values: NDArray[np.floating]) -> tuple[float, list[float]]:
    """Mean of one value per image [B], and an interval of 90% over resampled images."""
    rng = np.random.Generator(np.random.Philox(0))
    again = values[rng.integers(0, len(values), (_RESAMPLINGS * 10, len(values)))].mean(axis=1)
    return float(values.mean()), [float(end) for end in np.quantile(again, _ENDS)]


def auc(usual: NDArray[np.floating], odd: NDArray[np.floating]) -> float:
    """Chance that an odd image's score is above a usual one's, ties counting half."""
    above = odd[:, None] > usual
    return float((above + 0.5 * (odd[:, None] == usual)).mean())


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks, equal values sharing their mean one."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def _correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Pearson's; NaN where one of them does not vary."""
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum() / scale) if scale else float("nan")


def _ause(uncertainty: NDArray[Any], errors: NDArray[Any]) -> float:
    left = np.arange(len(errors), 0, -1)

    def curve(by: NDArray[Any]) -> NDArray[np.float64]:
        dropped = errors[np.argsort(-by, kind="stable")]
        return np.asarray((dropped.sum() - np.concatenate([[0.0], dropped.cumsum()[:-1]])) / left, np.float64)

    return float((curve(uncertainty) - curve(errors)).mean() / errors.mean())
