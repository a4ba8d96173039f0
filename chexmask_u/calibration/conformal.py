"""Split-conformal quantiles of landmarks' errors, in which images count, not landmarks.

Landmarks of one image err together, so that only images can be taken for exchangeable. Each image gets the same weight,
shared among its landmarks, and one more image of which nothing is known gets infinity (Lee, Barber and Willett,
"Distribution-free inference with hierarchical data", 2023; Dunn, Wasserman and Ramdas, 2018; for the plain form
Angelopoulos and Bates, "A gentle introduction to conformal prediction", 2021; for landmarks Jonkers et al., 2025). A
landmark drawn at random from a further image then lies within its radius with at least the probability that was asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import NDArray

from chexmask_u.errors import InputError

# Quantiles that are kept: finer ones than a thousand landmarks of a hundred images could tell.
_LEVELS = 1000


def check_coverage(coverage: float) -> float:
    """Raise InputError unless it lies in (0, 1), which NaN does not; TypeError if it is no number."""
    if not isinstance(coverage, Real):
        raise TypeError(f"coverage must be a number between 0 and 1, not {coverage!r}")
    if not 0 < coverage < 1:
        raise InputError(f"coverage must lie between 0 and 1, not {coverage}; 0.9 is nine landmarks of ten")
    return coverage


def images_needed(coverage: float) -> int:
    """How many images a coverage takes at least: with fewer, the further image's infinity is part of the quantile."""
    # Rounded first, since 0.9 / (1 - 0.9) is a little more than 9.
    return math.ceil(round(check_coverage(coverage) / (1 - coverage), 9))


@dataclass(frozen=True)
class Scores:
    """Error over expected error, as a distribution in which images weigh alike.

    Attributes:
        images: how many it is of.
        quantiles: at 1, 2 ... 1000 thousandths of the weight; each is the smallest ratio that so much lies at or below.
    """

    images: int
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, ratios: NDArray[np.float64]) -> Self:
        """Of ratios [K, 120], NaN where there is no annotation; every image has some."""
        there = np.isfinite(ratios)
        weight = np.broadcast_to(1 / (len(ratios) * there.sum(axis=1, keepdims=True)), ratios.shape)[there]
        order = np.argsort(ratios[there])
        below = np.cumsum(weight[order])
        # Rounding must not push the last level past the last ratio.
        at = np.searchsorted(below, np.arange(1, _LEVELS + 1) / _LEVELS - 1e-9).clip(max=len(below) - 1)
        return cls(len(ratios), tuple(float(value) for value in ratios[there][order][at]))

    def at(self, coverage: float) -> float:
        """How many times the expected error a radius must be.

        Raises:
            InputError: if the coverage is none, or takes more images than there are.
        """
        needed = images_needed(coverage)
        if self.images < needed:
            raise InputError(
                f"a coverage of {coverage:g} takes at least {needed} annotated images, and the calibration has"
                f" {self.images}; ask for less than {self.images / (self.images + 1):.3f}, or calibrate on more"
            )
        level = coverage * (self.images + 1) / self.images
        return self.quantiles[min(math.ceil(round(level * _LEVELS, 6)), _LEVELS) - 1]

    def scaled(self, factor: float) -> Self:
        """The same with all ratios multiplied."""
        return type(self)(self.images, tuple(factor * value for value in self.quantiles))
