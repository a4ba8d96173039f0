"""Figures with intervals by image: right where the answer is known, and refused where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from chexmask_u.errors import InputError
from chexmask_u.experiments import statistics
from chexmask_u.experiments.base import judged, too_few


def test_correlations_are_scipys_and_their_intervals_those_of_resampled_images() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (30, 1))
    x = image + rng.normal(0, 1, (30, 20))
    y = image + rng.normal(0, 1, (30, 20))
    y[3, :5], y[7] = np.nan, np.nan
    found = statistics.correlated(x, y, "x or y")
    there = np.isfinite(y)
    assert found["r"].value == pytest.approx(stats.pearsonr(x[there], y[there]).statistic)
    assert found["rho"].value == pytest.approx(stats.spearmanr(x[there], y[there]).statistic)
    rows = np.delete(np.arange(30), 7)

    def r(some: np.ndarray) -> float:
        one, other = x[rows][some].ravel(), y[rows][some].ravel()
        seen = np.isfinite(other)
        return float(np.corrcoef(one[seen], other[seen])[0, 1])

    assert statistics.bootstrap(29, r).interval == pytest.approx(found["r"].interval)
    # Nodes of an image go together: taken for 600 independent ones, they would seem to tell more than they do.
    alone = statistics.correlated(x[there][:, None], y[there][:, None], "x or y")
    assert np.diff(alone["r"].interval) < 0.7 * np.diff(found["r"].interval)


def test_an_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = [
        found.low <= 5 <= found.high for found in (statistics.mean(rng.normal(5, 2, 40), seed) for seed in range(60))
    ]
    assert 0.78 < np.mean(inside) < 0.98


@pytest.mark.parametrize(
    ("values", "told"), [([1.0, 2.0], "at least 3 images"), ([2.0, 2.0, 2.0, 2.0], "does not vary")]
)
def test_what_cannot_be_told_is_refused(values: list[float], told: str) -> None:
    array = np.array(values)
    with pytest.raises(InputError, match=told):
        statistics.correlated(array, np.arange(len(array), dtype=float), "the std")
    with pytest.raises(InputError, match="not finite"):
        statistics.rounded({"a": [1.0, float("nan")]})


def test_a_verdict_takes_eight_images_and_an_interval_on_one_side() -> None:
    assert judged((1.2, 1.4), 8, least=1.0) == "holds"
    assert judged((0.9, 1.0), 8, least=1.0) == "does not hold"
    assert judged((0.9, 1.4), 8, least=1.0) == "cannot be told"
    assert judged((1.2, 1.4), 7, least=1.0) == judged((0.9, 1.0), 7, least=1.0) == "cannot be told"
    assert "7 images are too few" in too_few(7)
    assert not too_few(8)
