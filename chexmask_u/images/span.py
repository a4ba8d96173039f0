"""Which values of an image become black and white: those that leave contrast to all but a few stray pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Pixels at each end that are not looked at first: more than a detector has hot or dead ones, a whole line included.
_STRAY = 1 / 1000


def robust(values: NDArray[Any], counts: NDArray[Any]) -> tuple[Any, Any]:
    """The lowest and the highest value, but for strays.

    A value is a stray if it lies further from the middle 99.8% of the pixels than those are wide. Without strays, and
    for images of less than 1000 pixels, these are the minimum and the maximum.

    Args:
        values: int64 [V]: each value that occurs, in any order.
        counts: [V]: how many pixels have it, at least 1.

    Returns:
        Two of `values`.
    """
    order = np.argsort(values)
    values = values[order]
    below = np.cumsum(counts[order], dtype=np.float64)
    spared = np.floor(below[-1] * _STRAY)
    low = values[np.searchsorted(below, spared, side="right")]
    high = values[np.searchsorted(below, below[-1] - spared)]
    width = high - low
    if not width:
        # Almost all pixels are alike: what differs is the picture.
        return values[0], values[-1]
    return values[values >= low - width][0], values[values <= high + width][-1]
