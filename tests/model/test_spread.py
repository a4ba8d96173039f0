"""Across and along a contour: against draws whose normal is known."""

from __future__ import annotations

import numpy as np

from chexmask_u.anatomy import LANDMARKS
from chexmask_u.model.spread import across_and_along, tangents


def circles() -> np.ndarray:
    """[120, 2]: each organ a circle."""
    points = np.empty((120, 2))
    for nodes in LANDMARKS.values():
        angle = np.linspace(0, 2 * np.pi, nodes.stop - nodes.start, endpoint=False)
        points[nodes] = 500 + 100 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points


def test_draws_that_move_across_or_along_a_circle_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    mean = circles()
    outwards = (mean - 500) / 100
    sideways = np.stack([-outwards[:, 1], outwards[:, 0]], axis=1)
    draws = mean + rng.normal(0, 7, (4000, 120, 1)) * outwards + rng.normal(0, 2, (4000, 120, 1)) * sideways
    offset = draws - draws.mean(0)
    across, along = across_and_along(mean, draws.std(0), offset.prod(axis=2).mean(0))
    np.testing.assert_allclose(across, 7, rtol=0.05)
    np.testing.assert_allclose(along, 2, rtol=0.05)
    np.testing.assert_allclose(across**2 + along**2, np.square(draws.std(0)).sum(1), rtol=1e-9)


def test_a_contour_that_fell_into_one_point_still_has_a_spread() -> None:
    std = np.full((120, 2), [3.0, 4.0])
    assert np.isfinite(tangents(np.zeros((120, 2)))).all()
    across, along = across_and_along(np.zeros((120, 2)), std, np.zeros(120))
    np.testing.assert_allclose(np.hypot(across, along), 5)
