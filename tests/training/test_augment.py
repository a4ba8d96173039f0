"""What augmentation does to an image it does to its landmarks."""

from __future__ import annotations

import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.sources.synthetic import draw
from chexmask_u.training import scores
from chexmask_u.training.augment import augment
from tests.support.annotated import HEART, SIDE, settings


@pytest.mark.parametrize("organ", cu.ORGANS)
def test_augmented_landmarks_stay_on_the_organ(organ: str) -> None:
    strong = settings(rotation=20, scale=0.3, shift=0.08, contrast=0)
    overlaps = []
    for index in range(10):
        landmarks = draw(index, side=SIDE).landmarks
        image = cu.organ_mask(landmarks, organ, SIDE, SIDE) * np.uint8(255)
        # OpenCV draws at pixel centres, which lie at halves of the landmarks' continuous coordinates.
        grey, moved = augment(np.random.default_rng(index), image, (landmarks + 0.5) / np.float32(SIDE), strong)
        expected = cu.organ_mask(moved * SIDE - 0.5, organ, SIDE, SIDE)
        assert not np.allclose(moved, landmarks / SIDE, atol=0.01)
        overlaps.append(scores.dice((grey > 0.5).astype(np.uint8), expected))
    # Half a pixel's shift gives 0.987.
    assert np.mean(overlaps) > 0.99


def test_scale_alone_pushes_no_landmark_out_of_the_image() -> None:
    landmarks = draw(0, side=64).landmarks / np.float32(64)
    # As tall as the image itself.
    landmarks = ((landmarks - landmarks.min()) / np.ptp(landmarks)).astype(np.float32)
    large = settings(rotation=0, scale=0.5)
    for seed in range(20):
        _, moved = augment(np.random.default_rng(seed), np.zeros((64, 64), np.uint8), landmarks, large)
        assert moved.min() > -1e-4
        assert moved.max() < 1 + 1e-4


def test_absent_heart_stays_absent_and_harms_nothing() -> None:
    landmarks = draw(0, side=64).landmarks / np.float32(64)
    without = landmarks.copy()
    without[HEART] = np.nan
    image = draw(0, side=64).image
    rng = [np.random.default_rng(3) for _ in range(2)]
    grey, moved = augment(rng[0], image, landmarks, settings(scale=0))
    same_grey, same_moved = augment(rng[1], image, without, settings(scale=0))
    np.testing.assert_array_equal(grey, same_grey)
    np.testing.assert_array_equal(moved[:94], same_moved[:94])
    assert np.isnan(same_moved[HEART]).all()
