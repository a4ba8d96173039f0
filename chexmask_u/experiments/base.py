"""What an experiment is, what it finds, and whether the paper's finding holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from chexmask_u.experiments.study import Study


# Of 3 images a resampling is one in every ninth time the same image thrice: such intervals are too narrow by far.
IMAGES_TO_JUDGE = 8


class Verdict(StrEnum):
    """Whether a finding of the paper holds here."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNKNOWN = "cannot be told"


@dataclass(frozen=True)
class Finding:
    """One finding of the paper, beside what was found here.

    Attributes:
        claim: the paper's, in one sentence.
        paper: its figure or table, with the number it gives, if any.
        ours: what was found, with an interval.
        verdict: whether the claim holds.
        cause: why probably not, where it does not hold or cannot be told; else "".
    """

    claim: str
    paper: str
    ours: str
    verdict: Verdict
    cause: str = ""


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
        results: figures by name, for results.json; an interval of `name` is called `name_interval`.
        units: what the figures are measured in, by name or by the beginning of names.
        table: rows for table.csv.
        figure: for figure.png and figure.svg.
        findings: the paper's, each with a verdict.
        seconds: that it took to predict, where an experiment measures that; else empty.
    """

    results: Mapping[str, Any]
    units: Mapping[str, str]
    table: Sequence[Mapping[str, Any]]
    figure: Figure
    findings: Sequence[Finding]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """An experiment, as its module defines it in ``EXPERIMENT``.

    Attributes:
        title: what people call it.
        run: measures and judges; what it predicts is kept by the study, so that it goes on where it stopped.
        check: raises InputError where what is given cannot be enough, before anything is predicted.
        takes_masks: whether it takes weights of networks that give masks and no landmarks.
    """

    title: str
    check: Callable[[Study], None]
    run: Callable[[Study], Outcome]
    takes_masks: bool = False


def judged(interval: Sequence[float], images: int, *, least: float = 0.0, matters: float = 0.0) -> Verdict:
    """The verdict on a claim that an effect is above `least`.

    Args:
        interval: of the effect: low and high end.
        images: that it is of; nothing can be told of fewer than `IMAGES_TO_JUDGE`.
        least: what the effect must be above.
        matters: an effect that is surely below least + matters is too small to count.
    """
    low, high = interval
    if images < IMAGES_TO_JUDGE:
        return Verdict.UNKNOWN
    if high <= least + matters:
        return Verdict.FAILS
    return Verdict.HOLDS if low > least else Verdict.UNKNOWN


def too_few(images: int, what: str = "images") -> str:
    """Why nothing can be told of so few images; "" where there are enough."""
    if images >= IMAGES_TO_JUDGE:
        return ""
    return f"{images} {what} are too few for an interval over images; give at least {IMAGES_TO_JUDGE}"
