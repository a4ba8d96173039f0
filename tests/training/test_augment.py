"""What augmentation does to an image it does to its landmarks, and in tables what its formulas say."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy import stats

import chexmask_u as cu
from chexmask_u.settings import TrainSettings
from chexmask_u.sources.synthetic import draw
from chexmask_u.training import scores
from chexmask_u.training.augment import add_noise, augment
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


def plainly(
    rng: np.random.Generator, image: np.ndarray, landmarks: np.ndarray, chosen: TrainSettings
) -> tuple[np.ndarray, list[str]]:
    """The image that `augment` gives, by a formula for each change of it, and which changes there were."""
    side, done = len(image), []
    angle = np.deg2rad(rng.uniform(-chosen.rotation, chosen.rotation))
    factor = rng.uniform(1 - chosen.scale, 1 + chosen.scale)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = np.abs((landmarks - 0.5) @ turn.T).max()
    turn *= min(factor, max(0.5 / reach, 1 - chosen.scale))
    offset = 0.5 - turn @ [0.5, 0.5] + rng.uniform(-chosen.shift, chosen.shift, 2)
    pixels = np.column_stack([turn, offset * side + turn @ [0.5, 0.5] - 0.5])
    grey = (cv2.warpAffine(image, pixels, (side, side)) / 255) ** rng.uniform(1 - chosen.contrast, 1 + chosen.contrast)
    if rng.random() < chosen.degrade:
        done.append("clipped")
        low, high = np.percentile(grey, rng.uniform((0, 97), (3, 100)))
        grey = np.clip((grey - low) / max(high - low, 0.1), 0, 1)
    if rng.random() < chosen.degrade:
        done.append("dimmed")
        grey = grey * rng.uniform(0.65, 1.1) + rng.uniform(-0.08, 0.12)
    if rng.random() < chosen.degrade:
        done.append("blurred")
        grey = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), rng.uniform(0.3, 1.2) * side / 256)
    if rng.random() < chosen.degrade:
        done.append("noisy")
        noise = np.zeros(grey.shape, np.float32)
        add_noise(int(rng.integers(2**63)), 1.0, noise)
        grey = grey + noise * rng.uniform(0, 0.04)
    if rng.random() < chosen.degrade:
        done.append("covered")
        for _ in range(rng.integers(1, 4)):
            width, height = rng.integers(side // 16, side // 2, 2)
            left, top = rng.integers(-side // 8, side - side // 8, 2).clip(0)
            grey[top : top + height, left : left + width] = rng.random()
    return grey.clip(0, 1), done


def test_tables_give_what_the_formulas_say() -> None:
    chosen = settings(rotation=10, shift=0.05, contrast=0.5, degrade=0.5)
    drawing = draw(0, side=SIDE)
    seen = set()
    for seed in range(40):
        batch = np.full((2, SIDE, SIDE), np.nan, np.float32)
        landmarks = drawing.landmarks / np.float32(SIDE)
        grey, _ = augment(np.random.default_rng(seed), drawing.image, landmarks, chosen, out=batch[1])
        expected, done = plainly(np.random.default_rng(seed), drawing.image, landmarks, chosen)
        np.testing.assert_allclose(batch[1], expected, atol=1e-5, err_msg=f"{seed}: {done}")
        assert np.shares_memory(grey, batch[1])
        assert np.isnan(batch[0]).all()
        seen |= set(done)
    assert seen == {"clipped", "dimmed", "blurred", "noisy", "covered"}


def test_noise_is_normal_and_independent() -> None:
    side = 1001
    fields = np.zeros((2, side, side), np.float32)
    for seed, field in enumerate(fields):
        add_noise(seed, 0.5, field)
    first, other = (field / 0.5 for field in fields.astype(np.float64))
    count = first.size
    # Kolmogorov and Smirnov's distance of a million normal values is larger once in ten thousand times.
    assert stats.kstest(first.ravel(), "norm").pvalue > 1e-4
    moments = [(first**power).mean() for power in range(1, 7)]
    # Standard errors of a normal distribution's moments; its sixth lacks 0.6% beyond the table's last quantile.
    expected, error = [0, 1, 0, 3, 0, 15], np.sqrt(np.array([1, 2, 15, 96, 945, 10170]) / count)
    np.testing.assert_array_less(np.abs(np.subtract(moments, expected)), 4 * error + [0, 0, 0, 0, 0, 0.1])
    for share in (1e-4, 1e-3, 0.01, 0.1, 0.5):
        below = (first < stats.norm.ppf(share)).mean()
        assert below == pytest.approx(share, abs=4 * np.sqrt(share / count))
    # Neighbours, what lies a part's length apart, and another image's noise.
    flat = first.ravel()
    pairs = {lag: (flat[lag:] * flat[:-lag]).mean() for lag in (1, 2, 3, 4, side, 2**16)}
    pairs["another image"] = (first * other).mean()
    assert max(np.abs(list(pairs.values()))) < 5 / np.sqrt(count), pairs


def test_noise_is_fixed_by_its_seed() -> None:
    twice = np.zeros((2, 70, 1001), np.float32)
    for field in twice:
        add_noise(7, 0.1, field)
    np.testing.assert_array_equal(twice[0], twice[1])
