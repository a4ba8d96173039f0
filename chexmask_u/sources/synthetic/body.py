"""Anatomy: control contours in a canonical unit square, x then y, and one smooth warp of that plane per person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import ORGANS

Floats = NDArray[np.float32]
Warp = Callable[[Floats], Floats]
"""From the canonical plane to one person's image in the unit square: float32 [M, 2] -> [M, 2]."""

# Borders that two organs share are listed once. Right is the patient's right: small x.
_RIGHT_APEX = (0.37, 0.083)
_RIGHT_TIP = (0.117, 0.846)
_RIGHT_CORNER = (0.394, 0.697)
_RIGHT_HEART_TOP = (0.421, 0.49)
_LEFT_APEX = (0.656, 0.082)
_LEFT_TIP = (0.891, 0.846)
_LEFT_CORNER = (0.744, 0.741)
_LEFT_HEART_TOP = (0.624, 0.459)
_KNOB_BELOW = (0.604, 0.332)
_KNOB_ABOVE = (0.561, 0.237)


def point(x: float, y: float) -> Floats:
    """One point or displacement, float32 [2]."""
    return np.array([x, y], np.float32)


def spline(*points: tuple[float, float], per_span: int = 16) -> Floats:
    """Catmull-Rom curve float32 [M, 2] through the points, its ends included."""
    p = np.array([points[0], *points, points[-1]], np.float64)
    t = np.linspace(0, 1, per_span, endpoint=False)[:, None]
    spans = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        spans.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*spans, p[-1:]]).astype(np.float32)


RIGHT_WALL = spline(
    _RIGHT_APEX, (0.29, 0.11), (0.222, 0.172), (0.178, 0.26), (0.155, 0.37), (0.142, 0.49), (0.125, 0.61),
    (0.109, 0.72), (0.108, 0.79), _RIGHT_TIP,
)  # fmt: skip
RIGHT_DOME = spline(_RIGHT_TIP, (0.15, 0.788), (0.204, 0.738), (0.28, 0.706), (0.345, 0.7), _RIGHT_CORNER)
RIGHT_HEART = spline(_RIGHT_CORNER, (0.389, 0.63), (0.396, 0.562), _RIGHT_HEART_TOP)
RIGHT_MEDIASTINUM = spline(
    _RIGHT_HEART_TOP, (0.429, 0.4), (0.446, 0.31), (0.454, 0.215), (0.444, 0.135), (0.411, 0.096), _RIGHT_APEX
)
_LEFT_WALL = spline(
    _LEFT_APEX, (0.735, 0.12), (0.802, 0.192), (0.836, 0.285), (0.855, 0.395), (0.867, 0.505), (0.879, 0.61),
    (0.892, 0.70), (0.898, 0.77), _LEFT_TIP,
)  # fmt: skip
LEFT_DOME = spline(_LEFT_TIP, (0.866, 0.807), (0.825, 0.768), (0.785, 0.751), _LEFT_CORNER)
LEFT_HEART = spline(_LEFT_CORNER, (0.755, 0.69), (0.741, 0.625), (0.697, 0.556), (0.652, 0.496), _LEFT_HEART_TOP)
LEFT_HILUM = spline(_LEFT_HEART_TOP, (0.611, 0.395), _KNOB_BELOW)
KNOB = spline(_KNOB_BELOW, (0.611, 0.3), (0.604, 0.268), (0.585, 0.249), _KNOB_ABOVE)
LEFT_MEDIASTINUM = spline(_KNOB_ABOVE, (0.56, 0.18), (0.57, 0.132), (0.603, 0.096), _LEFT_APEX)
_HEART_TOP = spline(_RIGHT_HEART_TOP, (0.458, 0.466), (0.535, 0.452), (0.59, 0.453), _LEFT_HEART_TOP)
HEART_BOTTOM = spline(_LEFT_CORNER, (0.69, 0.755), (0.61, 0.761), (0.52, 0.751), (0.45, 0.727), _RIGHT_CORNER)

# Each ring as the annotators count it: stretches between anatomical corners, each with evenly spaced nodes.
RINGS: dict[str, tuple[tuple[Floats, int], ...]] = {
    "right_lung": (
        (RIGHT_WALL, 21),
        (RIGHT_DOME, 8),
        (np.concatenate([RIGHT_HEART, RIGHT_MEDIASTINUM[1:]]), 15),
    ),
    "left_lung": (
        (_LEFT_WALL, 21),
        (LEFT_DOME, 6),
        (np.concatenate([LEFT_HEART, LEFT_HILUM[1:]]), 13),
        (KNOB, 4),
        (LEFT_MEDIASTINUM, 6),
    ),
    "heart": ((RIGHT_HEART, 5), (_HEART_TOP, 7), (LEFT_HEART[::-1], 6), (HEART_BOTTOM, 8)),
}

# How people differ: centre, reach and standard deviation of a local displacement, each x then y.
_BUMPS = np.array(
    [
        [(0.28, 0.72), (0.17, 0.15), (0.0, 0.033)],  # domes of the diaphragm
        [(0.81, 0.77), (0.14, 0.15), (0.0, 0.033)],
        [(0.117, 0.846), (0.07, 0.08), (0.01, 0.026)],  # costophrenic angles
        [(0.891, 0.846), (0.07, 0.08), (0.01, 0.026)],
        [(0.745, 0.68), (0.1, 0.13), (0.03, 0.014)],  # heart
        [(0.39, 0.6), (0.08, 0.13), (0.017, 0.01)],
        [(0.53, 0.455), (0.15, 0.09), (0.0, 0.02)],
        [(0.56, 0.76), (0.15, 0.07), (0.0, 0.013)],
        [(0.605, 0.28), (0.06, 0.06), (0.012, 0.013)],  # aortic knob
        [(0.37, 0.09), (0.12, 0.12), (0.014, 0.014)],  # apices
        [(0.65, 0.09), (0.12, 0.12), (0.014, 0.014)],
        [(0.44, 0.25), (0.07, 0.18), (0.013, 0.0)],  # mediastinum
        [(0.57, 0.2), (0.07, 0.14), (0.013, 0.0)],
        [(0.19, 0.27), (0.12, 0.18), (0.017, 0.0)],  # chest walls
        [(0.83, 0.27), (0.12, 0.18), (0.017, 0.0)],
        [(0.11, 0.7), (0.12, 0.2), (0.02, 0.0)],
        [(0.89, 0.7), (0.12, 0.2), (0.02, 0.0)],
    ],
    np.float32,
)
_CENTRE = np.array([0.505, 0.46], np.float32)
_MARGIN = 0.012


def person(rng: np.random.Generator) -> Warp:
    """A smooth map of the canonical plane to the unit square of one person's image."""
    centre, reach, spread = _BUMPS[:, 0], _BUMPS[:, 1], _BUMPS[:, 2]
    # Beyond about 2.2 standard deviations a bump can fold the plane over and so cross a contour with itself.
    push = (np.clip(rng.standard_normal(spread.shape), -2.2, 2.2) * spread).astype(np.float32)
    wave = rng.uniform(1.0, 3.2, (5, 2)).astype(np.float32) * rng.choice(point(-1, 1), (5, 2))
    phase = rng.uniform(0, 2 * np.pi, 5).astype(np.float32)
    swing = (rng.standard_normal((5, 2)) * 0.0035).astype(np.float32)

    scale = rng.uniform(0.74, 1.08) if rng.random() < 0.5 else rng.uniform(0.94, 1.1)
    stretch = np.exp(np.clip(rng.standard_normal(2), -2, 2) * (0.04, 0.075))
    angle = np.deg2rad(np.clip(rng.standard_normal(), -2.5, 2.5) * 2.5)
    shear = rng.standard_normal() * 0.02
    rotation = np.array([[np.cos(angle), -np.sin(angle) + shear], [np.sin(angle), np.cos(angle)]])
    matrix = (rotation * (scale * stretch)).T.astype(np.float32)
    shift = (rng.standard_normal(2) * (0.028, 0.055)).astype(np.float32)

    def local(points: Floats) -> Floats:  # [M, 2] of the canonical plane -> [M, 2] around the person's own centre
        distance = (points[:, None] - centre) / reach
        weight = np.exp(-0.5 * np.square(distance).sum(-1))
        moved = points + weight @ push + np.sin(2 * np.pi * (points @ wave.T) + phase) @ swing
        return np.asarray((moved - _CENTRE) @ matrix, np.float32)

    # The lungs stay in the image: shrink what is too large, then push back what sticks out.
    edge = local(np.concatenate([curve for ring in RINGS.values() for curve, _ in ring]))
    shrink = np.float32(min(1.0, (1 - 2 * _MARGIN) / np.ptp(edge, axis=0).max()))
    low, high = edge.min(0) * shrink, edge.max(0) * shrink
    offset = np.clip(_CENTRE + shift, _MARGIN - low, 1 - _MARGIN - high).astype(np.float32)
    return lambda points: local(points) * shrink + offset


def evenly(curve: NDArray[Any], count: int) -> NDArray[np.float64]:
    """The first `count` of `count` + 1 points spaced evenly along an open curve [m, 2]."""
    length = np.concatenate([[0.0], np.hypot(*np.diff(curve, axis=0).T).cumsum()])
    at = np.arange(count) * (length[-1] / count)
    return np.stack([np.interp(at, length, curve[:, axis]) for axis in (0, 1)], axis=1)


def landmarks(warp: Warp) -> Floats:
    """The 120 landmarks of a person, float32 [120, 2], unit square."""
    curves = [evenly(warp(curve), count) for organ in ORGANS for curve, count in RINGS[organ]]
    return np.concatenate(curves).astype(np.float32)
