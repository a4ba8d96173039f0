"""Experiment: corrupt images ever more: does uncertainty grow, and where does it saturate (figure 3a)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexmask_u.errors import InputError, did_you_mean
from chexmask_u.experiments import figures, statistics
from chexmask_u.experiments.base import Experiment, Finding, Outcome, Verdict, judged, too_few
from chexmask_u.experiments.statistics import LEAST_IMAGES, Estimate
from chexmask_u.experiments.study import Study, Weights
from chexmask_u.images.corruptions import CORRUPTIONS, Image, blend

BLENDING = "blending"
DEFAULT = ("noise", "blur", "contrast", BLENDING)

_BLENDING_LEVELS = (0, 0.1, 0.2, 0.3, 0.4, 0.5)
_BLENDING_UNIT = "share of another image"

# A level at which so much of the whole rise is reached counts as the plateau.
_PLATEAU = 0.95

# A change of the uncertainty by less than so much would tell nobody anything.
_MATTERS = 0.05

MEASURES = {"std": "mean node std", "sigma": "latent sigma"}
_UNITS = {"std": "px", "sigma": "latent units"}


@dataclass(frozen=True)
class Curve:
    """One measure of each image at each level.

    Attributes:
        levels: severities, from the one that changes nothing on.
        values: [B, L].
    """

    levels: tuple[float, ...]
    values: NDArray[np.float64]

    def at(self, seed: int) -> list[Estimate]:
        """Mean over the images at each level."""
        return [statistics.mean(column, seed) for column in self.values.T]

    def growth(self, seed: int) -> Estimate:
        """Mean over all levels above none of value / value of the clean image, as a geometric mean over the images."""
        return statistics.ratio(np.log(self.values[:, 1:] / self.values[:, :1]).mean(axis=1), seed)

    def plateau(self) -> int | None:
        """Index of the first level that reaches 95% of the mean's whole rise; None where that is the last, or none."""
        means = self.values.mean(axis=0)
        rise = means.max() - means[0]
        if rise <= 0:
            return None
        index = int(np.argmax(means - means[0] >= _PLATEAU * rise))
        return index if index < len(means) - 1 else None

    def decline(self, seed: int) -> Estimate:
        """Value at the peak / value at the last level; the peak of an image is where the other images have theirs."""
        others = (self.values.sum(axis=0) - self.values)[:, :-1]
        peak = self.values[np.arange(len(self.values)), others.argmax(axis=1)]
        return statistics.ratio(np.log(peak / self.values[:, -1]), seed)

    def trend(self, seed: int) -> dict[str, Any]:
        """Spearman's rho of level and value within an image, and the p of Page's test for a rise over all images."""
        from scipy.stats import page_trend_test, rankdata

        if not np.ptp(self.values, axis=1).any():
            return {"rho": 0.0, "rho_interval": [0.0, 0.0], "p_trend": 1.0}
        ranks = rankdata(self.values, axis=1)
        levels = np.arange(self.values.shape[1]) - (self.values.shape[1] - 1) / 2
        off = ranks - ranks.mean(axis=1, keepdims=True)
        scale = np.sqrt(np.square(off).sum(axis=1) * np.square(levels).sum())
        # An image whose value is always the same has no rank to go by.
        rho = np.divide(off @ levels, scale, out=np.zeros(len(scale)), where=scale > 0)
        p = page_trend_test(self.values, method="asymptotic").pvalue
        return statistics.mean(rho, seed).named("rho") | {"p_trend": float(p)}


def kinds(study: Study) -> dict[str, tuple[tuple[float, ...], str]]:
    """Levels and unit of the corruptions that are asked for.

    Raises:
        InputError: if one is none.
    """
    known = {name: (kind.levels, kind.unit) for name, kind in CORRUPTIONS.items()}
    known[BLENDING] = (_BLENDING_LEVELS, _BLENDING_UNIT)
    for name in study.settings.corruption:
        if name not in known:
            raise InputError(f"--corruption {name}: is none; there are {', '.join(known)}{did_you_mean(name, known)}")
    return {name: known[name] for name in study.settings.corruption or DEFAULT}


def check(study: Study) -> None:
    """Corruptions need images alone."""
    kinds(study)
    study.need(LEAST_IMAGES, "noise")


def run(study: Study) -> Outcome:
    """Corrupt, predict, and follow both uncertainties over the levels."""
    asked, seed = kinds(study), study.settings.seed
    curves = {
        (weights.label, kind): _curves(study, weights, kind, levels)
        for weights in study.weights
        for kind, (levels, _) in asked.items()
    }
    results: dict[str, Any] = {"by_weights": {}}
    table: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for weights in study.weights:
        of_kinds = {}
        for kind, (_, unit) in asked.items():
            found = {measure: _summary(curve, seed) for measure, curve in curves[weights.label, kind].items()}
            of_kinds[kind] = {"unit": unit, **found}
            table += _rows(weights, kind, unit, curves[weights.label, kind], seed)
        results["by_weights"][weights.label] = of_kinds
        if "noise" in asked:
            findings += judge(weights.label, weights.network.variant, curves[weights.label, "noise"], seed)
    results["corruptions"] = list(asked)
    units = {
        "std": "pixels of the 1024 frame",
        "sigma": "latent units",
        "growth": "ratio to the clean image",
        "decline": "ratio of the peak to the last level",
        "levels": "as `unit` says",
        "p_trend": "p of Page's test",
    }
    return Outcome(results, units, table, _figure(study, asked, curves), findings)


def _curves(study: Study, weights: Weights, kind: str, levels: tuple[float, ...]) -> dict[str, Curve]:
    predictions = [
        study.predict(weights, f"{kind} {level:g}", partial(_corrupted, study, kind, level))
        if level != levels[0]
        else study.predict(weights)
        for level in levels
    ]
    std = [prediction.landmarks_std.mean(axis=(1, 2), dtype=np.float64) for prediction in predictions]
    sigma = [prediction.latent_std.mean(axis=1, dtype=np.float64) for prediction in predictions]
    if not np.all(std) or not np.all(sigma):
        raise InputError(f"{weights.label}: its draws do not differ at all, so there is no uncertainty to look at")
    return {"std": Curve(levels, np.stack(std, axis=1)), "sigma": Curve(levels, np.stack(sigma, axis=1))}


def _corrupted(study: Study, kind: str, level: float, row: int) -> Image:
    images = study.examples.images
    if kind == BLENDING:
        return blend(images[row], images[(row + 1) % len(images)], level)
    # Every image has noise of its own, and keeps it as it grows.
    return CORRUPTIONS[kind].apply(images[row], level, study.settings.seed * len(images) + row)


def _summary(curve: Curve, seed: int) -> dict[str, Any]:
    at, plateau = curve.at(seed), curve.plateau()
    return {
        "levels": list(curve.levels),
        "mean": [one.value for one in at],
        "mean_interval": [one.interval for one in at],
        **curve.growth(seed).named("growth"),
        **curve.decline(seed).named("decline"),
        **curve.trend(seed),
        "saturates_at": None if plateau is None else curve.levels[plateau],
        "monotone": bool((np.diff([one.value for one in at]) >= 0).all()),
    }


def _rows(weights: Weights, kind: str, unit: str, of: dict[str, Curve], seed: int) -> list[dict[str, Any]]:
    return [
        {
            "weights": weights.label,
            "variant": weights.network.variant,
            "corruption": kind,
            "level": level,
            "unit": unit,
            "measure": f"{MEASURES[measure]} ({_UNITS[measure]})",
            "mean": one.value,
            "low": one.low,
            "high": one.high,
        }
        for measure, curve in of.items()
        for level, one in zip(curve.levels, curve.at(seed), strict=True)
    ]


def judge(label: str, variant: str, of: dict[str, Curve], seed: int) -> list[Finding]:
    """The paper's claims about noise, of weights of one label and variant, by `MEASURES`."""
    count = len(of["std"].values)
    found = []
    for measure, curve in of.items():
        growth, trend = curve.growth(seed), curve.trend(seed)
        verdict = judged(growth.interval, count, least=1.0, matters=_MATTERS)
        found.append(
            Finding(
                f"{MEASURES[measure].capitalize()} grows with noise ({label})",
                "figure 3a",
                f"over all levels {growth.text()} times that of the clean image; rho within an image"
                f" {trend['rho']:.2f}, Page's p = {trend['p_trend']:.2g}; {count} images",
                verdict,
                too_few(count) or ("" if verdict is Verdict.HOLDS else _why_flat(measure, variant)),
            )
        )
    curve = of["std"]
    plateau = curve.plateau()
    grows = found[0].verdict is Verdict.HOLDS
    found.append(
        Finding(
            f"Mean node std saturates under strong noise ({label})",
            "figure 3a",
            "no rise is sure enough to ask where it saturates"
            if not grows
            else f"95% of its rise is reached at a noise of {curve.levels[plateau]:g} of 255 grey levels"
            if plateau is not None
            else f"it still rises at {curve.levels[-1]:g} of 255 grey levels",
            Verdict.UNKNOWN if not grows else Verdict.HOLDS if plateau is not None else Verdict.FAILS,
            "" if grows and plateau is not None else "the levels end before it does" if grows else "see above",
        )
    )
    if variant == "skip" and grows:
        decline = curve.decline(seed)
        verdict = judged(decline.interval, count, least=1.0, matters=_MATTERS)
        found.append(
            Finding(
                f"With skip connections mean node std declines at the end ({label})",
                "figure 3a",
                f"at its peak {decline.text()} times that at {curve.levels[-1]:g} grey levels; {count} images",
                verdict,
                ""
                if verdict is Verdict.HOLDS
                else "feature maps of pure noise differ from those that these weights were trained to",
            )
        )
    return found


def _why_flat(measure: str, variant: str) -> str:
    if measure == "sigma":
        return "the KL term holds sigma near one value for all images; nothing teaches it the error"
    if variant == "noskip":
        return "without skip connections the spread is that of sigma alone, which is alike for all images"
    return "the skip blocks contract the draws, and nothing in the squared error teaches a spread"


def _figure(
    study: Study, asked: dict[str, tuple[tuple[float, ...], str]], curves: dict[tuple[str, str], dict[str, Curve]]
) -> Figure:
    figure = figures.new(3.4 * len(asked) + 0.6, 6)
    grid = figure.subplots(2, len(asked), squeeze=False, sharey="row")
    for row, measure in enumerate(MEASURES):
        for axes, (kind, (levels, unit)) in zip(grid[row], asked.items(), strict=True):
            for index, weights in enumerate(study.weights):
                at = curves[weights.label, kind][measure].at(study.settings.seed)
                colour, marker = figures.COLOURS[index % 6], figures.MARKERS[index % 6]
                label = f"{weights.label} ({weights.network.variant})"
                axes.plot(levels, [one.value for one in at], color=colour, marker=marker, markersize=4, label=label)
                axes.fill_between(levels, *zip(*(one.interval for one in at), strict=True), color=colour, alpha=0.2)
            first = axes is grid[row][0]
            unit_of = f"{MEASURES[measure]} ({_UNITS[measure]})"
            figures.tidy(axes, x=f"{kind} ({unit})", y=unit_of if first else "", title=kind if row == 0 else "")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    return figure


EXPERIMENT = Experiment("Growing corruption", check, run)
