"""Lengths and areas of lungs and heart, each with an interval from the draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import LANDMARKS, ORGANS
from chexmask_u.images.spacing import Spacing

INTERVAL = 0.9
"""Share of the draws that lies in a measurement's interval, in their middle."""

_RATIO = "cardiothoracic_ratio"
_WIDTHS = ("thorax_width", *(f"{organ}_width" for organ in ORGANS))
_AREAS = tuple(f"{organ}_area" for organ in ORGANS)

NAMES = (
    _RATIO,
    *(f"{name}_px" for name in _WIDTHS),
    *(f"{name}_px2" for name in _AREAS),
    *(f"{name}_mm" for name in _WIDTHS),
    *(f"{name}_mm2" for name in _AREAS),
)
"""Every measurement there can be; those in millimetres are there where a spacing is known."""


@dataclass(frozen=True)
class Measurement:
    """A number measured on the mean contour, and what the draws say of it.

    Attributes:
        value: on the mean landmarks.
        low, high: quantiles of the draws that hold `INTERVAL` of them: how far the network agrees with itself, which
            may be less than its error. The widest of a shaky contour is wider than a steady one's, so that the value of
            a very unsure image may lie near `low`, or below.
        unit: "" of the ratio, "px", "px2", "mm" or "mm2".
    """

    value: float
    low: float
    high: float
    unit: str

    def __str__(self) -> str:
        digits = ",.0f" if self.unit else ".2f"
        unit = f" {self.unit}".rstrip().replace("2", "²")
        return f"{self.value:{digits}}{unit} ({self.low:{digits}} to {self.high:{digits}})"


def measure(landmarks: NDArray[Any], draws: NDArray[Any], spacing: Spacing | None = None) -> dict[str, Measurement]:
    """Measurements by their names, in the order of `NAMES`.

    `cardiothoracic_ratio` is the heart's width over the thorax's. A width is the horizontal extent of a contour; the
    thorax's is that of both lungs together. An area is what the contour encloses.

    Args:
        landmarks: [120, 2], x then y, original pixels.
        draws: [N, 120, 2], the same.
        spacing: of the original pixels; None leaves the millimetres out.
    """
    points = np.concatenate([landmarks[None], draws]).astype(np.float64)
    rings = [points[:, nodes] for nodes in LANDMARKS.values()]
    widths = dict(zip(_WIDTHS, map(_extent, [_lungs(points), *rings]), strict=True))
    areas = dict(zip(_AREAS, map(enclosed, rings), strict=True))
    found = {_RATIO: _summary(cardiothoracic_ratio(points), "")}
    scales = [("px", 1.0, 1.0)] + ([("mm", spacing.x, spacing.x * spacing.y)] if spacing else [])
    for unit, width, area in scales:
        found |= {f"{name}_{unit}": _summary(values * width, unit) for name, values in widths.items()}
        found |= {f"{name}_{unit}2": _summary(values * area, f"{unit}2") for name, values in areas.items()}
    return found


def cardiothoracic_ratio(landmarks: NDArray[np.float64]) -> Any:
    """The heart's width over the thorax's, [...], of landmarks [..., 120, 2], x then y, in pixels of any frame."""
    return _extent(landmarks[..., LANDMARKS["heart"], :]) / _extent(_lungs(landmarks))


def enclosed(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas [...] that closed contours [..., nodes, 2] enclose, as long as none crosses itself."""
    x, y = ring[..., 0], ring[..., 1]
    return np.asarray(np.abs((x * np.roll(y, -1, -1) - np.roll(x, -1, -1) * y).sum(-1)) / 2)


def _lungs(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Both lungs' landmarks [..., 94, 2] of all of them [..., 120, 2]."""
    return np.concatenate([landmarks[..., LANDMARKS[organ], :] for organ in ("right_lung", "left_lung")], axis=-2)


def _extent(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Horizontal extents [...] of points [..., nodes, 2], x then y."""
    return np.asarray(np.ptp(points[..., 0], axis=-1))


def _summary(values: NDArray[np.float64], unit: str) -> Measurement:
    """A measurement of values [1 + N]: the mean contour's comes first, then the draws'."""
    low, high = np.quantile(values[1:], ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2))
    return Measurement(float(values[0]), float(low), float(high), unit)
