"""How usual an image is among known radiographs, from its posterior and spread: robust probabilistic PCAs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import LATENT_SIZE
from chexmask_u.calibration.seen import COARSE_FEATURES, IMAGE_FEATURES

# The posterior's mean, its sigma, and the spread of the lungs' halves and the heart: where they begin in
# `Seen.image_features`, how many they are, in how many directions radiographs vary together, and their weight. Chosen
# on altered JSRT radiographs that the bundled weights learnt from: one distance over all features let half hidden
# images pass, and so did more directions, or the spread of each region of a contour.
_PARTS = (
    (0, LATENT_SIZE, 4, 0.25),
    (LATENT_SIZE, LATENT_SIZE, 4, 0.25),
    (IMAGE_FEATURES - COARSE_FEATURES, COARSE_FEATURES, 1, 0.5),
)

# Median absolute deviations to a standard deviation, of a normal distribution.
_TO_STD = 1.4826

# Features that hardly vary among the known, in a network that does not use them, must not decide.
_LEAST_STD = 0.02

# Keeps logarithms and quotients finite.
_LEAST_DISTANCE = 1e-9

# Standard deviations beyond which an image of those that are taken for known counts no more in the directions.
_REACH = 4.0

_FOLDS = 10

# Fewer cannot tell what is usual.
LEAST_IMAGES = 20


@dataclass(frozen=True)
class Part:
    """Some features of known radiographs, as a distribution.

    Attributes:
        centre, scale: median and robust standard deviation of each feature, [F].
        components: directions of the scaled features with their standard deviation divided out, C times [F].
        rest: standard deviation of a scaled feature beside the components.
        weight: in the distance, of all parts together 1.
        start: where they begin in the features.
        usual: median distance of a known radiograph, of fits that left it out.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    components: tuple[tuple[float, ...], ...]
    rest: float
    weight: float = 1.0
    start: int = 0
    usual: float = 0.0

    @classmethod
    def fit(cls, features: NDArray[np.float64], start: int, size: int, directions: int, weight: float) -> Self:
        """Of `size` of the features of K radiographs [K, all]."""
        features = features[:, start : start + size]
        centre = np.median(features, axis=0)
        scale = np.maximum(_TO_STD * np.median(np.abs(features - centre), axis=0), _LEAST_STD)
        scaled = ((features - centre) / scale).clip(-_REACH, _REACH)
        _, spread, ways = np.linalg.svd(scaled, full_matrices=False)
        std = spread / np.sqrt(len(features))
        rest = float(np.sqrt(np.square(std[directions:]).sum() / (features.shape[1] - directions)))
        components = ways[:directions] / np.maximum(std[:directions, None], rest)
        return cls(
            tuple(map(float, centre)),
            tuple(map(float, scale)),
            tuple(tuple(map(float, component)) for component in components),
            rest,
            weight,
            start,
        )

    def distance(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mahalanobis distance of images [B, all] from the known ones, float64 [B]."""
        features = features[:, self.start : self.start + len(self.centre)]
        scaled = (features - np.array(self.centre)) / np.array(self.scale)
        components = np.array(self.components)
        within = scaled @ components.T
        ways = components / np.linalg.norm(components, axis=1, keepdims=True)
        beside = scaled - scaled @ ways.T @ ways
        return np.sqrt(np.square(within).sum(axis=1) + np.square(beside).sum(axis=1) / self.rest**2)


@dataclass(frozen=True)
class Known:
    """Known radiographs, as a distribution of `Seen.image_features`.

    Attributes:
        parts: of the features.
        distances: how far each known radiograph is from the others, sorted; of fits that left it out.
    """

    parts: tuple[Part, ...]
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
        apart = np.empty((len(features), len(_PARTS)))
        for one in range(_FOLDS):
            without = [Part.fit(features[fold != one], *part) for part in _PARTS]
            apart[fold == one] = np.stack([part.distance(features[fold == one]) for part in without], axis=1)
        usual = np.median(apart, axis=0)
        parts = tuple(
            replace(Part.fit(features, *part), usual=float(value)) for part, value in zip(_PARTS, usual, strict=True)
        )
        return cls(parts, tuple(float(value) for value in np.sort(_together(parts, apart.T))))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of what calibration.json holds; of format 1 before there were parts, all features are one."""
        parts = content.get("parts") or [{name: content[name] for name in ("centre", "scale", "components", "rest")}]
        return cls(
            tuple(Part(**{name: _tuples(value) for name, value in part.items()}) for part in parts),
            tuple(content["distances"]),
        )

    def distance(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance of images [B, F] from the known ones, float64 [B]: the weighted geometric mean of the parts'.

        A part that is more usual than most makes up for no other.
        """
        return _together(self.parts, [part.distance(features) for part in self.parts])

    def score(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Percentile of images [B, F] among the known, float64 [B], 0 to 100.

        Beyond the farthest known one, which lies at K / (K + 1), it goes on towards 100 as the distance grows, so that
        what is farther away always has the higher score.
        """
        known, found = np.array(self.distances), self.distance(features)
        below = np.searchsorted(known, found) / (len(known) + 1)
        beyond = 1 - np.minimum(known[-1] / np.maximum(found, _LEAST_DISTANCE), 1) / (len(known) + 1)
        return 100 * np.where(found > known[-1], beyond, below)


def _together(parts: Sequence[Part], distances: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    logs = [
        part.weight * np.log(np.maximum(found, max(part.usual, _LEAST_DISTANCE)))
        for part, found in zip(parts, distances, strict=True)
    ]
    return np.asarray(np.exp(np.sum(logs, axis=0)), np.float64)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
