"""Experiment: lay black squares around landmarks: are covered nodes more uncertain than visible ones (section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import LANDMARKS
from chexmask_u.errors import InputError
from chexmask_u.experiments import figures, statistics
from chexmask_u.experiments.base import Experiment, Finding, Outcome, Verdict, judged, too_few
from chexmask_u.experiments.statistics import LEAST_IMAGES
from chexmask_u.experiments.study import Study, Weights, places
from chexmask_u.images.corruptions import Image, corners_around, cover, generator, is_covered
from chexmask_u.model.predict import Prediction
from chexmask_u.pictures.scale import LIMITS, pixel_scale, ticks_between

SIZES = (100, 200, 300)

# A spread that grows under the cover by less than so much more than elsewhere would tell nobody anything.
_MATTERS = 0.05

_OVERLAYS = 2


@dataclass(frozen=True)
class Covered:
    """Mean node std of each image [B], px of the 1024 frame, over its squares of one size.

    Attributes:
        inside, outside: of the nodes in a square and of the others, with the square.
        before, outside_before: of the same nodes, without it.
    """

    inside: NDArray[np.float64]
    outside: NDArray[np.float64]
    before: NDArray[np.float64]
    outside_before: NDArray[np.float64]

    @property
    def growth(self) -> NDArray[np.float64]:
        """How much more the logarithm of the std grows inside than outside, [B]."""
        return np.asarray(np.log(self.inside / self.before) - np.log(self.outside / self.outside_before))


def check(study: Study) -> None:
    """Squares need images alone."""
    study.need(LEAST_IMAGES, "occlusion")


def run(study: Study) -> Outcome:
    """Cover, predict, and compare the same nodes without and with the square."""
    results: dict[str, Any] = {}
    table: list[dict[str, Any]] = []
    findings: list[Finding] = []
    figure = figures.new(11, 3.2 * len(study.weights) + 3)
    rows: Any = figure.subfigures(len(study.weights) + 1, 1, height_ratios=[3.2] * len(study.weights) + [3])
    sizes = study.settings.size or SIZES
    for index, (weights, shown) in enumerate(zip(study.weights, rows[:-1], strict=True)):
        clear = study.predict(weights)
        by_size = {side: _covered(study, weights, clear, side) for side in sizes}
        summary = _summary(by_size, study.settings.seed)
        table += _rows(study, weights, by_size)
        findings.append(_finding(weights, summary, len(study.examples), len(study.weights) > 1))
        # The first of the weights are what the experiment is of; others stand beside it.
        results |= summary if index == 0 else {}
        results.setdefault("by_weights", {})[weights.label] = summary
        _draw_boxes(shown, by_size, weights.label)
    _draw_overlays(rows[-1], study, max(sizes))
    units = {"std_": "pixels of the 1024 frame", "growth": "ratio", "p_": "one-sided p of Wilcoxon's test"}
    return Outcome(results, units, table, figure, findings)


def _chosen(study: Study, row: int) -> list[int]:
    """Landmarks around which squares are laid, of one image."""
    if study.settings.node:
        return list(study.settings.node)
    rng = generator(f"occlusion\n{study.settings.seed}\n{study.examples.names[row]}")
    return [int(rng.integers(nodes.start, nodes.stop)) for nodes in LANDMARKS.values()]


def _covered(study: Study, weights: Weights, clear: Prediction, side: int) -> Covered:
    where = places(study.examples, clear)
    count = len(study.examples)
    before = clear.landmarks_std.mean(axis=-1, dtype=np.float64)
    sums = np.zeros((4, count))
    squares = len(_chosen(study, 0))
    for which in range(squares):
        corners = np.stack([corners_around(where[row, _chosen(study, row)[which]], side) for row in range(count)])
        change = partial(_with_square, study, corners, side)
        places_told = "" if study.settings.node else f" of seed {study.settings.seed}"
        told = f"square {side} around {study.settings.node[which] if study.settings.node else which}{places_told}"
        after = study.predict(weights, told, change).landmarks_std.mean(axis=-1, dtype=np.float64)
        for row in range(count):
            inside = is_covered(where[row], corners[row], side)
            if inside.all():
                raise InputError(f"--size {side}: covers every landmark of {study.examples.names[row]}; choose less")
            values = (after[row, inside], after[row, ~inside], before[row, inside], before[row, ~inside])
            sums[:, row] += [part.mean() for part in values]
    if not sums.all():
        raise InputError(f"{weights.label}: its draws do not differ at all, so there is no uncertainty to look at")
    return Covered(*(sums / squares))


def _with_square(study: Study, corners: NDArray[np.int64], side: int, row: int) -> Image:
    return cover(study.examples.images[row], corners[row], side)


def _summary(by_size: dict[int, Covered], seed: int) -> dict[str, Any]:
    """Figures over all sizes, and of each."""

    def of(parts: Sequence[Covered]) -> dict[str, Any]:
        names = ("inside", "outside", "before", "outside_before")
        found: dict[str, Any] = {}
        means = {name: np.mean([getattr(part, name) for part in parts], axis=0) for name in names}
        for name, values in means.items():
            found |= statistics.mean(values, seed).named(f"std_{name}")
        growth = np.mean([part.growth for part in parts], axis=0)
        return found | {
            **statistics.ratio(growth, seed).named("growth_ratio"),
            "p_inside_above_before": statistics.paired_p(means["inside"], means["before"]),
            "p_inside_above_outside": statistics.paired_p(means["inside"], means["outside"]),
            "p_growth_inside_above_outside": statistics.paired_p(growth, np.zeros_like(growth)),
        }

    return of(list(by_size.values())) | {"by_size": {str(side): of([part]) for side, part in by_size.items()}}


def _finding(weights: Weights, summary: dict[str, Any], count: int, several: bool) -> Finding:
    low, high = summary["growth_ratio_interval"]
    verdict = judged((low, high), count, least=1.0, matters=_MATTERS)
    ours = (
        f"covered nodes {summary['std_before']:.2f} -> {summary['std_inside']:.2f} px, visible ones"
        f" {summary['std_outside_before']:.2f} -> {summary['std_outside']:.2f} px: under the cover"
        f" {summary['growth_ratio']:.2f} [{low:.2f}, {high:.2f}] times the growth elsewhere, p ="
        f" {summary['p_growth_inside_above_outside']:.2g}; {count} images"
    )
    cause = too_few(count)
    if not cause and verdict is not Verdict.HOLDS:
        cause = (
            "without skip connections nothing is looked up at a node, and sigma is of the image as a whole"
            if weights.network.variant == "noskip"
            else "the spread of these draws does not feel what the image shows at a node, or there are too few images"
        )
    claim = "Covered nodes become more uncertain than visible ones" + (f" ({weights.label})" if several else "")
    return Finding(claim, "figure 2", ours, verdict, cause)


def _rows(study: Study, weights: Weights, by_size: dict[int, Covered]) -> list[dict[str, Any]]:
    return [
        {
            "weights": weights.label,
            "image": name,
            "side_px": side,
            "std_inside_px": part.inside[row],
            "std_outside_px": part.outside[row],
            "std_before_px": part.before[row],
            "std_outside_before_px": part.outside_before[row],
        }
        for side, part in by_size.items()
        for row, name in enumerate(study.examples.names)
    ]


def _draw_boxes(shown: Any, by_size: dict[int, Covered], label: str) -> None:
    axes = shown.subplots(1, len(by_size), sharey=True, squeeze=False)[0]
    for one, (side, part) in zip(axes, by_size.items(), strict=True):
        figures.boxes(one, [part.before, part.outside_before], [0, 1], figures.GREY)
        figures.boxes(one, [part.inside, part.outside], [0.38, 1.38], figures.COLOURS[1])
        one.set_xticks([0.19, 1.19], ["covered nodes", "visible nodes"])
        figures.log_y(one)
        first = one is axes[0]
        figures.tidy(
            one,
            x="",
            y="mean node std (px, log)" if first else "",
            title=f"{label}: square of {side} px" if first else f"square of {side} px",
        )
    handles = [
        axes[-1].plot([], [], "s", color=colour, alpha=0.6, label=text)[0]
        for colour, text in ((figures.GREY, "without square"), (figures.COLOURS[1], "with square"))
    ]
    axes[-1].legend(handles=handles, fontsize="small", frameon=False)


def _draw_overlays(shown: Any, study: Study, side: int) -> None:
    """Images without and with a square, their landmarks in the colours of their std, of the first weights."""
    weights = study.weights[0]
    clear = study.predict(weights)
    where = places(study.examples, clear)
    count = min(_OVERLAYS, len(study.examples))
    axes = shown.subplots(1, 2 * count, squeeze=False)[0]
    scale = pixel_scale()
    for row in range(count):
        corners = np.stack(
            [corners_around(where[one, _chosen(study, one)[0]], side) for one in range(len(study.examples))]
        )
        told = f"square {side} around {study.settings.node[0] if study.settings.node else 0}"
        told += "" if study.settings.node else f" of seed {study.settings.seed}"
        covered = study.predict(weights, told, partial(_with_square, study, corners, side))
        for one, prediction, pixels, title in (
            (axes[2 * row], clear, study.examples.images[row], study.examples.names[row]),
            (axes[2 * row + 1], covered, _with_square(study, corners, side, row), f"square of {side} px"),
        ):
            figures.image(one, pixels, title)
            points, std = prediction.landmarks_mean[row], prediction.landmarks_std[row].mean(axis=-1)
            one.scatter(*points.T, s=7, c=std, cmap=scale.cmap, norm=scale.norm, linewidths=0)
            one.set_xlim(0, pixels.shape[1])
            one.set_ylim(pixels.shape[0], 0)
    bar = shown.colorbar(scale, ax=list(axes), label="node std (px of the 1024 frame)", shrink=0.9, format="%g")
    bar.set_ticks(ticks_between(LIMITS))
    bar.minorticks_off()


EXPERIMENT = Experiment("Occlusion", check, run)
