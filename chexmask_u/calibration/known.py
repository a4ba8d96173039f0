"""How usual an image is among known radiographs, from its posterior and spread: a robust probabilistic PCA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

# Directions in which radiographs vary together; of 4 to 64 the fewest told odd images apart best, by little.
_COMPONENTS = 4

# Median absolute deviations to a standard deviation, of a normal distribution.
_TO_STD = 1.4826

# Features that hardly vary among the known, in a network that does not use them, must not decide.
_LEAST_STD = 0.02

# Standard deviations beyond which an image of those that are taken for known counts no more in the directions.
_REACH = 4.0

_FOLDS = 10

# Fewer cannot tell what is usual.
LEAST_IMAGES = 20


@dataclass(frozen=True)
class Known:
    """Known radiographs, as a distribution of `Seen.image_features`.

    Attributes:
        centre, scale: median and robust standard deviation of each feature, [F].
        components: directions of the scaled features with their standard deviation divided out, C times [F].
        rest: standard deviation of a scaled feature beside the components.
        distances: how far each known radiograph is from the others, sorted; of fits that left it out.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    components: tuple[tuple[float, ...], ...]
    rest: float
    distances: tuple[float, ...]

    @classmethod
    def fit(cls, features: NDArray[np.float64]) -> Self:
        """Of features [K, F] of at least `LEAST_IMAGES` radiographs.

        Raises:
            ValueError: if there are fewer.
        """
        if len(features) < LEAST_IMAGES:
            raise ValueError(f"to know what is usual takes {LEAST_IMAGES} radiographs, not {len(features)}")
        fold = np.arange(len(features)) % _FOLDS
        apart = [cls._of(features[fold != one]).distance(features[fold == one]) for one in range(_FOLDS)]
        return cls._of(features, tuple(float(value) for value in np.sort(np.concatenate(apart))))

    @classmethod
    def _of(cls, features: NDArray[np.float64], distances: tuple[float, ...] = ()) -> Self:
        centre = np.median(features, axis=0)
        scale = np.maximum(_TO_STD * np.median(np.abs(features - centre), axis=0), _LEAST_STD)
        scaled = ((features - centre) / scale).clip(-_REACH, _REACH)
        _, spread, ways = np.linalg.svd(scaled, full_matrices=False)
        std = spread / np.sqrt(len(features))
        rest = float(np.sqrt(np.square(std[_COMPONENTS:]).sum() / (features.shape[1] - _COMPONENTS)))
        components = ways[:_COMPONENTS] / np.maximum(std[:_COMPONENTS, None], rest)
        return cls(
            tuple(map(float, centre)),
            tuple(map(float, scale)),
            tuple(tuple(map(float, component)) for component in components),
            rest,
            distances,
        )

    def distance(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mahalanobis distance of images [B, F] from the known ones, float64 [B]."""
        scaled = (features - np.array(self.centre)) / np.array(self.scale)
        components = np.array(self.components)
        within = scaled @ components.T
        ways = components / np.linalg.norm(components, axis=1, keepdims=True)
        beside = scaled - scaled @ ways.T @ ways
        return np.sqrt(np.square(within).sum(axis=1) + np.square(beside).sum(axis=1) / self.rest**2)

    def score(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Percentile of images [B, F] among the known, float64 [B], 0 to 100.

        Beyond the farthest known one, which lies at K / (K + 1), it goes on towards 100 as the distance grows, so that
        what is farther away always has the higher score.
        """
        known, found = np.array(self.distances), self.distance(features)
        below = np.searchsorted(known, found) / (len(known) + 1)
        beyond = 1 - np.minimum(known[-1] / np.maximum(found, 1e-9), 1) / (len(known) + 1)
        return 100 * np.where(found > known[-1], beyond, below)
