"""Which values of an image become black and white: those that leave contrast to all but what is no part of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The share of the pixels at each end that is not looked at first, and how many widths of the others tell a stray. A
# detector has fewer hot or dead pixels than the first, a whole line included. The second are burned-in letters and
# markers; of 246 radiographs none has a pixel at more than 1.3 widths there.
_STRAYS = ((1 / 1000, 1), (1 / 50, 3))


def robust(values: NDArray[Any], counts: NDArray[Any]) -> tuple[Any, Any]:
    """The lowest and the highest value, but for strays.

    A value is a stray if it lies further from the middle 99.8% of the pixels than those are wide; or further from the
    middle 96%, where some lie at more than three times their width. Without strays, and for images of less than 50
    pixels, these are the minimum and the maximum.

    Args:
        values: int64 [V]: each value that occurs, in any order.
        counts: [V]: how many pixels have it, at least 1.

    Returns:
        Two of `values`.
    """
    order = np.argsort(values)
    values = values[order]
    below = np.cumsum(counts[order], dtype=np.float64)
    kept = np.ones(len(values), bool)
    for share, widths in _STRAYS:
        spared = np.floor(below[-1] * share)
        low = values[np.searchsorted(below, spared, side="right")]
        high = values[np.searchsorted(below, below[-1] - spared)]
        width = high - low
        # Where almost all pixels are alike, what differs is the picture.
        if width and low - values[0] > widths * width:
            kept &= values >= low - width
        if width and values[-1] - high > widths * width:
            # Between letters and the picture lie the letters' soft edges.
            kept &= values <= high + width
    return values[kept][0], values[kept][-1]
