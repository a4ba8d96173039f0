"""Experiment: entropy of the mean mask against 1 - Dice, of HybridGNet beside networks of pixels (figure 6)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.errors import InputError, did_you_mean
from chexmask_u.experiments import figures, statistics
from chexmask_u.experiments.base import Experiment, Finding, Outcome, Verdict, judged, too_few
from chexmask_u.experiments.statistics import LEAST_IMAGES
from chexmask_u.experiments.study import AnyWeights, Study
from chexmask_u.images.corruptions import Image
from chexmask_u.model.network import BaseNetwork, Network
from chexmask_u.model.pixel import PixelNetwork, predict_masks
from chexmask_u.model.predict import predict_draws
from chexmask_u.steps.mask import FARTHEST, organ_mask
from chexmask_u.training.goals.masks import frame_masks
from chexmask_u.training.mask_scores import mask_row
from chexmask_u.training.shifts import SHIFTS, shifted

CLEAN = "clean"
KINDS = (CLEAN, *SHIFTS)

TOGETHER = "all organs"
"""What the mean over an image's annotated organs is called."""

POOLED = "all kinds"
"""What the images of all kinds together are called, where there are several."""


@dataclass(frozen=True)
class Measured:
    """One of the weights on all images of each kind.

    Attributes:
        entropy: predictive entropy of the mean mask, mean over the annotated organ, nats: [B, K, 3]; NaN where an organ
            is not annotated.
        lost: 1 - Dice of the mean mask likewise.
        seconds: that the mean masks of an image took, [T].
    """

    weights: AnyWeights
    entropy: NDArray[np.float64]
    lost: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def pair(self, kind: int | None, organ: int | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Entropy and 1 - Dice of one kind or all, [B, 1 or K], of one organ or their mean."""
        rows = slice(None) if kind is None else slice(kind, kind + 1)
        entropy, lost = (
            np.nanmean(values[:, rows], axis=2) if organ is None else values[:, rows, organ]
            for values in (self.entropy, self.lost)
        )
        return entropy, lost


def mean_of_draws(draws: NDArray[np.floating]) -> NDArray[np.float32]:
    """The mean over draws of landmarks [N, 120, 2], pixels of the 1024 frame, of each organ's mask: [3, 1024, 1024]."""
    # An early network may point anywhere.
    near = np.clip(draws, -FARTHEST, FARTHEST)
    total = np.zeros((len(ORGANS), FRAME, FRAME), np.float32)
    for points in near:
        for organ, inside in zip(ORGANS, total, strict=True):
            inside += organ_mask(points, organ, FRAME, FRAME)
    return total / np.float32(len(draws))


def mean_masks(network: BaseNetwork, image: Image, name: str, samples: int, seed: int) -> NDArray[np.float32]:
    """Mean mask of each organ over the draws of an image uint8 [1024, 1024], in the 1024 frame: [3, 1024, 1024].

    Where draws are landmarks it is the share of the draws whose mask covers a pixel, where they are masks the mean of
    what they give.
    """
    if isinstance(network, PixelNetwork):
        return predict_masks(network, image[None], [name], samples, seed)[0]
    assert isinstance(network, Network)
    _, draws = predict_draws(network, image[None], [name], samples, seed)
    return mean_of_draws(draws[0])


def kinds(study: Study) -> tuple[str, ...]:
    """The kinds of images that are asked for.

    Raises:
        InputError: if one is none.
    """
    for name in study.settings.kind:
        if name not in KINDS:
            raise InputError(f"--kind {name}: is none; there are {', '.join(KINDS)}{did_you_mean(name, KINDS)}")
    return tuple(dict.fromkeys(study.settings.kind)) or KINDS


def check(study: Study) -> None:
    """Overlap needs annotated images."""
    kinds(study)
    study.need(LEAST_IMAGES, "pixel")
    bare = ~np.isfinite(study.examples.landmarks).any(axis=(1, 2))
    if bare.any():
        name = study.examples.names[int(bare.argmax())]
        raise InputError(f"{int(bare.sum())} images, such as {name}, are not annotated, and overlap needs annotations")


def run(study: Study) -> Outcome:
    """Draw masks of all images of each kind, and compare what their entropy says with what they miss."""
    asked, seed = kinds(study), study.settings.seed
    everything = [_measured(study, weights, asked) for weights in study.networks]
    of_kinds: dict[str, int | None] = {kind: index for index, kind in enumerate(asked)}
    if len(asked) > 1:
        of_kinds[POOLED] = None
    results: dict[str, Any] = {"kinds": list(asked), "by_weights": {}}
    table: list[dict[str, Any]] = []
    for one in everything:
        found = {kind: _summary(one, index, seed) for kind, index in of_kinds.items()}
        results["by_weights"][one.weights.label] = found | {"seconds": float(np.median(one.seconds))}
        table += [_row(one, kind, organ, told) for kind, of in found.items() for organ, told in of.items()]
    units = {
        "entropy": "nats, mean over the annotated organ",
        "dice": "of the mean mask at one half, 1024 frame",
        "r": "Pearson's, of an image's entropy and 1 - Dice",
        "rho": "Spearman's, likewise",
        "seconds": "of one image, median",
    }
    facts = {"device": str(everything[0].weights.network.device), "timed_images": len(everything[0].seconds)}
    # As they are, where the paper looks, and all together.
    judged_kinds = {kind: index for kind, index in of_kinds.items() if kind in (CLEAN, POOLED)} or of_kinds
    findings = _compared(everything, judged_kinds, seed)
    return Outcome(results | facts, units, table, _figure(everything, asked, results, list(judged_kinds)), findings)


def _measured(study: Study, weights: AnyWeights, asked: Sequence[str]) -> Measured:
    found = [
        study.by_block(
            weights,
            study.examples,
            f"mean masks\n{kind}\n{study.settings.samples}",
            f"{weights.label}, {kind}",
            partial(_scored, study, weights.network, kind),
        )
        for kind in asked
    ]
    entropy, dice = (np.stack([one[what] for one in found], axis=1) for what in ("entropy", "dice"))
    return Measured(weights, entropy, 1 - dice, _seconds(study, weights))


def _scored(
    study: Study, network: BaseNetwork, kind: str, rows: Sequence[int], images: NDArray[np.uint8], names: list[str]
) -> dict[str, NDArray[Any]]:
    """``entropy`` and ``dice`` of each organ of a batch, [B, 3] each, NaN where it is not annotated."""
    scores = []
    for row, image, name in zip(rows, images, names, strict=True):
        seen, points = image, study.examples.landmarks[row] * np.float32(FRAME)
        if kind != CLEAN:
            seen, points = shifted(kind, name, image, points)
        mean = mean_masks(network, seen, name, study.settings.samples, study.settings.seed)
        scores.append(mask_row(mean, frame_masks(points / np.float32(FRAME))))
    return {
        what: np.array([[one.get(f"{what}_{organ}", np.nan) for organ in ORGANS] for one in scores])
        for what in ("entropy", "dice")
    }


def _seconds(study: Study, weights: AnyWeights) -> NDArray[np.float64]:
    """Seconds of one image each, [T]; kept, and so never measured twice."""
    timed, samples = min(study.settings.timed, len(study.examples)), study.settings.samples
    name = f"{weights.sha256[:12]}-mask-seconds-{samples}-{timed}-{weights.network.device.type}.npz"
    kept = study.kept(name)
    if kept is not None:
        return kept["seconds"]
    images, names = study.examples.images, study.examples.names
    # Once to warm up.
    mean_masks(weights.network, images[0], names[0], 2, study.settings.seed)
    found = []
    for row in range(timed):
        start = time.perf_counter()
        mean_masks(weights.network, images[row], names[row], samples, study.settings.seed)
        found.append(time.perf_counter() - start)
    seconds = np.array(found)
    study.keep(name, {"seconds": seconds})
    return seconds


def _summary(one: Measured, kind: int | None, seed: int) -> dict[str, dict[str, Any]]:
    """Dice, entropy and how they go together, of each organ that is annotated and of all together.

    Where an organ's do not vary, as of a network that never finds it, nothing is said of how they go together.

    Raises:
        InputError: if those of all organs together do not vary.
    """
    found = {}
    for organ, index in {TOGETHER: None, **{name: place for place, name in enumerate(ORGANS)}}.items():
        entropy, lost = one.pair(kind, index)
        there = np.isfinite(lost).any(axis=1)
        if int(there.sum()) < LEAST_IMAGES:
            continue
        told = {
            "dice": statistics.mean(1 - lost[there].mean(axis=1), seed),
            "entropy": statistics.mean(entropy[there].mean(axis=1), seed),
        }
        if index is None or (np.ptp(entropy[there]) and np.ptp(lost[there])):
            told |= statistics.correlated(entropy, lost, f"{one.weights.label}: the entropy or Dice", seed)
        found[organ] = {name: value for what, each in told.items() for name, value in each.named(what).items()}
    return found


def _row(one: Measured, kind: str, organ: str, told: dict[str, Any]) -> dict[str, Any]:
    network = one.weights.network
    row: dict[str, Any] = {
        "weights": one.weights.label,
        "variant": network.variant,
        "input_size": network.input_size,
        "images": kind,
        "organ": organ,
    }
    for name, value in told.items():
        if name.endswith("_interval"):
            row[name.replace("_interval", "_low")], row[name.replace("_interval", "_high")] = value
        else:
            row[name] = value
    return row


def _compared(everything: Sequence[Measured], of_kinds: dict[str, int | None], seed: int) -> list[Finding]:
    """The paper's claim, for each variational HybridGNet beside each network of pixels, on each kind of images."""
    pixels = [one for one in everything if isinstance(one.weights.network, PixelNetwork)]
    variational = [
        one for one in everything if isinstance(one.weights.network, Network) and one.weights.network.has_posterior
    ]
    if not pixels or not variational:
        return [
            Finding(
                "The variational entropy goes with 1 - Dice better than that of networks of pixels",
                "figure 6",
                "not measured",
                Verdict.UNKNOWN,
                "it takes weights of HybridGNet and of a U-Net or PHiSeg; train them with --variant unet and phiseg",
            )
        ]
    return [
        _gap(one, other, kind, index, seed)
        for kind, index in of_kinds.items()
        for one in variational
        for other in pixels
    ]


def _gap(one: Measured, other: Measured, kind: str, index: int | None, seed: int) -> Finding:
    (r, rs), (s, ss) = (statistics.pearson(*each.pair(index, None), seed) for each in (one, other))
    gap = statistics.estimate(r - s, rs - ss)
    verdict = judged(gap.interval, len(one.lost))
    return Finding(
        f"The variational entropy goes with 1 - Dice better than that of {other.weights.network.family}"
        f" ({one.weights.label} against {other.weights.label}; {kind})",
        "figure 6",
        f"r {r:.2f} against {s:.2f}, {gap.text()} apart; {len(one.lost)} images",
        verdict,
        too_few(len(one.lost)) or _WHY.get(verdict, ""),
    )


_WHY = {
    Verdict.FAILS: "a probability per pixel, learnt by cross entropy, is taught how often it is wrong; HybridGNet's"
    " draws are taught by the landmarks' distances at most",
    Verdict.UNKNOWN: "too few images for so small a difference",
}


def _figure(
    everything: Sequence[Measured], asked: Sequence[str], results: dict[str, Any], told: Sequence[str]
) -> Figure:
    figure = figures.new(3.1 * len(everything) + 0.6, 3.8)
    grid = figure.subplots(1, len(everything), squeeze=False, sharey=True)[0]
    for axes, one in zip(grid, everything, strict=True):
        for index, kind in enumerate(asked):
            entropy, lost = one.pair(index, None)
            style = {"color": figures.COLOURS[index % 6], "marker": figures.MARKERS[index % 6]}
            axes.plot(entropy[:, 0], lost[:, 0], linestyle="", markersize=4, alpha=0.75, label=kind, **style)
        title = f"{one.weights.label} ({one.weights.network.variant})"
        for kind in told:
            found = results["by_weights"][one.weights.label][kind][TOGETHER]
            low, high = found["r_interval"]
            title += f"\nr = {found['r']:.2f} [{low:.2f}, {high:.2f}], {kind}"
        first = axes is grid[0]
        figures.tidy(axes, x="entropy of the mean mask (nats)", y="1 - Dice" if first else "", title=title)
    grid[0].legend(fontsize="small", frameon=False)
    return figure


EXPERIMENT = Experiment("Networks of pixels", check, run, takes_masks=True)
