"""The organs, their landmarks and the rings that join them: the only place that knows 44, 50 and 26.

Landmarks are always ordered right lung, left lung, heart ("right" is the patient's right, so the left of the image).
Each organ is one closed contour, so its graph is a ring; the decoder also works on a coarse graph with half the nodes.
"""

from __future__ import annotations

from itertools import accumulate

ORGANS: tuple[str, ...] = ("right_lung", "left_lung", "heart")

RING_SIZES: tuple[int, ...] = (44, 50, 26)
COARSE_RING_SIZES: tuple[int, ...] = tuple(size // 2 for size in RING_SIZES)

N_LANDMARKS: int = sum(RING_SIZES)
N_COARSE: int = sum(COARSE_RING_SIZES)

LATENT_SIZE: int = 64

# Side in pixels of the square that every image is prepared to, and that predictions are reported in.
FRAME: int = 1024


def _slices(sizes: tuple[int, ...]) -> dict[str, slice]:
    stops = list(accumulate(sizes))
    return {organ: slice(stop - size, stop) for organ, size, stop in zip(ORGANS, sizes, stops, strict=True)}


LANDMARKS: dict[str, slice] = _slices(RING_SIZES)
"""Slice of the 120 landmarks that belongs to each organ."""
