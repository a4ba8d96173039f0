"""Augmentation: change one radiograph and its landmarks together.

Everything that changes a pixel by its own grey alone - the power, the clipped range, a dimmer image - is one table of
the 256 greys that the moved image has, and percentiles come from its histogram; noise is looked up, too.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from chexmask_u.settings import TrainSettings

_GREYS = 256

# Values of the table that noise is looked up in: as many as 16 random bits can name.
_NORMALS = 2**16

# Values of noise that are made at once, which stay in cache.
_NOISE_VALUES = 2**16


def augment(
    rng: np.random.Generator,
    image: NDArray[np.uint8],
    landmarks: NDArray[np.float32],
    settings: TrainSettings,
    out: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale, turn, shift, re-expose and, if the settings say so, degrade one example.

    A scale that would push a landmark out of the image is reduced to the largest that does not.

    Args:
        rng: fixes all that is done.
        image: uint8 [S, S].
        landmarks: [120, 2], unit square; NaN where there are none.
        settings: rotation, scale, shift, contrast and degrade.
        out: float32 [S, S], contiguous, that the image is written to; None for a new one.

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
    moved = np.empty_like(image)
    cv2.warpAffine(image, pixels, (side, side), moved, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    # The grey that each of the moved image's becomes.
    table = np.divide(np.arange(_GREYS), 255, dtype=np.float32)
    table **= np.float32(rng.uniform(1 - settings.contrast, 1 + settings.contrast))
    grey = np.empty(moved.shape, np.float32) if out is None else out
    if settings.degrade:
        _degrade(rng, moved, table, settings.degrade, grey)
    else:
        cv2.LUT(moved, table, dst=grey)
    np.clip(grey, 0, 1, out=grey)
    return grey, moved_landmarks


def _degrade(
    rng: np.random.Generator,
    moved: NDArray[np.uint8],
    table: NDArray[np.float32],
    chance: float,
    out: NDArray[np.float32],
) -> None:
    """Clip the grey range, dim, blur, add noise and cover parts, each with some chance."""
    side = len(moved)
    if rng.random() < chance:
        low, high = _percentiles(moved, table, rng.uniform((0, 97), (3, 100)))
        table = np.clip((table - low) / max(high - low, 0.1), 0, 1).astype(np.float32)
    if rng.random() < chance:
        table = table * np.float32(rng.uniform(0.65, 1.1)) + np.float32(rng.uniform(-0.08, 0.12))
    cv2.LUT(moved, table, dst=out)
    if rng.random() < chance:
        # In pixels of a 256 image.
        cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.2) * side / 256, dst=out)
    if rng.random() < chance:
        add_noise(int(rng.integers(2**63)), rng.uniform(0, 0.04), out)
    if rng.random() < chance:
        for _ in range(rng.integers(1, 4)):
            width, height = rng.integers(side // 16, side // 2, 2)
            left, top = rng.integers(-side // 8, side - side // 8, 2).clip(0)
            out[top : top + height, left : left + width] = rng.random()


def _percentiles(
    moved: NDArray[np.uint8], table: NDArray[np.float32], percents: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What `np.percentile(table[moved], percents)` gives, of a table that never falls."""
    counts = cv2.calcHist([moved], [0], None, [_GREYS], [0, _GREYS])
    up_to = np.cumsum(counts, dtype=np.float64)
    place = percents / 100 * (moved.size - 1)
    below = np.floor(place)
    low, high = (
        table[np.searchsorted(up_to, np.minimum(rank, moved.size - 1), side="right")] for rank in (below, below + 1)
    )
    return np.asarray(low + (place - below) * (high - low))


def add_noise(seed: int, std: float, out: NDArray[np.float32]) -> None:
    """Add independent normal noise, fixed by the seed, to a contiguous array.

    Sixteen random bits choose one of as many normal quantiles in the middles of equal shares, so noise reaches 4.3
    times its std; of moments and quantiles below that, a million values cannot tell the difference.
    """
    rng = np.random.Generator(np.random.SFC64(seed))
    table = _normals() * np.float32(std)
    for part in np.split(out.reshape(-1), range(_NOISE_VALUES, out.size, _NOISE_VALUES)):
        bits = rng.integers(0, 2**64 - 1, -(-part.size // 4), dtype=np.uint64, endpoint=True).view(np.uint16)
        part += cv2.LUT(bits[: part.size], table).reshape(-1)


@cache
def _normals() -> NDArray[np.float32]:
    """The standard normal quantiles, float32 [65536], with a variance of one."""
    middles = (torch.arange(_NORMALS, dtype=torch.float64) + 0.5) / _NORMALS
    quantiles = torch.special.ndtri(middles)
    return np.asarray((quantiles / quantiles.std(correction=0)).to(torch.float32).numpy())
