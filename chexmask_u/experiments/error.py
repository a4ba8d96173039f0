"""Experiment: node std and calibrated radius against the error to one or two annotators (figures 4 and 5)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME
from chexmask_u.calibration.calibration import Of
from chexmask_u.calibration.conformal import images_needed
from chexmask_u.calibration.seen import Seen
from chexmask_u.calibration.worth import contour_errors, landmark_errors
from chexmask_u.errors import InputError
from chexmask_u.experiments import figures, records, statistics
from chexmask_u.experiments.base import Experiment, Finding, Outcome, Verdict, judged, too_few
from chexmask_u.experiments.statistics import LEAST_IMAGES, Estimate
from chexmask_u.experiments.study import Study
from chexmask_u.record import RADIUS_COVERAGE

# Equal parts of the nodes, by uncertainty.
QUANTILES = 10

# Shares of the nodes, the most uncertain ones first, that are left out.
SHARES = tuple(np.linspace(0, 0.95, 20).tolist())

# A correlation below it would tell nobody anything.
_MATTERS = 0.1

PAPER = "figures 4 and 5: r = 0.59 to 0.60 on 255 images of five hospitals"

OF: tuple[Of, ...] = ("landmark", "contour")


@dataclass(frozen=True)
class Measured:
    """What one network, or one set of records, said of B images.

    Attributes:
        label: of the weights or records.
        names: of the images.
        uncertainties: [B, 120] by name: "std", "across", and where there is a calibration "expected landmark" and
            "expected contour".
        predicted: distance that the std lets expect, [B, 120]: root of the sum of both axes' variances.
        errors: [B, 120] to "landmark" and "contour", the mean over the annotators; NaN where there is none.
        apart: mean distance of two annotators' landmarks, [B]; None where there is one.
        within: share of the landmarks of each image within their radius, by "landmark" and "contour".
        calibrated_on: names of the datasets that the calibration was made of.
    """

    label: str
    names: list[str]
    uncertainties: dict[str, NDArray[np.float64]]
    predicted: NDArray[np.float64]
    errors: dict[Of, NDArray[np.float64]]
    apart: NDArray[np.float64] | None
    within: dict[Of, NDArray[np.float64]]
    calibrated_on: list[str]


def check(study: Study) -> None:
    """Errors need annotations."""
    if study.of_records:
        records.annotators(study.settings.annotator)
        return
    study.need(LEAST_IMAGES, "error")
    if not np.isfinite(study.examples.landmarks).any():
        raise InputError("error takes annotated images, and none of these is; give them with --data")
    assert study.second is None or len(study.second) == len(study.examples)


def run(study: Study) -> Outcome:
    """Measure, correlate, and sort by uncertainty."""
    everything = [_of_records(study)] if study.of_records else _of_images(study)
    seed = study.settings.seed
    results: dict[str, Any] = {"by_weights": {one.label: _summary(one, seed) for one in everything}}
    table = [row for one in everything for row in _rows(one, results["by_weights"][one.label])]
    findings = [finding for one in everything for finding in _findings(one, results["by_weights"][one.label])]
    units = {
        "r": "Pearson's, over all nodes",
        "rho": "Spearman's, over all nodes",
        "image_rho": "Spearman's, over the images' means",
        "ause": "share of the mean error",
        "ece": "pixels of the 1024 frame",
        "error": "pixels of the 1024 frame",
        "within": "share of the nodes",
    }
    return Outcome(results, units, table, _figure(everything, results["by_weights"]), findings)


def _of_images(study: Study) -> list[Measured]:
    examples, second = study.examples, study.second
    people = [examples.landmarks * np.float32(FRAME)]
    people += [] if second is None else [second.landmarks * np.float32(FRAME)]
    from_masks = np.array([name in examples.from_masks for name in examples.names], bool)
    found = []
    for weights in study.weights:
        prediction = study.predict(weights)
        seen = Seen.of(prediction)
        errors = _errors(seen.landmarks, people)
        # Nodes spaced along a mask's contour are no landmarks that somebody saw.
        errors["landmark"][from_masks] = np.nan
        uncertainties = {"std": seen.std, "across": seen.across}
        within: dict[Of, NDArray[np.float64]] = {}
        calibration = study.calibration(weights)
        for of in OF if calibration is not None else ():
            assert calibration is not None
            radius = calibration.landmark if of == "landmark" else calibration.contour
            there = np.isfinite(errors[of])
            if radius is None or not there.any():
                continue
            if radius.scores.images < (needed := images_needed(RADIUS_COVERAGE)):
                print(
                    f"{weights.label}: the {of} radius of its calibration is not used: a coverage of"
                    f" {RADIUS_COVERAGE:g} takes at least {needed} annotated images, and it has {radius.scores.images}",
                    file=sys.stderr,
                )
                continue
            uncertainties[f"expected {of}"] = calibration.expected(seen, of)
            inside = errors[of] <= calibration.radii(seen, RADIUS_COVERAGE, of)
            rows = there.any(axis=1)
            within[of] = np.array([inside[row, there[row]].mean() for row in np.flatnonzero(rows)])
        predicted = np.sqrt(np.square(prediction.landmarks_std.astype(np.float64)).sum(axis=-1))
        made_of = [] if calibration is None else list(calibration.about["images"])
        found.append(
            Measured(weights.label, examples.names, uncertainties, predicted, errors, _apart(people), within, made_of)
        )
    return found


def _of_records(study: Study) -> Measured:
    people = records.annotators(study.settings.annotator)
    wanted = set(next(iter(people.values())))
    made = records.read(study.settings, wanted=wanted, points=True)
    statistics.enough(len(made), "error, of records that were annotated,")
    truth = [np.stack([of[name] for name in made.ids]) for of in people.values()]
    uncertainties = {"std": made.std.mean(axis=-1)}
    if np.isfinite(made.across).all():
        uncertainties["across"] = made.across
    predicted = np.sqrt(np.square(made.std).sum(axis=-1))
    assert study.records_facts is not None
    label = study.records_facts["kind"]
    return Measured(label, made.ids, uncertainties, predicted, _errors(made.landmarks, truth), _apart(truth), {}, [])


def _errors(landmarks: NDArray[np.floating], people: Sequence[NDArray[Any]]) -> dict[Of, NDArray[np.float64]]:
    return {
        "landmark": np.mean([landmark_errors(landmarks, truth) for truth in people], axis=0),
        "contour": np.mean([contour_errors(landmarks, truth) for truth in people], axis=0),
    }


def _apart(people: Sequence[NDArray[Any]]) -> NDArray[np.float64] | None:
    return None if len(people) < 2 else np.nanmean(landmark_errors(people[0], people[1]), axis=1)


def _summary(one: Measured, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"images": len(one.names)}
    if one.apart is not None:
        found |= statistics.mean(one.apart, seed).named("annotators_apart")
    for of in OF:
        errors = one.errors[of]
        rows = np.isfinite(errors).any(axis=1)
        if not rows.any():
            continue
        statistics.enough(int(rows.sum()), f"error, of images with an annotated {of},")
        errors = errors[rows]
        of_error: dict[str, Any] = {"images": int(rows.sum())}
        of_error |= statistics.mean(np.nanmean(errors, axis=1), seed).named("error")
        for name, values in one.uncertainties.items():
            if name.startswith("expected") and name != f"expected {of}":
                continue
            of_error[name] = _worth(values[rows], errors, one.label, seed)
        std = of_error["std"]
        std["reliability"] = reliability(one.predicted[rows], errors)
        std |= _ece(one.predicted[rows], errors, seed).named("ece")
        expected = one.uncertainties.get(f"expected {of}")
        if expected is not None:
            calibrated = of_error[f"expected {of}"]
            # What a calibration expects is the mean distance, and what a std does is its root mean square.
            calibrated["reliability"] = reliability(expected[rows], errors, power=1)
            calibrated |= _ece(expected[rows], errors, seed, power=1).named("ece")
            calibrated |= statistics.mean(one.within[of], seed).named("within_radius")
        found[of] = of_error
    return found


def _worth(values: NDArray[np.float64], errors: NDArray[np.float64], label: str, seed: int) -> dict[str, Any]:
    what = f"the uncertainty or error of {label}"
    found: dict[str, Any] = {}
    for name, estimate in statistics.correlated(values, errors, what, seed).items():
        found |= estimate.named(name)
    there = np.isfinite(errors)
    of_images = np.nanmean(np.where(there, values, np.nan), axis=1), np.nanmean(errors, axis=1)
    found |= statistics.correlated(*of_images, what, seed)["rho"].named("image_rho")
    left, best = sparsification(values[there], errors[there]), sparsification(errors[there], errors[there])
    found["sparsification"] = {"left_out": list(SHARES), "error": left, "oracle": best}
    found["ause"] = float((np.array(left) - best).mean() / errors[there].mean())
    found |= _extremes(values, errors, seed).named("top_over_bottom")
    return found


def sparsification(by: NDArray[np.float64], errors: NDArray[np.float64]) -> list[float]:
    """Mean error of the nodes [n] that are left as the share `SHARES` of them with the largest `by` is left out."""
    ordered = errors[np.argsort(by, kind="stable")]
    means = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    return [float(means[max(1, round((1 - share) * len(ordered))) - 1]) for share in SHARES]


def reliability(predicted: NDArray[np.float64], errors: NDArray[np.float64], power: int = 2) -> list[dict[str, Any]]:
    """Distance expected and found, px, in tenths of the nodes by what was expected.

    Args:
        predicted, errors: [B, 120]; NaN errors are left out.
        power: 2 for the root mean square of each tenth, 1 for its mean.
    """
    there = np.isfinite(errors)
    expected, found = predicted[there], errors[there]
    order = np.argsort(expected, kind="stable")
    return [
        {
            "nodes": len(rows),
            "expected": float((expected[rows] ** power).mean() ** (1 / power)),
            "found": float((found[rows] ** power).mean() ** (1 / power)),
        }
        for rows in np.array_split(order, QUANTILES)
    ]


def _tenths(by: NDArray[np.float64], errors: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
    """What each image adds to the tenths of all nodes by uncertainty, [B, 10, 3].

    Nodes, and the sums of that power of their errors and of `by`. Resampled images keep the tenths that their nodes are
    in.
    """
    there = np.isfinite(errors)
    tenth = np.full(errors.shape, -1)
    order = np.argsort(by[there], kind="stable")
    of_node = np.empty(len(order), np.int64)
    for index, rows in enumerate(np.array_split(order, QUANTILES)):
        of_node[rows] = index
    tenth[there] = of_node
    each = np.stack([np.ones_like(errors), errors**power, by**power], axis=-1)
    return np.stack([np.where((tenth == index)[..., None], each, 0).sum(axis=1) for index in range(QUANTILES)], axis=1)


def _ece(predicted: NDArray[np.float64], errors: NDArray[np.float64], seed: int, power: int = 2) -> Estimate:
    """Expected calibration error: mean over the tenths of |expected - found|, px, weighed by their nodes."""
    tenths = _tenths(predicted, errors, power)

    def ece(of: NDArray[np.float64]) -> NDArray[np.float64]:
        nodes, found, expected = np.moveaxis(of, -1, 0)
        with np.errstate(invalid="ignore"):
            off = np.abs((found / nodes) ** (1 / power) - (expected / nodes) ** (1 / power))
        return np.asarray((nodes * off).sum(axis=-1) / nodes.sum(axis=-1))

    return statistics.estimate(float(ece(tenths.sum(axis=0))), ece(statistics.sums(tenths, seed)))


def _extremes(values: NDArray[np.float64], errors: NDArray[np.float64], seed: int) -> Estimate:
    """Mean error of the most uncertain tenth of the nodes over that of the least."""
    tenths = _tenths(values, errors)

    def ratio(of: NDArray[np.float64]) -> NDArray[np.float64]:
        nodes, found = of[..., 0], of[..., 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = found / nodes
            return np.asarray(means[..., -1] / means[..., 0])

    return statistics.estimate(float(ratio(tenths.sum(axis=0))), ratio(statistics.sums(tenths, seed)))


def _rows(one: Measured, summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for of in OF:
        for name, worth in summary.get(of, {}).items():
            if not isinstance(worth, dict):
                continue
            row = {"weights": one.label, "error": f"distance to the {of}", "uncertainty": name}
            row["images"] = summary[of]["images"]
            for key in ("r", "rho", "image_rho", "top_over_bottom", "ece", "within_radius"):
                if key in worth:
                    low, high = worth[f"{key}_interval"]
                    row |= {key: worth[key], f"{key}_low": low, f"{key}_high": high}
            rows.append(row | {"ause": worth["ause"], "mean_error_px": summary[of]["error"]})
    return rows


def _findings(one: Measured, summary: dict[str, Any]) -> list[Finding]:
    of: Of = "landmark" if "landmark" in summary else "contour"
    found = []
    for name in ("std", f"expected {of}"):
        worth = summary[of].get(name)
        if worth is None:
            continue
        r = Estimate(worth["r"], *worth["r_interval"])
        tenths = Estimate(worth["top_over_bottom"], *worth["top_over_bottom_interval"])
        count = summary[of]["images"]
        verdict = judged(r.interval, count, matters=_MATTERS)
        told, known = ("std" if name == "std" else "calibrated radius"), ""
        if name != "std" and (both := {image.partition("/")[0] for image in one.names}.intersection(one.calibrated_on)):
            known = f"; its calibration was made of images of {', '.join(sorted(both))}, perhaps of these"
        apart = f"; annotators lie {summary['annotators_apart']:.1f} px apart" if "annotators_apart" in summary else ""
        found.append(
            Finding(
                f"A node's {told} and its error are positively correlated ({one.label})",
                PAPER,
                f"r {r.text()}, rho {worth['rho']:.2f} with the distance to the {of}, mean {summary[of]['error']:.1f}"
                f" px; the most uncertain tenth errs {tenths.text(1)} times as much as the least; ECE"
                f" {worth['ece']:.1f} px; {count} images{apart}{known}",
                verdict,
                too_few(count) or ("" if verdict is Verdict.HOLDS else _WHY),
            )
        )
    return found


_WHY = (
    "a squared error teaches no draw how far off it may be, and two thirds of the error lie along the contour, where"
    " annotators slide"
)


def _figure(everything: Sequence[Measured], summaries: dict[str, Any]) -> Figure:
    figure = figures.new(11, 3.4 * len(everything))
    grid = figure.subplots(len(everything), 3, squeeze=False)
    for one, axes in zip(everything, grid, strict=True):
        of: Of = "landmark" if "landmark" in summaries[one.label] else "contour"
        _draw_nodes(axes[0], one, summaries[one.label][of], of)
        _draw_reliability(axes[1], summaries[one.label][of], of)
        _draw_sparsification(axes[2], summaries[one.label][of], of)
    return figure


def _draw_nodes(axes: Axes, one: Measured, summary: dict[str, Any], of: Of) -> None:
    there = np.isfinite(one.errors[of])
    x, y = one.uncertainties["std"][there], np.maximum(one.errors[of][there], 0.1)
    axes.hexbin(x, y, xscale="log", yscale="log", gridsize=30, bins="log", cmap="cividis", mincnt=1, linewidths=0.1)
    figures.plain_ticks(axes.xaxis)
    figures.plain_ticks(axes.yaxis)
    r = Estimate(summary["std"]["r"], *summary["std"]["r_interval"])
    figures.tidy(
        axes, x="node std (px, log)", y=f"distance to the {of} (px, log)", title=f"{one.label}: r = {r.text()}"
    )


def _draw_reliability(axes: Axes, summary: dict[str, Any], of: Of) -> None:
    most = 0.0
    shown = {"std": ("std (RMS)", 0), f"expected {of}": ("calibrated (mean)", 2)}
    for name, (label, colour) in shown.items():
        if name not in summary:
            continue
        x, y = ([tenth[key] for tenth in summary[name]["reliability"]] for key in ("expected", "found"))
        axes.plot(x, y, color=figures.COLOURS[colour], marker=figures.MARKERS[colour], markersize=4, label=label)
        most = max(most, *x, *y)
    axes.plot([0, most], [0, most], color=figures.GREY, linewidth=1, linestyle="--", label="if calibrated")
    axes.legend(fontsize="small", frameon=False)
    figures.tidy(axes, x="distance expected (px)", y="distance found (px)", title="tenths of the nodes by uncertainty")


def _draw_sparsification(axes: Axes, summary: dict[str, Any], of: Of) -> None:
    shown = {"std": ("std", 0), "across": ("std across the contour", 1), f"expected {of}": ("calibrated", 2)}
    for name, (label, colour) in shown.items():
        if name in summary:
            curve = summary[name]["sparsification"]
            axes.plot(
                [100 * share for share in curve["left_out"]],
                curve["error"],
                color=figures.COLOURS[colour],
                label=f"{label}, AUSE {summary[name]['ause']:.2f}",
            )
    curve = summary["std"]["sparsification"]
    axes.plot([100 * share for share in curve["left_out"]], curve["oracle"], color="black", linestyle=":", label="best")
    axes.axhline(curve["error"][0], color=figures.GREY, linewidth=1, linestyle="--", label="at random")
    axes.legend(fontsize="small", frameon=False)
    figures.tidy(
        axes, x="most uncertain nodes left out (%)", y=f"mean distance to the {of} (px)", title="sparsification"
    )


EXPERIMENT = Experiment("Uncertainty and error", check, run)
