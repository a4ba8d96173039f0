"""Experiment: do predictive and latent scores tell images that are no frontal chest radiographs (figure 3b)."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.experiments import figures, records, statistics
from chexmask_u.experiments.base import Experiment, Finding, Outcome, Verdict, judged, too_few
from chexmask_u.experiments.records import Records
from chexmask_u.experiments.statistics import RESAMPLINGS, Estimate
from chexmask_u.experiments.study import Study, Weights
from chexmask_u.images import corruptions
from chexmask_u.images.corruptions import ALTERATIONS, Image, generator
from chexmask_u.training.examples import Examples
from chexmask_u.training.shifts import no_chests

IN = "in"
NO_CHEST = "no chest"

_TURNS = ("upside down", "turned left", "turned right")
_CROPPED = 0.5

# Of every kind of drawing without a chest that can be varied, one for so many images.
_IMAGES_A_DRAWING = 12

# In three parts: the forest grows on the first, is chosen on the second and judged on the third.
LEAST_IN, LEAST_OUT = 12, 6

# An AUC nearer to chance would help nobody.
_MATTERS = 0.1

# What is chosen on the validation part.
_GRID = {"max_samples": (0.5, 1.0), "max_features": (0.25, 0.5, 1.0), "logarithm": (False, True)}
_TREES = 100

SCORES = {"predictive": "mean node std", "latent": "isolation forest on sigma", "ood_score": "our ood_score"}


@dataclass(frozen=True)
class Scored:
    """n images as a network, or a release, sees them.

    Attributes:
        label: of the weights or records.
        names: of the images; those of one name are copies of one, and go together.
        kinds: "in", or the kind of what is out.
        groups: what densities are drawn of: datasets, sources and kinds.
        uncertainty: mean node std [n], px of the 1024 frame.
        sigma: [n, 64].
        ood_score: [n]; None where there is none.
    """

    label: str
    names: list[str]
    kinds: list[str]
    groups: list[str]
    uncertainty: NDArray[np.float64]
    sigma: NDArray[np.float64]
    ood_score: NDArray[np.float64] | None

    @property
    def is_out(self) -> NDArray[np.bool_]:
        return np.array([kind != IN for kind in self.kinds], bool)


def check(study: Study) -> None:
    """Both classes must be there, and enough of each."""
    if study.of_records:
        return
    if study.settings.labels is not None:
        _enough(_labelled(study))
    else:
        study.need(LEAST_IN, "ood, of images that are in,")


def run(study: Study) -> Outcome:
    """Score, choose the forest on one part of the images, and judge on another."""
    everything = [_of_records(study)] if study.of_records else _of_images(study)
    seed = study.settings.seed
    results: dict[str, Any] = {"by_weights": {}}
    table: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for one in everything:
        _enough(one.kinds)
        statistics.varies(one.uncertainty, f"the std of {one.label}")
        scores, chosen = _scores(one, seed)
        parts = _parts(one, seed)
        aucs = _aucs(one, scores, parts == 2, seed)
        by_score = {
            score: {kind: {**auc.named("auc"), "n_out": count} for kind, (auc, count) in of.items()}
            for score, of in aucs.items()
        }
        results["by_weights"][one.label] = {
            "forest": chosen,
            "scores": by_score,
            "test_in": int(((parts == 2) & ~one.is_out).sum()),
        }
        for score, of in aucs.items():
            table += [
                {"weights": one.label, "score": SCORES[score], "out": kind, "n_out": count}
                | {"auc": auc.value, "low": auc.low, "high": auc.high}
                for kind, (auc, count) in of.items()
            ]
            findings.append(_finding(one, score, of, int(((parts == 2) & ~one.is_out).sum())))
    units = {"auc": "0.5: chance, 1: all told apart", "n_out": "images", "test_in": "images"}
    return Outcome(results, units, table, _figure(everything, results["by_weights"]), findings)


def _enough(kinds: Sequence[str]) -> None:
    out = sum(kind != IN for kind in kinds)
    if out == 0 or out == len(kinds):
        raise InputError(f"an AUC takes both classes, and all {len(kinds)} images are {IN if out == 0 else 'out'}")
    statistics.enough(len(kinds) - out, "ood, of images that are in,", LEAST_IN)
    statistics.enough(out, "ood, of images that are out,", LEAST_OUT)


def _of_images(study: Study) -> list[Scored]:
    examples = study.examples
    datasets = [name.partition("/")[0] for name in examples.names]
    if study.settings.labels is not None:
        kinds = _labelled(study)
        groups = [dataset if kind == IN else kind for dataset, kind in zip(datasets, kinds, strict=True)]
        return [_seen(study, weights, examples, kinds, groups) for weights in study.weights]
    inside = [IN] * len(examples)
    if study.settings.out_of:
        outside = study.read_folder(study.settings.out_of, "--out-of")
        statistics.enough(len(outside), "ood, of images that are out,", LEAST_OUT)
        kinds = [name.partition("/")[0] for name in outside.names]
        return [
            _joined(
                weights.label,
                [
                    _seen(study, weights, examples, inside, datasets),
                    _seen(study, weights, outside, [f"of {kind}" for kind in kinds], kinds),
                ],
            )
            for weights in study.weights
        ]
    drawings = _drawings(len(examples), study.settings.seed)
    found = []
    for weights in study.weights:
        parts = [_seen(study, weights, examples, inside, datasets)]
        for kind, alter in _altered(study).items():
            parts.append(_seen(study, weights, examples, [kind] * len(examples), [kind] * len(examples), alter))
        parts.append(_seen(study, weights, drawings, [NO_CHEST] * len(drawings), [NO_CHEST] * len(drawings)))
        found.append(_joined(weights.label, parts))
    return found


def _altered(study: Study) -> dict[str, Callable[[int], Image]]:
    """What is done to the study's own images so that they are out, by kind."""
    images, names = study.examples.images, study.examples.names

    def turned(row: int) -> Image:
        return ALTERATIONS[_TURNS[int(generator(f"turn\n{names[row]}").integers(len(_TURNS)))]](images[row])

    return {
        "rotated": turned,
        "cropped": lambda row: corruptions.crop(images[row], _CROPPED),
        "inverted": lambda row: corruptions.invert(images[row]),
    }


def _drawings(count: int, seed: int) -> Examples:
    shown = list(no_chests(max(2, count // _IMAGES_A_DRAWING), seed))
    names = [f"{NO_CHEST}/{index}-{kind}" for index, (kind, _) in enumerate(shown)]
    return Examples(names, np.stack([image for _, image in shown]), np.full((len(shown), 120, 2), np.nan, np.float32))


def _labelled(study: Study) -> list[str]:
    """Whether each image is "in" or "out", as --labels says.

    Raises:
        InputError: if the file cannot be used, or leaves an image out.
    """
    url = study.settings.labels or ""
    fs, path = storage.resolve(url)
    with storage.explained(url, missing="no such file of --labels"):
        rows = list(csv.DictReader(io.StringIO(fs.cat_file(path).decode("utf-8-sig"))))
    if not rows or not {"name", "label"} <= rows[0].keys():
        raise InputError(f"--labels {url}: is no CSV with columns name and label")
    labels = {str(row["name"]).strip(): str(row["label"]).strip().lower() for row in rows}
    if unknown := sorted(set(labels.values()) - {"in", "out"}):
        raise InputError(f"--labels {url}: a label is in or out, not {unknown[0]!r}")
    found = []
    for name in study.examples.names:
        label = labels.get(name, labels.get(name.partition("/")[2]))
        if label is None:
            raise InputError(f"--labels {url}: does not say whether {name} is in or out")
        found.append(label)
    return found


def _seen(
    study: Study,
    weights: Weights,
    examples: Examples,
    kinds: list[str],
    groups: list[str],
    alter: Callable[[int], Image] | None = None,
) -> Scored:
    prediction = study.predict(weights, "" if alter is None else kinds[0], alter, examples)
    calibration = study.calibration(weights)
    known = None if calibration is None or calibration.known is None else calibration.ood_score(prediction)
    return Scored(
        weights.label,
        examples.names,
        kinds,
        groups,
        prediction.landmarks_std.mean(axis=(1, 2), dtype=np.float64),
        prediction.latent_std.astype(np.float64),
        None if known is None else known.astype(np.float64),
    )


def _joined(label: str, parts: Sequence[Scored]) -> Scored:
    known = [part.ood_score for part in parts if part.ood_score is not None]
    return Scored(
        label,
        [name for part in parts for name in part.names],
        [kind for part in parts for kind in part.kinds],
        [group for part in parts for group in part.groups],
        np.concatenate([part.uncertainty for part in parts]),
        np.concatenate([part.sigma for part in parts]),
        np.concatenate(known) if len(known) == len(parts) else None,
    )


def _of_records(study: Study) -> Scored:
    settings = study.settings
    if settings.published:
        raise InputError("ood takes every latent's sigma, which was not published; give --run or --release")
    assert study.records_facts is not None
    label = study.records_facts["kind"]
    made = records.read(settings, latents=True)
    if not settings.out_of:
        scored = np.isfinite(made.dice)
        if not scored.any():
            raise InputError("no record has a Dice RCA score; say what is out with --out-of")
        rows = np.flatnonzero(scored).tolist()
        kinds = [IN if made.dice[row] >= settings.dice else f"Dice RCA below {settings.dice:g}" for row in rows]
        groups = [
            f"{made.sources[row]}{'' if kind == IN else ', ' + kind}" for row, kind in zip(rows, kinds, strict=True)
        ]
        return _part(label, made, rows, kinds, groups)
    everything = list(range(len(made)))
    parts = [_part(label, made, everything, [IN] * len(made), made.sources)]
    for url in settings.out_of:
        outside = records.read_at(url, latents=True)
        if outside is None:
            raise InputError(
                f"--out-of {url}: holds no run or release, as it must beside --run or --release{storage.nearest(url)}"
            )
        kinds = [f"of {source}" for source in outside.sources]
        parts.append(_part(label, outside, list(range(len(outside))), kinds, outside.sources))
    return _joined(label, parts)


def _part(label: str, made: Records, rows: list[int], kinds: list[str], groups: list[str]) -> Scored:
    known = made.ood_score[rows]
    names = [f"{made.sources[row]}/{made.ids[row]}" for row in rows]
    of_release = known if np.isfinite(known).all() else None
    return Scored(label, names, kinds, groups, made.uncertainty[rows], made.latent_std[rows], of_release)


def _parts(one: Scored, seed: int) -> NDArray[np.int64]:
    """Part of each image: 0 to grow the forest, 1 to choose it, 2 to judge; copies of an image stay together.

    Images that are in are dealt out in turn, in an order that their names and the seed fix; so are others, to parts 1
    and 2, unless they are copies of one that is in.
    """
    order = sorted(dict.fromkeys(one.names), key=lambda name: generator(f"part\n{seed}\n{name}").bytes(8))
    inside = {name for name, kind in zip(one.names, one.kinds, strict=True) if kind == IN}
    part_of = {name: index % 3 for index, name in enumerate(name for name in order if name in inside)}
    part_of |= {name: 1 + index % 2 for index, name in enumerate(name for name in order if name not in inside)}
    return np.array([part_of[name] for name in one.names], np.int64)


def _scores(one: Scored, seed: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """The scores of each image, the larger the odder, and the forest that was chosen."""
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score

    scores: dict[str, NDArray[np.float64]] = {"predictive": one.uncertainty}
    chosen: dict[str, Any] = {}
    if np.ptp(one.sigma, axis=0).any():
        parts, best = _parts(one, seed), -1.0
        for values in itertools.product(*_GRID.values()):
            given = dict(zip(_GRID, values, strict=True))
            features = np.log(np.maximum(one.sigma, 1e-6)) if given["logarithm"] else one.sigma
            forest = IsolationForest(
                n_estimators=_TREES,
                max_samples=given["max_samples"],
                max_features=given["max_features"],
                random_state=seed,
            )
            score = -forest.fit(features[(parts == 0) & ~one.is_out]).score_samples(features)
            auc = float(roc_auc_score(one.is_out[parts == 1], score[parts == 1]))
            if auc > best:
                best, scores["latent"], chosen = auc, score, {**given, "trees": _TREES, "validation_auc": auc}
    if one.ood_score is not None:
        scores["ood_score"] = one.ood_score
    return scores, chosen


def _aucs(
    one: Scored, scores: dict[str, NDArray[np.float64]], test: NDArray[np.bool_], seed: int
) -> dict[str, dict[str, tuple[Estimate, int]]]:
    """AUC of each score for each kind that is out, and for all of them, with how many images were out."""
    kinds = np.array(one.kinds)
    names = np.array(one.names)
    outside = [kind for kind in dict.fromkeys(one.kinds) if kind != IN]
    asked = {kind: kinds == kind for kind in outside} | ({"all": one.is_out} if len(outside) > 1 else {})
    inside = test & ~one.is_out
    return {
        name: {
            kind: (
                auc(score[inside], score[test & rows], names[test & rows], seed),
                int((test & rows).sum()),
            )
            for kind, rows in asked.items()
            if (test & rows).sum() >= 2
        }
        for name, score in scores.items()
    }


def auc(usual: NDArray[np.float64], odd: NDArray[np.float64], of: NDArray[np.str_], seed: int) -> Estimate:
    """Area under the curve of telling odd images from usual ones, with an interval over images.

    Args:
        usual, odd: scores, the larger the odder, [n] and [m].
        of: names of the odd images [m]: those of one name are drawn together.
        seed: fixes the samples.
    """
    from scipy.stats import rankdata

    def area(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
        # Mann and Whitney's statistic is the area, ties counting half.
        ranks = rankdata(np.concatenate([inside, outside]))[len(inside) :]
        return float((ranks.mean() - (len(outside) + 1) / 2) / len(inside))

    rng = generator(f"auc\n{seed}")
    rows = [np.flatnonzero(of == name) for name in dict.fromkeys(of.tolist())]
    again = np.empty(RESAMPLINGS)
    for index in range(RESAMPLINGS):
        taken = np.concatenate([rows[one] for one in rng.integers(0, len(rows), len(rows))])
        again[index] = area(usual[rng.integers(0, len(usual), len(usual))], odd[taken])
    return statistics.estimate(area(usual, odd), again)


_WHY = "nothing in training tells the network of such images, and it draws a chest with the usual spread"


def _finding(one: Scored, score: str, of: dict[str, tuple[Estimate, int]], test_in: int) -> Finding:
    whole, test_out = of["all"] if "all" in of else next(iter(of.values()))
    kinds = "; ".join(f"{kind} {auc_of.text()} ({count})" for kind, (auc_of, count) in of.items())
    judged_of = min(test_in, test_out)
    verdict = judged(whole.interval, judged_of, least=0.5, matters=_MATTERS)
    cause = ""
    if verdict is not Verdict.HOLDS:
        cause = too_few(judged_of, "test images of either class") or _WHY
    elif score == "ood_score":
        cause = "its calibration may know some of the images that are in, which flatters it"
    return Finding(
        f"{SCORES[score][0].upper()}{SCORES[score][1:]} tells odd images ({one.label})",
        "figure 3b" if score != "ood_score" else "not in the paper",
        f"AUC: {kinds}; against {test_in} test images that are in",
        verdict,
        cause,
    )


def _figure(everything: Sequence[Scored], summaries: dict[str, Any]) -> Figure:
    figure = figures.new(11, 3.6 * len(everything))
    grid = figure.subplots(len(everything), 2, squeeze=False, width_ratios=(1.4, 1))
    for one, (left, right) in zip(everything, grid, strict=True):
        groups = np.array(one.groups)
        for index, group in enumerate(dict.fromkeys(one.groups)):
            values = np.log10(one.uncertainty[groups == group])
            style = {"color": figures.COLOURS[index % 6], "linestyle": ("-", "--", ":")[index // 6 % 3]}
            _density(left, values, f"{group} ({len(values)})", style)
        left.legend(fontsize="small", frameon=False)
        figures.tidy(
            left, x="log10 of the mean node std in px of the 1024 frame", y="density", title=f"{one.label}: densities"
        )
        scores = summaries[one.label]["scores"]
        kinds = list(dict.fromkeys(kind for of in scores.values() for kind in of))
        for index, (score, of) in enumerate(scores.items()):
            places = [kinds.index(kind) + 0.2 * (index - 1) for kind in of]
            values = [found["auc"] for found in of.values()]
            low = [found["auc"] - found["auc_interval"][0] for found in of.values()]
            high = [found["auc_interval"][1] - found["auc"] for found in of.values()]
            right.errorbar(
                values,
                places,
                xerr=[low, high],
                fmt=figures.MARKERS[index],
                color=figures.COLOURS[index],
                markersize=5,
                label=SCORES[score],
            )
        right.axvline(0.5, color=figures.GREY, linewidth=1, linestyle="--")
        right.set_yticks(range(len(kinds)), kinds)
        right.invert_yaxis()
        right.legend(fontsize="small", frameon=False)
        figures.tidy(right, x="AUC on test images", y="")
    return figure


def _density(axes: Any, values: NDArray[np.float64], label: str, style: dict[str, Any]) -> None:
    """SciPy's Gaussian kernel density; a tick for each where there are too few, or all are alike."""
    from scipy.stats import gaussian_kde

    if len(values) < 5 or np.ptp(values) == 0:
        axes.plot(values, np.zeros(len(values)), "|", markersize=10, color=style["color"], label=label)
        return
    margin = 0.3 * np.ptp(values)
    x = np.linspace(values.min() - margin, values.max() + margin, 200)
    axes.plot(x, gaussian_kde(values)(x), label=label, **style)


EXPERIMENT = Experiment("Out of distribution", check, run)
