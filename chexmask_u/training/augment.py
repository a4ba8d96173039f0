"""Augmentation: change one radiograph and its landmarks together."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.settings import TrainSettings


def augment(
    rng: np.random.Generator, image: NDArray[np.uint8], landmarks: NDArray[np.float32], settings: TrainSettings
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale, turn, shift, re-expose and, if the settings say so, degrade one example.

    A scale that would push a landmark out of the image is reduced to the largest that does not.

    Args:
        rng: fixes all that is done.
        image: uint8 [S, S].
        landmarks: [120, 2], unit square; NaN where there are none.
        settings: rotation, scale, shift, contrast and degrade.

    Returns:
        image float32 [S, S] in [0, 1], and landmarks float32 [120, 2], unit square.
    """
    side = len(image)
    angle = np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))
    factor = rng.uniform(1 - settings.scale, 1 + settings.scale)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = float(np.nanmax(np.abs((landmarks - 0.5) @ rotation.T)))
    turn = rotation * min(factor, max(0.5 / reach, 1 - settings.scale))
    offset = 0.5 - turn @ [0.5, 0.5] + rng.uniform(-settings.shift, settings.shift, 2)
    moved_landmarks = (landmarks @ turn.T + offset).astype(np.float32)
    # In pixels, whose centres lie at halves of the unit square's grid.
    pixels = np.concatenate([turn, (offset * side + turn @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
    moved = cv2.warpAffine(image, pixels, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    grey = np.divide(moved, 255, dtype=np.float32)
    grey **= np.float32(rng.uniform(1 - settings.contrast, 1 + settings.contrast))
    if settings.degrade:
        grey = _degraded(rng, grey, settings.degrade)
    return grey.clip(0, 1).astype(np.float32), moved_landmarks


def _degraded(rng: np.random.Generator, grey: NDArray[np.float32], chance: float) -> NDArray[np.float32]:
    """Clip the grey range, dim, blur, add noise and cover parts, each with some chance."""
    side = len(grey)
    if rng.random() < chance:
        low, high = np.percentile(grey, rng.uniform((0, 97), (3, 100)))
        grey = np.clip((grey - low) / max(high - low, 0.1), 0, 1).astype(np.float32)
    if rng.random() < chance:
        grey = grey * np.float32(rng.uniform(0.65, 1.1)) + np.float32(rng.uniform(-0.08, 0.12))
    if rng.random() < chance:
        # In pixels of a 256 image.
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.2) * side / 256).astype(np.float32)
    if rng.random() < chance:
        grey = grey + rng.standard_normal(grey.shape, np.float32) * np.float32(rng.uniform(0, 0.04))
    if rng.random() < chance:
        for _ in range(rng.integers(1, 4)):
            width, height = rng.integers(side // 16, side // 2, 2)
            left, top = rng.integers(-side // 8, side - side // 8, 2).clip(0)
            grey[top : top + height, left : left + width] = rng.random()
    return grey
