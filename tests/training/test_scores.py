"""Scores of known errors, spreads and posteriors."""

from __future__ import annotations

import numpy as np
import pytest

from chexmask_u.training import scores
from tests.support.annotated import HEART


def test_hausdorff_and_dice_of_squares() -> None:
    square = np.array([[10, 10], [50, 10], [50, 50], [10, 50]], np.float64)
    assert scores.hausdorff(square, square) == 0
    assert scores.hausdorff(square, square + np.array([7, 0])) == pytest.approx(7)
    assert scores.hausdorff(square, np.array([[10, 10], [50, 10], [50, 50], [10, 90]])) == pytest.approx(40)
    masks = [np.zeros((40, 40), np.uint8) for _ in range(2)]
    masks[0][:20], masks[1][10:30] = 1, 1
    assert scores.dice(*masks) == pytest.approx(0.5)


def test_calibrated_draws_score_as_calibrated() -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(2, 9, (50, 1, 1)) * np.ones((50, 120, 2))
    truth = rng.uniform(0, 1024, (50, 120, 2))
    truth[:10, HEART] = np.nan
    found = scores.calibration(truth + rng.standard_normal(truth.shape) * spread, spread, truth)
    assert found["std_error_ratio"] == pytest.approx(1, abs=0.03)
    assert found["within_1_std"] == pytest.approx(0.683, abs=0.02)
    assert found["within_2_std"] == pytest.approx(0.954, abs=0.01)
    assert found["rank_correlation"] is not None
    assert found["rank_correlation"] > 0.9


def test_posterior_tells_collapse_from_use() -> None:
    rng = np.random.default_rng(0)
    mean, sigma = np.zeros((40, 64)), np.ones((40, 64))
    mean[:, :5], sigma[:, :5] = rng.standard_normal((40, 5)), 0.2
    health = scores.posterior(mean, sigma)
    assert health["active_latents"] == 5
    np.testing.assert_allclose(health["kl_per_latent"][5:], 0, atol=1e-9)
    assert min(health["kl_per_latent"][:5]) > 1
