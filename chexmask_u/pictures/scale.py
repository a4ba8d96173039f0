"""The colours of all pictures: of a number of pixels in the 1024 frame, and of each organ's outline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexmask_u.anatomy import FRAME
from chexmask_u.record import RADIUS_COVERAGE

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

LIMITS = (2.0, 100.0)
"""Pixels of the 1024 frame where the logarithmic colours begin and end, in every picture, so that any two compare."""

OUTLINES = {"right_lung": "#56b4e9", "left_lung": "#e69f00", "heart": "#ff8ac4"}
"""Colours of the contours, which colour-blind people tell apart too (after Okabe and Ito)."""

BACKGROUND = "#101214"
"""Of what is drawn without an image, so that every colour stands out."""

# Bone and diaphragm are near white: so much of an image's brightness is left that every colour stands out from them.
BRIGHTNESS = 0.72

Shown = Literal["radius", "std", "movement"]
"""What the pixels of a landmark are."""

WORDS: dict[Shown, str] = {
    "radius": f"{RADIUS_COVERAGE:.0%} radius of a landmark",
    "std": "std of a landmark's draws",
    "movement": "movement of a landmark",
}
UNIT = f"pixels of the {FRAME} frame"

# The darkest fifth of viridis would vanish in a radiograph.
_DARKEST = 0.2


def pixel_scale(limits: tuple[float, float] = LIMITS) -> ScalarMappable:
    """Colours of pixels of the 1024 frame, between two limits."""
    # Only who draws waits for it.
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    colours = LinearSegmentedColormap.from_list("pixels", colormaps["viridis"](np.linspace(_DARKEST, 1, 256)))
    return ScalarMappable(LogNorm(*limits, clip=True), colours)


def colours(pixels: ArrayLike, limits: tuple[float, float] = LIMITS) -> NDArray[np.float64]:
    """Colours of pixels [N] of the 1024 frame: red, green, blue and alpha, [N, 4]; NaN is as much as infinity."""
    # A logarithm has none for the 0 of a single draw.
    known = np.nan_to_num(np.asarray(pixels, np.float64), nan=limits[1]).clip(*limits)
    return np.asarray(pixel_scale(limits).to_rgba(known))


def hexes(pixels: ArrayLike) -> list[str]:
    """The same as "#rrggbb"."""
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colours(pixels)]


def gradient(steps: int = 16) -> list[str]:
    """Colours at equal distances along the scale."""
    return hexes(np.geomspace(*LIMITS, steps + 1))


def tick_labels() -> list[tuple[str, float]]:
    """Labels of the scale's ticks, and their places along it from 0 to 1; the ends stand for all beyond."""
    ticks = ticks_between(LIMITS)
    labels = [f"{tick:g}" for tick in ticks]
    labels[0], labels[-1] = f"≤ {labels[0]}", f"≥ {labels[-1]}"
    places = np.log(np.array(ticks) / LIMITS[0]) / np.log(LIMITS[1] / LIMITS[0])
    return list(zip(labels, map(float, places), strict=True))


def ticks_between(limits: tuple[float, float]) -> list[float]:
    """The 1, 2 and 5 of every decade between two values; the decades alone where these would be too many."""
    low, high = limits
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    digits = (1, 2, 5) if high / low < 10**4 else (1,)
    values = [digit * 10.0**decade for decade in decades for digit in digits]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]
