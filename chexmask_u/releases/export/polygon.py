"""What of a closed contour lies in an image: its ring cut at the border, its area and its box.

A contour is float64 [nodes, 2], x then y, in pixels, closed from its last node to its first; `size` is the image's
width and height. It may leave the image, come back elsewhere, and cross itself: a point is inside where a ray from it
meets the contour an odd number of times, as OpenCV and pycocotools have it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def cut(contour: Points, size: tuple[int, int]) -> Points:
    """The contour within the image, as one ring [nodes, 2]; parts of it are joined along the border."""
    for axis, limit, sign in ((0, 0, 1), (0, size[0], -1), (1, 0, 1), (1, size[1], -1)):
        following = np.roll(contour, -1, axis=0)
        here, there = (sign * (points[:, axis] - limit) for points in (contour, following))
        crosses = (here < 0) != (there < 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(crosses, here / (here - there), 0.0)
        at_border = contour + share[:, None] * (following - contour)
        at_border[:, axis] = limit
        # Each node that is kept, and behind it the point where the edge that begins there meets the border.
        both = np.stack([contour, at_border], axis=1).reshape(-1, 2)
        contour = both[np.stack([here >= 0, crosses], axis=1).ravel()]
    return contour[(contour != np.roll(contour, 1, axis=0)).any(axis=1)]


def area(contour: Points, size: tuple[int, int]) -> float:
    """Square pixels of the image that the contour encloses."""
    start, end = contour, np.roll(contour, -1, axis=0)
    breaks = np.concatenate([start[:, 0], _meetings(start, end), _at_heights(start, end, (0, size[1])), [0, size[0]]])
    breaks = np.unique(np.clip(breaks, 0, size[0]))
    # Between two breaks no edge begins, ends or meets another, so lengths along y change linearly.
    middle, width = (breaks[1:] + breaks[:-1]) / 2, np.diff(breaks)
    spans = (start[:, 0] < middle[:, None]) != (end[:, 0] < middle[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (end[:, 1] - start[:, 1]) / (end[:, 0] - start[:, 0])
        y = np.clip(start[:, 1] + (middle[:, None] - start[:, 0]) * slope, 0, size[1])
    y = np.sort(np.where(spans, y, np.inf), axis=1)
    y[np.isinf(y)] = 0
    # Edges over a column come in pairs: into the contour, and out of it.
    pairs = y[:, : y.shape[1] // 2 * 2].reshape(len(middle), -1, 2)
    return float((np.diff(pairs).sum(axis=(1, 2)) * width).sum())


def box(contour: Points, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what the contour encloses of the image; zeros where that is nothing."""
    start, end = contour, np.roll(contour, -1, axis=0)
    step = end - start
    # The share of each edge that lies in the image is [enter, leave].
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.stack([-start / step, (np.array(size) - start) / step])
    outside = ((step == 0) & ((start <= 0) | (start >= size))).any(axis=1)
    shares = np.where(step == 0, np.array([-np.inf, np.inf])[:, None, None], shares)
    enter = np.maximum(shares.min(axis=0).max(axis=1), 0)
    leave = np.minimum(shares.max(axis=0).min(axis=1), 1)
    within = (enter < leave) & ~outside
    ends = [(start + share[:, None] * step)[within] for share in (enter, leave)]
    corners = [corner for corner in ((0, 0), (size[0], 0), (0, size[1]), size) if _encloses(start, end, corner)]
    points = np.concatenate([*ends, np.array(corners, float).reshape(-1, 2)])
    if not len(points):
        return 0.0, 0.0, 0.0, 0.0
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _encloses(start: Points, end: Points, point: tuple[int, int]) -> bool:
    """Whether edges from `start` to `end` [edges, 2] of a closed contour go around a point."""
    x, y = point
    spans = (start[:, 0] <= x) != (end[:, 0] <= x)
    start, end = start[spans], end[spans]
    at = start[:, 1] + (x - start[:, 0]) * (end[:, 1] - start[:, 1]) / (end[:, 0] - start[:, 0])
    return bool((at < y).sum() % 2)


def _meetings(start: Points, end: Points) -> NDArray[np.float64]:
    """Where along x edges [edges, 2] cross each other."""
    step = end - start
    one, other = np.triu_indices(len(start), 2)
    between = start[other] - start[one]
    turn = step[one, 0] * step[other, 1] - step[one, 1] * step[other, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        along_one = (between[:, 0] * step[other, 1] - between[:, 1] * step[other, 0]) / turn
        along_other = (between[:, 0] * step[one, 1] - between[:, 1] * step[one, 0]) / turn
    meet = (along_one > 0) & (along_one < 1) & (along_other > 0) & (along_other < 1)
    crossing: NDArray[np.float64] = start[one[meet], 0] + along_one[meet] * step[one[meet], 0]
    return crossing


def _at_heights(start: Points, end: Points, heights: tuple[int, int]) -> NDArray[np.float64]:
    """Where along x edges [edges, 2] cross some heights."""
    found = []
    for height in heights:
        here, there = start[:, 1] - height, end[:, 1] - height
        crosses = (here < 0) != (there < 0)
        share = here[crosses] / (here[crosses] - there[crosses])
        found.append(start[crosses, 0] + share * (end[crosses, 0] - start[crosses, 0]))
    return np.concatenate(found)
