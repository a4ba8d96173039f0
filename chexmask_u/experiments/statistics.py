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
    rng = generator(f"bootstrap\n{seed}")
    value = float(measure(np.arange(count)))
    with np.errstate(invalid="ignore", divide="ignore"):
        again = np.array([measure(rng.integers(0, count, count)) for _ in range(RESAMPLINGS)], np.float64)
    again = again[np.isfinite(again)]
    # A sample may by chance lack what the figure needs; most must have it.
    if not np.isfinite(value) or len(again) < RESAMPLINGS / 2:
        raise InputError("a figure cannot be told: its values do not vary, or too few images have one")
    low, high = np.quantile(again, ENDS)
    return Estimate(value, float(low), float(high))


def mean(values: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of one value per image [B]."""
    array = np.asarray(values, np.float64)
    return bootstrap(len(array), lambda rows: float(array[rows].mean()), seed)


def paired_p(after: ArrayLike, before: ArrayLike) -> float:
    """One-sided p of SciPy's Wilcoxon signed-rank test that `after` is larger; 1 where no pair differs."""
    from scipy.stats import wilcoxon

    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    return float(wilcoxon(difference, alternative="greater").pvalue) if difference.any() else 1.0


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
