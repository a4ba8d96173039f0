"""What an image shows at each landmark: whether the contour lies on an edge, and how far off the strongest one is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, N_LANDMARKS
from chexmask_u.model.spread import tangents

# How far along the contour's normal an edge is looked for, to either side, and how far apart grey values are taken.
_REACH = 40
_STEP = 2

# A gradient is the mean of so many grey values beyond a place less that of as many before it.
_BESIDE = 2

# Grey values are means over so many places along the contour, so far apart, so that ribs and noise count for less.
_ALONG = 5
_ALONG_STEP = 3

# Contrasts below it, in grey levels, are as good as none.
_LEAST_CONTRAST = 1.0

# Images at once: their grey values are some 3 MB each.
_IMAGES = 8


def edge_features(images: NDArray[np.uint8], landmarks: NDArray[np.floating]) -> NDArray[np.float64]:
    """Features of the image along the contour's normal at each landmark.

    Args:
        images: uint8 [B, 1024, 1024].
        landmarks: [B, 120, 2], x then y, pixels of the 1024 frame; beyond the image its border goes on.

    Returns:
        float64 [B, 120, 3]: the gradient at the landmark over the contrast; the distance to the strongest gradient
        within 40 pixels, pixels of the 1024 frame; and the logarithm of the contrast, the standard deviation of the
        grey values within 40 pixels.
    """
    out = _REACH + _BESIDE * _STEP
    offsets = np.arange(-out, out + 1, _STEP)
    inner = slice(_BESIDE, len(offsets) - _BESIDE)
    found = np.empty((len(images), N_LANDMARKS, 3))
    for start in range(0, len(images), _IMAGES):
        rows = slice(start, start + _IMAGES)
        grey = _profiles(images[rows], np.asarray(landmarks[rows], np.float64), offsets)
        sums = np.concatenate([np.zeros((*grey.shape[:2], 1)), grey.cumsum(axis=-1)], axis=-1)
        place = np.arange(len(offsets))[inner]
        beyond = sums[..., place + 1 + _BESIDE] - sums[..., place + 1]
        before = sums[..., place] - sums[..., place - _BESIDE]
        gradient = np.abs(beyond - before) / _BESIDE
        contrast = grey[..., inner].std(axis=-1) + _LEAST_CONTRAST
        found[rows] = np.stack(
            [
                gradient[..., len(place) // 2] / contrast,
                np.abs(offsets[inner])[gradient.argmax(axis=-1)],
                np.log(contrast),
            ],
            axis=-1,
        )
    return found


def _profiles(
    images: NDArray[np.uint8], landmarks: NDArray[np.float64], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Grey values [B, 120, K] at offsets [K] along the normals, each a mean along the contour."""
    along = tangents(landmarks)[:, :, None, None]
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    beside = _ALONG_STEP * (np.arange(_ALONG) - _ALONG // 2)
    places = landmarks[:, :, None, None] + across * offsets[:, None, None] + along * beside[:, None]
    # Landmarks are measured from the image's corner, pixels from the middle of the first one.
    x, y = np.moveaxis((places - 0.5).clip(0, FRAME - 1), -1, 0)
    left, top = (np.minimum(each.astype(np.int64), FRAME - 2) for each in (x, y))
    image = np.arange(len(images))[:, None, None, None]
    right, down = x - left, y - top
    upper, lower = (
        images[image, row, left] * (1 - right) + images[image, row, left + 1] * right for row in (top, top + 1)
    )
    return np.asarray((upper * (1 - down) + lower * down).mean(axis=-1), np.float64)
