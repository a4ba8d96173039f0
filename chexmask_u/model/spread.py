"""Spread of the draws across and along the contour, from their variances and covariance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexmask_u.anatomy import LANDMARKS, N_LANDMARKS


def tangents(landmarks: ArrayLike) -> NDArray[np.float64]:
    """Unit tangents of the organs' contours at their landmarks: from each one's neighbour before to that behind.

    Args:
        landmarks: [..., 120, 2], x then y.

    Returns:
        float64 [..., 120, 2]; (1, 0) where both neighbours lie in one place.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape[-2:] != (N_LANDMARKS, 2):
        raise ValueError(f"landmarks must be [..., {N_LANDMARKS}, 2], not {list(points.shape)}")
    step = np.empty_like(points)
    for nodes in LANDMARKS.values():
        ring = points[..., nodes, :]
        step[..., nodes, :] = np.roll(ring, -1, axis=-2) - np.roll(ring, 1, axis=-2)
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return np.where(length > 0, step / np.where(length > 0, length, 1), [1.0, 0.0])


def across_and_along(
    mean: ArrayLike, std: ArrayLike, covariance: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standard deviation of each landmark's draws across and along the mean contour.

    With the unit tangent (tx, ty) and normal (-ty, tx), variances sx², sy² and covariance c:
    along² = tx² sx² + ty² sy² + 2 tx ty c, and across² = ty² sx² + tx² sy² - 2 tx ty c.

    Args:
        mean, std: [..., 120, 2], x then y, pixels.
        covariance: [..., 120] of x and y, pixels².

    Returns:
        Across and along, float64 [..., 120], in the same pixels.
    """
    x, y = np.moveaxis(np.square(np.asarray(std, np.float64)), -1, 0)
    tx, ty = np.moveaxis(tangents(mean), -1, 0)
    mixed = 2 * tx * ty * np.asarray(covariance, np.float64)
    # Rounding may bring a variance of nothing below zero.
    across, along = (
        np.sqrt(np.maximum(each, 0)) for each in (ty**2 * x + tx**2 * y - mixed, tx**2 * x + ty**2 * y + mixed)
    )
    return across, along
