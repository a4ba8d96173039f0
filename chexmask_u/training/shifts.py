"""Radiographs as a network rarely sees them: the shifts under which an uncertainty is tried, and images of no chest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME

Shift = Callable[
    [np.random.Generator, NDArray[np.uint8], NDArray[np.float32]], tuple[NDArray[np.uint8], NDArray[np.float32]]
]
"""Image uint8 [1024, 1024] and landmarks float32 [120, 2] in its pixels -> both, changed."""

_SQUARES = 3
_SQUARE_SIDE = (100, 300)
_NOISE = (20.0, 50.0)
_DEGREES = (10.0, 25.0)
_GAMMAS = (0.3, 3.0)


def _squares(
    rng: np.random.Generator, image: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    image = image.copy()
    for _ in range(_SQUARES):
        side = int(rng.integers(*_SQUARE_SIDE))
        left, top = rng.integers(0, FRAME - side, 2)
        image[top : top + side, left : left + side] = 0
    return image, landmarks


def _noise(
    rng: np.random.Generator, image: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    noisy = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(*_NOISE))
    return np.rint(noisy).clip(0, 255).astype(np.uint8), landmarks


def _rotation(
    rng: np.random.Generator, image: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    degrees = rng.uniform(*_DEGREES) * rng.choice((-1, 1))
    # Landmarks are measured from the image's corner, pixels of OpenCV from the middle of the first one.
    turn = cv2.getRotationMatrix2D((FRAME / 2, FRAME / 2), degrees, 1.0)
    moved = landmarks @ turn[:, :2].T + turn[:, 2]
    turn[:, 2] += turn[:, :2].sum(axis=1) / 2 - 0.5
    return cv2.warpAffine(image, turn, (FRAME, FRAME)).astype(np.uint8), moved.astype(np.float32)


def _gamma(
    rng: np.random.Generator, image: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    grey = (image / np.float32(255)) ** np.float32(rng.choice(_GAMMAS))
    return np.rint(255 * grey).astype(np.uint8), landmarks


SHIFTS: dict[str, Shift] = {"squares": _squares, "noise": _noise, "rotation": _rotation, "gamma": _gamma}
"""Black squares, noise, a rotation by 10 to 25 degrees, a gamma of 0.3 or 3; with the clean image five kinds."""


def shifted(
    kind: str, name: str, image: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One of `SHIFTS` of an image, always the same for the same name.

    Args:
        kind: a key of `SHIFTS`.
        name: of the image.
        image: uint8 [1024, 1024].
        landmarks: float32 [120, 2] in its pixels; NaN where there are none.
    """
    return SHIFTS[kind](_generator(f"{kind}\n{name}"), image, landmarks)


ALTERATIONS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "inverted": lambda image: 255 - image,
    "upside down": lambda image: image[::-1],
    "turned left": lambda image: np.rot90(image, 1),
    "turned right": lambda image: np.rot90(image, -1),
    "left half hidden": lambda image: np.where(np.arange(FRAME) < FRAME // 2, np.uint8(0), image),
    "right half hidden": lambda image: np.where(np.arange(FRAME) >= FRAME // 2, np.uint8(0), image),
    "upper half hidden": lambda image: np.where(np.arange(FRAME)[:, None] < FRAME // 2, np.uint8(0), image),
    "lower half hidden": lambda image: np.where(np.arange(FRAME)[:, None] >= FRAME // 2, np.uint8(0), image),
    "mirrored": lambda image: image[:, ::-1],
}
"""What makes a radiograph one that should not be in a dataset; uint8 [1024, 1024] -> the same."""


def no_chests(count: int, seed: int = 0) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Kinds and images uint8 [1024, 1024] that show no chest, `count` of each kind that can be varied."""
    yield "black", np.zeros((FRAME, FRAME), np.uint8)
    yield "white", np.full((FRAME, FRAME), 255, np.uint8)
    rng = _generator(f"no chest\n{seed}")
    for _ in range(count):
        yield "noise", rng.integers(0, 256, (FRAME, FRAME), dtype=np.uint8)
        side = int(rng.integers(16, 257))
        rows = np.arange(FRAME) // side
        yield "checkerboard", np.where((rows[:, None] + rows) % 2, np.uint8(255), np.uint8(0))
        yield "hand", _hand(rng)
        yield "slice", _slice(rng)


def _hand(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A palm and five fingers with their bones, as a radiograph of a hand shows them."""
    image = np.zeros((FRAME, FRAME), np.float32)
    palm = np.array([FRAME / 2, FRAME * 0.65]) + rng.normal(0, 30, 2)
    width = rng.uniform(0.9, 1.2)
    cv2.ellipse(image, _whole(palm), _whole((170 * width, 200)), 0, 0, 360, (90.0,), -1)
    cv2.line(image, _whole(palm), (int(palm[0]), FRAME), (90.0,), int(200 * width))
    for finger, degrees in enumerate(np.array([-150, -112, -92, -72, -48]) + rng.normal(0, 4, 5)):
        way = np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
        length = (330, 460, 500, 470, 400)[finger] * rng.uniform(0.9, 1.1)
        cv2.line(image, _whole(palm), _whole(palm + way * length), (90.0,), 80)
        for start, end in ((0.3, 0.55), (0.6, 0.76), (0.8, 0.92)):
            cv2.line(image, _whole(palm + way * length * start), _whole(palm + way * length * end), (200.0,), 36)
    return _photographed(rng, image)


def _slice(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A body with two lungs, a spine and a heart, cut across, as CT shows it."""
    image = np.zeros((FRAME, FRAME), np.float32)
    middle = np.array([FRAME / 2, FRAME / 2]) + rng.normal(0, 20, 2)
    size = rng.uniform(0.85, 1.1)
    for offset, axes, grey in (
        ((0, 0), (430, 300), 150),
        ((0, 0), (400, 270), 120),
        ((-200, -10), (150, 200), 10),
        ((200, -10), (150, 200), 10),
        ((40, -60), (120, 110), 170),
        ((0, 190), (60, 60), 240),
        ((40, 90), (28, 28), 190),
    ):
        cv2.ellipse(
            image,
            _whole(middle + np.array(offset) * size),
            _whole(np.array(axes) * size),
            0,
            0,
            360,
            (float(grey),),
            -1,
        )
    return _photographed(rng, image)


def _photographed(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blurred and noisy, as an image is."""
    soft = cv2.GaussianBlur(image, (0, 0), 5) + rng.normal(0, 4, image.shape)
    return np.rint(soft).clip(0, 255).astype(np.uint8)


def _whole(point: object) -> tuple[int, int]:
    x, y = np.rint(np.asarray(point)).astype(int)
    return int(x), int(y)


def _generator(words: str) -> np.random.Generator:
    """Random numbers that depend on the words alone."""
    digest = hashlib.sha256(words.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
