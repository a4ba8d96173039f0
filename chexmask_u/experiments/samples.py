"""Experiment: how many draws are enough, and what they cost: variational against MC dropout (appendix A, table 1)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexmask_u.experiments import figures, statistics
from chexmask_u.experiments.base import IMAGES_TO_JUDGE, Experiment, Finding, Outcome, Verdict, judged, too_few
from chexmask_u.experiments.statistics import LEAST_IMAGES, Estimate
from chexmask_u.experiments.study import Study, Weights, distances
from chexmask_u.model.predict import predict

COUNTS = (10, 25, 50, 100, 200)

# From here on, the paper finds, more draws change nothing.
ENOUGH = 50

# Correlations that differ by less count as the same.
_STABLE = 0.02

_WHY_UNSTABLE = "too few images for so small a difference, or a rare draw far away moves a std, though hardly its rank"

# The paper's seconds at N = 50.
_PAPER_SECONDS = "9.0 s against 142.3 s"


Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Std and error of each node, [B, 120] each."""


@dataclass(frozen=True)
class Drawn:
    """One of the weights at each count of draws.

    Attributes:
        std: mean of the two axes, [C, B, 120], pixels of the 1024 frame.
        errors: [C, B, 120] likewise; None where no image is annotated.
        of: what the errors are distances to.
        seconds: of one image, [C, T].
    """

    weights: Weights
    std: NDArray[np.float64]
    errors: NDArray[np.float64] | None
    of: str
    seconds: NDArray[np.float64]


def check(study: Study) -> None:
    """Draws need images alone; annotations tell more."""
    study.need(LEAST_IMAGES, "samples")


def run(study: Study) -> Outcome:
    """Draw most, look at the first of them, and time every count."""
    counts, seed = tuple(sorted(set(study.settings.count or COUNTS))), study.settings.seed
    everything = [_drawn(study, weights, counts) for weights in study.weights]
    results: dict[str, Any] = {"counts": list(counts), "by_weights": {}}
    table: list[dict[str, Any]] = []
    for one in everything:
        summary = [_summary(one, index, seed) for index in range(len(counts))]
        results["by_weights"][one.weights.label] = {
            str(count): found for count, found in zip(counts, summary, strict=True)
        }
        table += [
            {"weights": one.weights.label, "variant": one.weights.network.variant, "draws": count}
            | {name: value for name, value in found.items() if not name.endswith("_interval")}
            for count, found in zip(counts, summary, strict=True)
        ]
    findings = [_stable(one, counts, seed) for one in everything]
    variational = [one for one in everything if one.weights.network.has_posterior]
    for dropout in (one for one in everything if not one.weights.network.has_posterior):
        for one in variational:
            findings += _compared(one, dropout, counts, seed)
    units = {
        "r": "Pearson's, of a node's std and error",
        "rho": "Spearman's, likewise",
        "agreement": f"Pearson's, of a node's std and that of {counts[-1]} draws",
        "seconds": "of one image, median",
    }
    facts = {"device": str(study.weights[0].network.device), "timed_images": int(everything[0].seconds.shape[1])}
    return Outcome(results | facts, units, table, _figure(everything, counts, results), findings)


def _drawn(study: Study, weights: Weights, counts: Sequence[int]) -> Drawn:
    predictions = study.predict_counts(weights, counts)
    errors, of = None, ""
    if np.isfinite(study.examples.landmarks).any():
        told = [distances(study.examples, prediction.landmarks_mean) for prediction in predictions]
        errors, of = np.stack([one for one, _ in told]), told[0][1]
    std = np.stack([prediction.landmarks_std.mean(axis=-1, dtype=np.float64) for prediction in predictions])
    statistics.varies(std, f"the std of {weights.label}")
    return Drawn(weights, std, errors, of, np.stack([_seconds(study, weights, count) for count in counts]))


def _seconds(study: Study, weights: Weights, count: int) -> NDArray[np.float64]:
    """Seconds of one image each, [T], predicted alone; kept, and so never measured twice."""
    timed = min(study.settings.timed, len(study.examples))
    name = f"{weights.sha256[:12]}-seconds-{count}-{timed}-{weights.network.device.type}.npz"
    kept = study.kept(name)
    if kept is not None:
        return kept["seconds"]
    found = []
    images, names = study.examples.images, study.examples.names
    # Once to warm up.
    predict(weights.network, images[:1], names[:1], 2)
    for row in range(timed):
        start = time.perf_counter()
        predict(weights.network, images[row : row + 1], names[row : row + 1], count)
        found.append(time.perf_counter() - start)
    seconds = np.array(found)
    study.keep(name, {"seconds": seconds})
    return seconds


def _summary(one: Drawn, index: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": float(np.median(one.seconds[index]))}
    if one.errors is not None:
        told = statistics.correlated(one.std[index], one.errors[index], f"{one.weights.label}'s std or error", seed)
        for name, estimate in told.items():
            found |= estimate.named(name)
        found["to"] = one.of
    agreement = statistics.correlated(one.std[index], one.std[-1], f"{one.weights.label}'s std", seed)["r"]
    return found | agreement.named("agreement")


def _change(one: Drawn, counts: Sequence[int], seed: int) -> Estimate | None:
    """By how much r changes from 50 draws to the most; None without annotations or without 50 draws."""
    if one.errors is None or ENOUGH not in counts or counts[-1] <= ENOUGH:
        return None
    index = list(counts).index(ENOUGH)
    return _gap((one.std[-1], one.errors[-1]), (one.std[index], one.errors[index]), seed)[0]


def _gap(first: Pair, second: Pair, seed: int) -> tuple[Estimate, tuple[float, float]]:
    """Pearson's r of one pair of measures minus that of another, of the same images; and both."""
    rows = np.isfinite(first[1]).any(axis=1)
    (one, ones), (other, others) = (statistics.pearson(std[rows], error[rows], seed) for std, error in (first, second))
    return statistics.estimate(one - other, ones - others), (one, other)


def _stable(one: Drawn, counts: Sequence[int], seed: int) -> Finding:
    claim = f"Agreement with the error is stable from {ENOUGH} draws on ({one.weights.label})"
    change = _change(one, counts, seed)
    if change is None:
        why = "it takes annotated images, 50 draws and more"
        return Finding(claim, "table 1", "not measured", Verdict.UNKNOWN, why)
    inside, outside = max(abs(change.low), abs(change.high)) <= _STABLE, change.low > _STABLE or change.high < -_STABLE
    images = one.std.shape[1]
    verdict = Verdict.HOLDS if inside else Verdict.FAILS if outside else Verdict.UNKNOWN
    verdict = verdict if images >= IMAGES_TO_JUDGE else Verdict.UNKNOWN
    index = list(counts).index(ENOUGH)
    assert one.errors is not None
    ranks = [statistics.spearman(one.std[at], one.errors[at], seed)[0] for at in (index, -1)]
    ours = (
        f"r changes by {change.text(3)} from {ENOUGH} to {counts[-1]} draws, rho from {ranks[0]:.2f} to {ranks[1]:.2f};"
        f" {images} images"
    )
    return Finding(claim, "table 1", ours, verdict, too_few(images) or ("" if inside else _WHY_UNSTABLE))


def _compared(one: Drawn, dropout: Drawn, counts: Sequence[int], seed: int) -> list[Finding]:
    """Cost and worth of variational draws beside those of MC dropout, at the paper's N or the most there is."""
    at = list(counts).index(ENOUGH) if ENOUGH in counts else len(counts) - 1
    pair = f"({one.weights.label} against {dropout.weights.label})"
    times = np.median(one.seconds[at]), np.median(dropout.seconds[at])
    ratios = dropout.seconds[at] / one.seconds[at]
    device = one.weights.network.device.type
    found = [
        Finding(
            f"Variational draws cost less than MC dropout at equal N {pair}",
            f"table 1: {_PAPER_SECONDS}",
            f"N = {counts[at]}: {times[0]:.3g} s against {times[1]:.3g} s an image on one {device},"
            f" {ratios.min():.3g} to {ratios.max():.3g} times, of {len(ratios)} images",
            Verdict.HOLDS if ratios.min() > 1 else Verdict.FAILS if ratios.max() <= 1 else Verdict.UNKNOWN,
            "" if ratios.min() > 1 else "a draw of this network costs as much as an encoding",
        )
    ]
    if one.errors is None or dropout.errors is None:
        return found
    gap, values = _gap((one.std[at], one.errors[at]), (dropout.std[at], dropout.errors[at]), seed)
    verdict = judged(gap.interval, one.std.shape[1], least=-_STABLE)
    found.append(
        Finding(
            f"Variational std says as much of a node's error as MC dropout's {pair}",
            "table 1",
            f"r {values[0]:.2f} against {values[1]:.2f}, {gap.text()} apart; N = {counts[at]},"
            f" {one.std.shape[1]} images",
            verdict,
            too_few(one.std.shape[1])
            or (
                ""
                if verdict is Verdict.HOLDS
                else "squared errors teach no spread, while dropout disturbs the encoder, of which the error comes"
            ),
        )
    )
    return found


def _figure(everything: Sequence[Drawn], counts: Sequence[int], results: dict[str, Any]) -> Figure:
    figure = figures.new(11, 3.6)
    left, middle, right = figure.subplots(1, 3)
    for index, one in enumerate(everything):
        found = results["by_weights"][one.weights.label]
        colour, marker = figures.COLOURS[index % 6], figures.MARKERS[index % 6]
        label = f"{one.weights.label} ({one.weights.network.variant})"
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "label": label}
        if one.errors is not None:
            figures.banded(left, counts, [found[str(count)] for count in counts], "r", style)
        figures.banded(middle, counts, [found[str(count)] for count in counts], "agreement", style)
        right.plot(counts, [found[str(count)]["seconds"] for count in counts], **style)
    figures.tidy(left, x="draws N", y="Pearson r of node std and error")
    figures.tidy(middle, x="draws N", y=f"Pearson r with the std of {counts[-1]} draws")
    figures.log_y(right)
    figures.tidy(right, x="draws N", y="seconds an image (log)")
    right.legend(fontsize="small", frameon=False)
    return figure


EXPERIMENT = Experiment("Number of draws", check, run)
