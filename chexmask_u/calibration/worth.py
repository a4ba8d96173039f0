"""What an uncertainty is worth: whether it ranks landmarks and images as their errors do, with intervals by image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

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


def trust(uncertainty: NDArray[np.floating], errors: NDArray[np.floating], kinds: int = 1) -> dict[str, Any]:
    """Whether an uncertainty tells errors apart.

    Args:
        uncertainty, errors: [kinds * B, 120]; NaN errors are left out, but every row has some error.
        kinds: how often each of the B images is there, all of them once and then again; for the intervals its rows
            belong together.

    Returns:
        ``r`` and ``rho``: Pearson's and Spearman's correlation over all landmarks; ``ause``: the area between the mean
        error of what is left as the most uncertain landmarks are dropped one by one and as the worst ones are, over the
        mean error (0: as good as knowing the errors); ``image_rho``: Spearman's over the images' means. Each with an
        ``..._interval`` of 90%, over resampled images; None for fewer than three images, or where nothing varies.
    """
    images = len(errors) // kinds
    tell = _Telling.of(np.asarray(uncertainty, np.float64), np.asarray(errors, np.float64), images)
    measures: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "r": tell.r,
        "rho": tell.rho,
        "ause": tell.ause,
        "image_rho": tell.image_rho,
    }
    if images < 3:
        return dict.fromkeys([*measures, *(f"{name}_interval" for name in measures)])
    rng = np.random.Generator(np.random.Philox(0))
    samples = [np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(_RESAMPLINGS)]
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        value = measure(np.ones(images, np.int64))
        again = np.array([measure(times) for times in samples])
        known = np.isfinite(value) and np.isfinite(again).any()
        found[name] = value if known else None
        ends = np.quantile(again[np.isfinite(again)], _ENDS) if known else None
        found[f"{name}_interval"] = None if ends is None else [float(end) for end in ends]
    return found


@dataclass(frozen=True)
class _Telling:
    """Landmarks' uncertainties and errors, and the images' means of both; an image may be taken several times."""

    landmarks: _Pairs
    images: _Pairs

    @classmethod
    def of(cls, uncertainty: NDArray[np.float64], errors: NDArray[np.float64], images: int) -> Self:
        there = np.isfinite(errors)
        image = np.arange(len(errors)) % images
        mean_uncertainty, mean_error = (
            np.nanmean(np.where(there, values, np.nan), axis=1) for values in (uncertainty, errors)
        )
        return cls(
            _Pairs.of(uncertainty[there], errors[there], np.broadcast_to(image[:, None], errors.shape)[there]),
            _Pairs.of(mean_uncertainty, mean_error, image),
        )

    def r(self, times: NDArray[np.int64]) -> float:
        return _correlation(self.landmarks.uncertainty, self.landmarks.errors, times[self.landmarks.image])

    def rho(self, times: NDArray[np.int64]) -> float:
        return self.landmarks.rho(times)

    def image_rho(self, times: NDArray[np.int64]) -> float:
        return self.images.rho(times)

    def ause(self, times: NDArray[np.int64]) -> float:
        pairs = self.landmarks
        curves = []
        for order in (pairs.by_uncertainty, pairs.by_errors):
            dropped = pairs.errors[order].repeat(times[pairs.image[order]])
            left = np.arange(len(dropped), 0, -1)
            curves.append((dropped.sum() - np.concatenate([[0.0], dropped.cumsum()[:-1]])) / left)
        return float((curves[0] - curves[1]).mean() / dropped.mean())


@dataclass(frozen=True)
class _Pairs:
    """Uncertainties and errors [n], the image that each is of, their ranks without gaps, and orders, largest first.

    Sorted once, since they are looked at hundreds of times with other weights.
    """

    uncertainty: NDArray[np.float64]
    errors: NDArray[np.float64]
    image: NDArray[np.int64]
    ranks: tuple[NDArray[np.int64], NDArray[np.int64]]
    by_uncertainty: NDArray[np.int64]
    by_errors: NDArray[np.int64]

    @classmethod
    def of(cls, uncertainty: NDArray[np.float64], errors: NDArray[np.float64], image: NDArray[np.int64]) -> Self:
        first, second = (np.unique(values, return_inverse=True)[1] for values in (uncertainty, errors))
        by_uncertainty, by_errors = (np.argsort(-values, kind="stable") for values in (uncertainty, errors))
        return cls(uncertainty, errors, image, (first, second), by_uncertainty, by_errors)

    def rho(self, times: NDArray[np.int64]) -> float:
        """Spearman's, each image counting so many times."""
        weights = times[self.image]
        ranks = []
        for dense in self.ranks:
            counts = np.bincount(dense, weights)
            # Equal values share their mean rank.
            ranks.append((np.cumsum(counts) - (counts - 1) / 2)[dense])
        return _correlation(ranks[0], ranks[1], weights)


def covered(errors: NDArray[np.floating], radius: NDArray[np.floating], kinds: int = 1) -> dict[str, Any]:
    """Whether radii hold errors, both [kinds * B, 120] as in `trust`.

    Returns:
        ``coverage``, the share of the landmarks, every image counting alike, with its ``interval`` of 90% over
        resampled images; and ``mean_radius`` over the landmarks.
    """
    within = np.where(np.isfinite(errors), errors <= radius, np.nan)
    share, interval = by_image(np.nanmean(within, axis=1).reshape(kinds, -1).mean(axis=0))
    return {"coverage": share, "interval": interval, "mean_radius": float(radius[np.isfinite(errors)].mean())}


def trust_words(found: Mapping[str, Any]) -> str:
    """What `trust` found, in a line: unknown where it is None."""
    return ", ".join(f"{_TITLES[name]} {with_interval(found[name], found[f'{name}_interval'])}" for name in _TITLES)


_TITLES = {"r": "r", "rho": "rho", "ause": "AUSE", "image_rho": "rho of images"}


def coverage_words(found: Mapping[str, Any]) -> str:
    """What `covered` found, in a line."""
    return f"{with_interval(found['coverage'], found['interval'])} at {found['mean_radius']:.1f} px"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A measure and its interval with two decimals, or "unknown"."""
    if value is None or interval is None:
        return "unknown"
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def by_image(values: NDArray[np.floating]) -> tuple[float, list[float]]:
    """Mean of one value per image [B], and an interval of 90% over resampled images."""
    rng = np.random.Generator(np.random.Philox(0))
    again = values[rng.integers(0, len(values), (_RESAMPLINGS * 10, len(values)))].mean(axis=1)
    return float(values.mean()), [float(end) for end in np.quantile(again, _ENDS)]


def auc(usual: NDArray[np.floating], odd: NDArray[np.floating]) -> float:
    """Chance that an odd image's score is above a usual one's, ties counting half."""
    return float(_above(usual, odd).mean())


def auc_interval(usual: NDArray[np.floating], odd: NDArray[np.floating]) -> list[float]:
    """Interval of 90% of `auc` over resampled images of both kinds."""
    rng = np.random.Generator(np.random.Philox(0))
    above = _above(usual, odd)
    again = [
        above[np.ix_(*(rng.integers(0, count, count) for count in above.shape))].mean() for _ in range(_RESAMPLINGS)
    ]
    return [float(end) for end in np.quantile(again, _ENDS)]


def _above(usual: NDArray[np.floating], odd: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of each odd image and each usual one, whether the odd one's score is above: 0, 0.5 where they tie, 1."""
    return np.asarray(np.sign(odd[:, None] - usual) / 2 + 0.5, np.float64)


def _correlation(first: NDArray[Any], second: NDArray[Any], weights: NDArray[Any]) -> float:
    """Pearson's, weighted; NaN where one of them does not vary."""
    if any(np.ptp(values[weights > 0]) == 0 for values in (first, second)):
        # Of a mean that is rounded, what does not vary would differ by some last digit.
        return float("nan")
    first, second = (values - np.average(values, weights=weights) for values in (first, second))
    scale = float(np.sqrt((weights * np.square(first)).sum() * (weights * np.square(second)).sum()))
    return float((weights * first * second).sum() / scale)
