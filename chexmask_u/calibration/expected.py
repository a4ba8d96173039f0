"""The error that a landmark's spread lets expect: a gamma regression with a logarithmic link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import N_LANDMARKS

# How many landmarks of as many images a landmark's own rate, and a weight, is to count against before it is believed.
_NODE_PENALTY = 4.0
_WEIGHT_PENALTY = 10.0

# Errors below it, in pixels of the 1024 frame, are as good as none, and a logarithm would make much of them.
_LEAST_ERROR = 0.5

_STEPS = 100
_CONVERGED = 1e-8


@dataclass(frozen=True)
class Expected:
    """Expected error of each landmark in pixels of the 1024 frame: exp(rate of the landmark + weights * features).

    Attributes:
        rates: logarithm of the landmark's expected error where its features are `centre`, [120].
        weights, centre: of the features that `Seen.error_features` gives, [F].
    """

    rates: tuple[float, ...]
    weights: tuple[float, ...]
    centre: tuple[float, ...]

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels of the 1024 frame, float64 [B, 120], of features [B, 120, F]."""
        return np.exp(np.array(self.rates) + (features - np.array(self.centre)) @ np.array(self.weights))

    @classmethod
    def fit(cls, features: NDArray[np.float64], errors: NDArray[np.float64]) -> Self:
        """By maximum likelihood with a ridge, so that few images give each landmark little of a rate of its own.

        Args:
            features: [B, 120, F].
            errors: [B, 120], pixels of the 1024 frame; NaN where there is no annotation.
        """
        there = np.isfinite(errors)
        rows, nodes = np.nonzero(there)
        given, target = features[rows, nodes], np.maximum(errors[rows, nodes], _LEAST_ERROR)
        centre = given.mean(axis=0)
        # One column for all landmarks, one for each, one for each feature.
        design = np.concatenate([np.ones((len(rows), 1)), np.eye(N_LANDMARKS)[nodes], given - centre], axis=1)
        penalty = np.concatenate([[0.0], np.full(N_LANDMARKS, _NODE_PENALTY), np.full(given.shape[1], _WEIGHT_PENALTY)])
        curvature = design.T @ design + np.diag(penalty)
        found = np.zeros(design.shape[1])
        found[0] = np.log(target.mean())
        # Fisher scoring: with this link the curvature is the same in every step (McCullagh and Nelder, 1989, ch. 8).
        for _ in range(_STEPS):
            step = np.linalg.solve(curvature, design.T @ (target * np.exp(-design @ found) - 1) - penalty * found)
            found = found + step
            if np.abs(step).max() < _CONVERGED:
                break
        rates, weights = found[0] + found[1 : 1 + N_LANDMARKS], found[1 + N_LANDMARKS :]
        return cls(*(tuple(map(float, values)) for values in (rates, weights, centre)))
