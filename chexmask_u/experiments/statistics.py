"""Figures with intervals over resampled images, and what refuses to make one: an estimate is a number or an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexmask_u.errors import InputError
from chexmask_u.images.corruptions import generator

LEAST_IMAGES = 3
"""Images below which no interval is made."""

RESAMPLINGS = 1000
ENDS = (0.05, 0.95)
INTERVAL = "90%, 1000 bootstrap samples of the images"


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]

    def named(self, name: str) -> dict[str, Any]:
        """As results.json has it: the figure, and `..._interval`."""
        return {name: self.value, f"{name}_interval": self.interval}

    def text(self, digits: int = 2, unit: str = "") -> str:
        """For people: "1.49 [1.20, 1.80] px"."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]{unit and ' '}{unit}"


def enough(count: int, what: str, least: int = LEAST_IMAGES) -> None:
    """Raise InputError if there are fewer images than an estimate needs."""
    if count < least:
        raise InputError(f"{what} takes at least {least} images, and there are {count}; give more")


def bootstrap(count: int, measure: Callable[[NDArray[np.int64]], float], seed: int = 0) -> Estimate:
    """A figure of images with an interval over resampled ones, each with all that belongs to it.

    Args:
        count: images.
        measure: rows of images, which may come several times -> the figure.
        seed: fixes the samples.

    Raises:
        InputError: if there are fewer than `LEAST_IMAGES`, or the figure cannot be told: of values that do not vary,
            say.
    """
    enough(count, "an interval")
    rng = _samples(seed)
    value = float(measure(np.arange(count)))
    with np.errstate(invalid="ignore", divide="ignore"):
        again = np.array([measure(rng.integers(0, count, count)) for _ in range(RESAMPLINGS)], np.float64)
    return estimate(value, again)


def estimate(value: float, again: NDArray[np.float64]) -> Estimate:
    """A figure with the interval that its resamplings [R] give; as `bootstrap`."""
    again = again[np.isfinite(again)]
    # A sample may by chance lack what the figure needs; most must have it.
    if not np.isfinite(value) or len(again) < RESAMPLINGS / 2:
        raise InputError("a figure cannot be told: its values do not vary, or too few images have one")
    low, high = np.quantile(again, ENDS)
    return Estimate(value, float(low), float(high))


def _samples(seed: int) -> np.random.Generator:
    return generator(f"bootstrap\n{seed}")


def sums(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Sums over resampled images of what each adds, [B, ...] -> [R, ...]; the samples are those of `bootstrap`."""
    rng, count = _samples(seed), len(values)
    flat = values.reshape(count, -1)
    found = [np.bincount(rng.integers(0, count, count), minlength=count) @ flat for _ in range(RESAMPLINGS)]
    return np.stack(found).reshape(RESAMPLINGS, *values.shape[1:])


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of one value per image [B].

    Raises:
        InputError: as `bootstrap`.
    """
    array = np.asarray(values, np.float64)
    enough(len(array), "an interval")
    return estimate(float(array.mean()), sums(array, seed) / len(array))


def ratio(logarithms: ArrayLike, seed: int = 0) -> Estimate:
    """Geometric mean of one ratio per image, given as logarithms [B]."""
    found = mean(logarithms, seed)
    return Estimate(*(float(np.exp(value)) for value in (found.value, found.low, found.high)))


def paired_p(after: ArrayLike, before: ArrayLike) -> float:
    """One-sided p of SciPy's Wilcoxon signed-rank test that `after` is larger; 1 where no pair differs."""
    from scipy.stats import wilcoxon

    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    return float(wilcoxon(difference, alternative="greater").pvalue) if difference.any() else 1.0


def pearson(
    first: NDArray[np.floating], second: NDArray[np.floating], seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """Pearson's correlation of two measures [B, ...], over all finite pairs, and that of resampled images [R].

    Both are NaN where one of the measures does not vary.
    """
    there = np.isfinite(first) & np.isfinite(second)
    x, y = (np.where(there, values - values[there].mean(), 0.0).astype(np.float64) for values in (first, second))
    each = np.stack([there, x, y, x * x, y * y, x * y], axis=-1).reshape(len(there), -1, 6).sum(axis=1)
    of_all, of_samples = each.sum(axis=0), sums(each, seed)

    def r(of: NDArray[np.float64]) -> NDArray[np.float64]:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(of, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.maximum(sxx - sx**2 / n, 0) * np.maximum(syy - sy**2 / n, 0)
            return np.asarray(np.where(spread > 0, (sxy - sx * sy / n) / np.sqrt(spread), np.nan))

    return float(r(of_all)), r(of_samples)


def spearman(
    first: NDArray[np.floating], second: NDArray[np.floating], seed: int = 0
) -> tuple[float, NDArray[np.float64]]:
    """Spearman's rank correlation likewise; resampled images keep the ranks that they have among all."""
    from scipy.stats import rankdata

    there = np.isfinite(first) & np.isfinite(second)
    one, other = np.full(there.shape, np.nan), np.full(there.shape, np.nan)
    one[there], other[there] = rankdata(first[there]), rankdata(second[there])
    return pearson(one, other, seed)


def correlated(
    first: NDArray[np.floating], second: NDArray[np.floating], what: str, seed: int = 0
) -> dict[str, Estimate]:
    """Pearson's ``r`` and Spearman's ``rho`` of two measures [B, ...] with intervals clustered by image.

    Images that have no finite pair do not count.

    Raises:
        InputError: if one of them does not vary, or there are too few images.
    """
    there = np.isfinite(first) & np.isfinite(second)
    for values in (first, second):
        varies(values[there], what)
    rows = there.reshape(len(there), -1).any(axis=1)
    enough(int(rows.sum()), "a correlation")
    return {
        name: estimate(*measure(first[rows], second[rows], seed))
        for name, measure in (("r", pearson), ("rho", spearman))
    }


def varies(values: ArrayLike, what: str) -> None:
    """Raise InputError if all values are alike, so that nothing correlates with them."""
    array = np.asarray(values, np.float64)
    if array.size < 2 or np.ptp(array) == 0:
        raise InputError(f"{what} does not vary, so nothing can correlate with it")


def rounded(value: Any, digits: int = 6) -> Any:
    """The same without digits that mean nothing.

    Raises:
        InputError: if a number is not finite: it must not stand in any table.
    """
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            raise InputError("a figure is not finite; give more images, or such as vary")
        return float(f"{float(value):.{digits}g}")
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if isinstance(value, dict):
        return {name: rounded(one, digits) for name, one in value.items()}
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return [rounded(one, digits) for one in value]
    return value
