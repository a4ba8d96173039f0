"""Test-time augmentation: how far apart landmarks lie on an image that is turned, scaled and exposed a little anew."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, N_LANDMARKS
from chexmask_u.images import corruptions
from chexmask_u.model.network import Network
from chexmask_u.model.predict import predict
from chexmask_u.model.spread import across_and_along
from chexmask_u.training.examples import Examples

# As little as an image may differ between two exposures of one person.
_DEGREES = 5.0
_SCALE = 0.05
_GAMMA = 1.25

# Pixels of the 1024 frame; below, a spread says more of interpolation than of the image.
_FLOOR = 0.05


def augmented_features(
    model: Network, examples: Examples, *, count: int, samples: int, seed: int, batch_size: int
) -> NDArray[np.float64]:
    """Logarithms of the spread, across and along the contour, of landmarks over the image and `count` variants of it.

    Args:
        model: from `load_model`.
        examples: in the 1024 frame.
        count: variants, the first ones of a fixed sequence.
        samples, seed: as `predict` takes them; a variant's landmarks are the mean of its draws.
        batch_size: images at once.

    Returns:
        float64 [B, 120, 2].
    """
    found = np.empty((len(examples), N_LANDMARKS, 2))
    for start in range(0, len(examples), batch_size):
        rows = slice(start, start + batch_size)
        images, names = examples.images[rows], examples.names[rows]
        variants = [predict(model, images, names, samples, seed).landmarks_mean.astype(np.float64)]
        for turn, exponent in _variants(count):
            varied = np.stack([corruptions.gamma(corruptions.move(image, turn), exponent) for image in images])
            moved = predict(model, varied, names, samples, seed).landmarks_mean
            back = np.asarray(cv2.invertAffineTransform(turn), np.float64)
            variants.append(corruptions.move_points(moved, back).astype(np.float64))
        points = np.stack(variants)
        offset = points - points.mean(axis=0)
        spread = across_and_along(points.mean(axis=0), points.std(axis=0), offset.prod(axis=-1).mean(axis=0))
        found[rows] = np.log(np.maximum(np.stack(spread, axis=-1), _FLOOR))
    return found


def _variants(count: int) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Matrices [2, 3] that turn and scale around the middle, and exponents of grey."""
    for index in range(count):
        rng = corruptions.generator(f"augmentation\n{index}")
        degrees, scale, exposure = rng.uniform(-1, 1, 3)
        turn = cv2.getRotationMatrix2D((FRAME / 2, FRAME / 2), degrees * _DEGREES, 1 + scale * _SCALE)
        yield np.asarray(turn, np.float64), float(_GAMMA**exposure)
