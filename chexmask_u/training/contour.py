"""Mask of an organ -> the landmarks of its contour, started, turned and spaced as the annotators did."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import LANDMARKS
from chexmask_u.sources.synthetic.body import evenly


@dataclass(frozen=True)
class Corner:
    """A corner of an organ: the contour point that lies farthest in `direction`, x then y with y down.

    `nodes` landmarks follow at equal distances along the contour, the corner itself being the first. Only points in the
    part of the organ's height from `below` on, counted from its top, are looked at.
    """

    direction: tuple[float, float]
    nodes: int
    below: float = 0.0


# Counts and directions were read off the landmarks of 865 radiographs (JSRT, Montgomery, Shenzhen, PadChest): of their
# nodes, the one at which the stretch begins lies farthest in that direction for 98, 100 and 99% (right lung), 82, 100
# and 87% (left lung), and 98, 81, 72 and 85% (heart) of the shapes, and mostly its neighbour for the others.
_CORNERS: dict[str, tuple[Corner, ...]] = {
    # Apex, costophrenic angle, cardiophrenic angle; down the outer wall first.
    "right_lung": (Corner((0, -1), 21), Corner((-1, 1), 8), Corner((1, 1), 15)),
    "left_lung": (Corner((0, -1), 21), Corner((1, 1), 6), Corner((-1.5, 1), 23, below=0.7)),
    # Lower right, upper right, upper left and lower left end (of the patient).
    "heart": (Corner((-1.5, 1), 5), Corner((-1.5, -1), 7), Corner((0.7, -1), 6), Corner((1, 1), 8)),
}

# By how much of a ring's extent in the first corner's direction its first node may miss the corner: in the same 865
# radiographs by 0.014 at most, and by more from two or three nodes on.
_START_SLACK = 0.05

# Whether the landmarks run clockwise in the image as it is shown.
_CLOCKWISE = {"right_lung": False, "left_lung": True, "heart": True}


def mask_landmarks(mask: NDArray[np.uint8], organ: str) -> NDArray[np.float32]:
    """Landmarks of one organ from its mask.

    The contour is that of the largest connected part, holes ignored. It is cut at the organ's corners (`_CORNERS`), and
    each stretch gets its share of the landmarks at equal distances. The annotators' nodes lie along the same contours,
    but not at equal distances: of 200 JSRT radiographs theirs differ by a mean square of 242 px² of the 1024 frame.

    Args:
        mask: uint8 [H, W]; more than half of its largest value inside the organ, as lossy compression or a change of
            size leaves it too.
        organ: one of `anatomy.ORGANS`.

    Returns:
        float32 [n, 2], x then y, in pixels of the mask as `organ_mask` takes them, n being the organ's landmarks.

    Raises:
        ValueError: if the mask is empty, too small for corners to be told apart, or inside along most of its border.
    """
    inside = mask > mask.max() / 2
    if np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).mean() > 0.5:
        raise ValueError(
            f"the mask of the {organ} has most of the image's border inside: inside and outside exchanged?"
        )
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        raise ValueError(f"the mask of the {organ} is empty")
    ring = max(contours, key=cv2.contourArea)[:, 0].astype(np.float64)
    if is_clockwise(ring) != _CLOCKWISE[organ]:
        ring = ring[::-1]
    starts = _starts(ring, organ)
    ring, starts = np.roll(ring, -starts[0], axis=0), [start - starts[0] for start in starts]
    ends = [*starts[1:], len(ring)]
    closed = np.concatenate([ring, ring[:1]])
    stretches = [
        evenly(closed[start : end + 1], corner.nodes)
        for start, end, corner in zip(starts, ends, _CORNERS[organ], strict=True)
    ]
    return np.concatenate(stretches).astype(np.float32)


def _starts(ring: NDArray[np.float64], organ: str) -> list[int]:
    """Indices of the organ's corners on a contour [n, 2], in order; those beyond n count on from the first point."""
    top, height = ring[:, 1].min(), np.ptp(ring[:, 1])
    first, *others = _CORNERS[organ]
    starts = [int((ring @ first.direction).argmax())]
    # Corners side by side would put many landmarks in one place.
    apart = max(1, len(ring) // 25)
    for corner in others:
        after = np.arange(starts[-1] + apart, starts[0] + len(ring) - apart + 1)
        points = ring[after % len(ring)]
        score = np.where(points[:, 1] >= top + corner.below * height, points @ corner.direction, -np.inf)
        if not len(score) or np.isneginf(score.max()):
            raise ValueError(f"the mask of the {organ} has not the shape of one: its corners are not told apart")
        starts.append(int(after[score.argmax()]))
    return starts


def is_clockwise(ring: NDArray[np.floating]) -> bool:
    """Whether a closed contour [n, 2], x then y with y down, runs clockwise as it is seen (shoelace formula)."""
    x, y = ring[:, 0], ring[:, 1]
    return bool((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0)


def in_annotators_order(landmarks: NDArray[np.floating], organ: str) -> bool:
    """Whether an organ's landmarks [n, 2] turn as the annotators' do and begin at the corner where theirs begin.

    A start that is wrong by one or two nodes is not told apart.
    """
    ring = np.asarray(landmarks, np.float64)
    if is_clockwise(ring) != _CLOCKWISE[organ]:
        return False
    far = ring @ _CORNERS[organ][0].direction
    return bool(far.max() - far[0] <= _START_SLACK * np.ptp(far))


assert all(
    sum(corner.nodes for corner in corners) == LANDMARKS[organ].stop - LANDMARKS[organ].start
    for organ, corners in _CORNERS.items()
)
