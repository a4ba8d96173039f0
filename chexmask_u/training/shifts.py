"""Radiographs as a network rarely sees them: the shifts under which an uncertainty is tried, and images of no chest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME
from chexmask_u.images import corruptions
from chexmask_u.images.corruptions import Image, generator

Shift = Callable[[np.random.Generator, Image, NDArray[np.float32]], tuple[Image, NDArray[np.float32]]]
"""Image uint8 [1024, 1024] and landmarks float32 [120, 2] in its pixels -> both, changed."""

_SQUARES = 3
_SQUARE_SIDE = (100, 300)
_NOISE = (20.0, 50.0)
_DEGREES = (10.0, 25.0)
_GAMMAS = (0.3, 3.0)


def _squares(
    rng: np.random.Generator, image: Image, landmarks: NDArray[np.float32]
) -> tuple[Image, NDArray[np.float32]]:
    for _ in range(_SQUARES):
        side = int(rng.integers(*_SQUARE_SIDE))
        image = corruptions.cover(image, rng.integers(0, FRAME - side, 2), side)
    return image, landmarks


def _noise(rng: np.random.Generator, image: Image, landmarks: NDArray[np.float32]) -> tuple[Image, NDArray[np.float32]]:
    field = rng.standard_normal(image.shape, np.float32)
    return corruptions.add(image, field * np.float32(rng.uniform(*_NOISE))), landmarks


def _rotation(
    rng: np.random.Generator, image: Image, landmarks: NDArray[np.float32]
) -> tuple[Image, NDArray[np.float32]]:
    turn = corruptions.rotation(rng.uniform(*_DEGREES) * rng.choice((-1, 1)), FRAME)
    return corruptions.move(image, turn), corruptions.move_points(landmarks, turn)


def _gamma(rng: np.random.Generator, image: Image, landmarks: NDArray[np.float32]) -> tuple[Image, NDArray[np.float32]]:
    return corruptions.gamma(image, rng.choice(_GAMMAS)), landmarks


SHIFTS: dict[str, Shift] = {"squares": _squares, "noise": _noise, "rotation": _rotation, "gamma": _gamma}
"""Black squares, noise, a rotation by 10 to 25 degrees, a gamma of 0.3 or 3; with the clean image five kinds."""


def shifted(kind: str, name: str, image: Image, landmarks: NDArray[np.float32]) -> tuple[Image, NDArray[np.float32]]:
    """One of `SHIFTS` of an image, always the same for the same name.

    Args:
        kind: a key of `SHIFTS`.
        name: of the image.
        image: uint8 [1024, 1024].
        landmarks: float32 [120, 2] in its pixels; NaN where there are none.
    """
    return SHIFTS[kind](generator(f"{kind}\n{name}"), image, landmarks)


ALTERATIONS = corruptions.ALTERATIONS


def no_chests(count: int, seed: int = 0) -> Iterator[tuple[str, Image]]:
    """Kinds and images uint8 [1024, 1024] that show no chest, `count` of each kind that can be varied."""
    yield "black", np.zeros((FRAME, FRAME), np.uint8)
    yield "white", np.full((FRAME, FRAME), 255, np.uint8)
    rng = generator(f"no chest\n{seed}")
    for _ in range(count):
        yield "noise", rng.integers(0, 256, (FRAME, FRAME), dtype=np.uint8)
        side = int(rng.integers(16, 257))
        rows = np.arange(FRAME) // side
        yield "checkerboard", np.where((rows[:, None] + rows) % 2, np.uint8(255), np.uint8(0))
        yield "hand", _hand(rng)
        yield "slice", _slice(rng)


def _hand(rng: np.random.Generator) -> Image:
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


def _slice(rng: np.random.Generator) -> Image:
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


def _photographed(rng: np.random.Generator, image: NDArray[np.float32]) -> Image:
    """Blurred and noisy, as an image is."""
    soft = cv2.GaussianBlur(image, (0, 0), 5) + rng.normal(0, 4, image.shape)
    return np.rint(soft).clip(0, 255).astype(np.uint8)


def _whole(point: object) -> tuple[int, int]:
    x, y = np.rint(np.asarray(point)).astype(int)
    return int(x), int(y)
