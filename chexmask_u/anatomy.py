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

RARE: float = 3.0
"""Median distances of a landmark's draws from their middle: a rare draw lies farther, of a round Gaussian 1 in 500."""


def _slices(sizes: tuple[int, ...]) -> dict[str, slice]:
    stops = list(accumulate(sizes))
    return {organ: slice(stop - size, stop) for organ, size, stop in zip(ORGANS, sizes, stops, strict=True)}


LANDMARKS: dict[str, slice] = _slices(RING_SIZES)
"""Slice of the 120 landmarks that belongs to each organ."""

# First node and the one after the last, counted along the organ's ring, which an apex spans the end of. Found on the
# 865 annotated shapes: the costophrenic angle is each lung's lowest node (21 in 99 of 100) and its neighbours, the apex
# is what lies in the top tenth of the lung's height in most shapes, and lung and heart share the nodes whose median
# distance to the other contour is below 20 pixels of the 1024 frame, which the corners on the diaphragm end.
_REGIONS: dict[str, dict[str, tuple[int, int]]] = {
    "right_lung": {
        "apex": (42, 4),
        "lateral": (4, 20),
        "costophrenic_angle": (20, 23),
        "diaphragm": (23, 29),
        "heart_border": (29, 35),
        "mediastinum": (35, 42),
    },
    "left_lung": {
        "apex": (47, 4),
        "lateral": (4, 20),
        "costophrenic_angle": (20, 23),
        "diaphragm": (23, 27),
        "heart_border": (27, 37),
        "mediastinum": (37, 47),
    },
    "heart": {
        "right_border": (0, 6),
        "upper_border": (6, 12),
        "left_border": (12, 19),
        "lower_border": (19, 26),
    },
}


def _region(organ: str, first: int, stop: int) -> tuple[int, ...]:
    size = RING_SIZES[ORGANS.index(organ)]
    return tuple(LANDMARKS[organ].start + node % size for node in range(first, stop if stop > first else stop + size))


REGIONS: dict[str, tuple[int, ...]] = {
    f"{organ}.{region}": _region(organ, *nodes)
    for organ, regions in _REGIONS.items()
    for region, nodes in regions.items()
}
"""Landmarks of each named stretch of a contour, in the contour's order; every landmark belongs to exactly one."""
