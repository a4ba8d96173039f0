"""Experiment: uncertainty of every record against its Dice RCA score, per source (figure 3c)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexmask_u.errors import InputError
from chexmask_u.experiments import figures, records, statistics
from chexmask_u.experiments.base import Experiment, Finding, Outcome, Verdict, judged, too_few
from chexmask_u.experiments.records import Records
from chexmask_u.experiments.statistics import LEAST_IMAGES, Estimate
from chexmask_u.experiments.study import Study
from chexmask_u.settings import RECORDS_NEEDED

# A rank correlation nearer to nothing would tell nobody anything.
_MATTERS = 0.1

MEASURES = {"uncertainty": "mean node std", "sigma": "latent sigma"}

# Points that a scatter plot shows at most; above, their density.
_POINTS = 3_000


def check(study: Study) -> None:
    """Scores come with records."""
    if not study.settings.has_records:
        raise InputError(RECORDS_NEEDED)
    assert study.records_facts is not None
    statistics.enough(study.records_facts["n"], "rca")


def run(study: Study) -> Outcome:
    """Correlate, source by source."""
    found = records.read(study.settings)
    scored = np.isfinite(found.dice)
    if not scored.any():
        raise InputError(f"none of the {len(found)} records has a Dice RCA score; join the manifest with CheXmask CSVs")
    seed = study.settings.seed
    names = np.array(found.sources)
    groups = {name: scored & (names == name) for name in dict.fromkeys(found.sources)}
    left_out = {name: int(rows.sum()) for name, rows in groups.items() if rows.sum() < LEAST_IMAGES}
    groups = {name: rows for name, rows in groups.items() if name not in left_out}
    if not groups:
        raise InputError(f"no source has {LEAST_IMAGES} records with a Dice RCA score")
    if len(groups) > 1:
        groups["all"] = scored
    by_source: dict[str, Any] = {}
    for name, rows in groups.items():
        of: dict[str, Any] = {"records": int(rows.sum())}
        for measure in MEASURES:
            values = getattr(found, measure)[rows]
            # Of sigma nothing is published, and some networks have none that varies.
            if measure == "uncertainty" or (np.isfinite(values).all() and np.ptp(values)):
                told = statistics.correlated(values, found.dice[rows], f"{measure} or Dice RCA of {name}", seed)
                of[measure] = {key: value for one, est in told.items() for key, value in est.named(one).items()}
        by_source[name] = of
    table = [
        {"source": name, "records": of["records"], "measure": MEASURES[measure]}
        | {
            f"{key}{end}": value
            for key in ("r", "rho")
            for end, value in zip(
                ("", "_low", "_high"), (of[measure][key], *of[measure][f"{key}_interval"]), strict=True
            )
        }
        for name, of in by_source.items()
        for measure in MEASURES
        if measure in of
    ]
    results = {"by_source": by_source, "left_out": left_out, "without_score": int((~scored).sum())}
    units = {"r": "Pearson's, with Dice RCA (Mean)", "rho": "Spearman's, likewise", "records": "count"}
    findings = [_finding(name, of) for name, of in by_source.items()]
    return Outcome(results, units, table, _figure(found, groups), findings)


def _finding(name: str, of: dict[str, Any]) -> Finding:
    rho = Estimate(of["uncertainty"]["rho"], *of["uncertainty"]["rho_interval"])
    verdict = judged((-rho.high, -rho.low), of["records"], matters=_MATTERS)
    return Finding(
        f"The larger the uncertainty, the lower Dice RCA ({name})",
        "figure 3c",
        f"rho {rho.text()}, r {of['uncertainty']['r']:.2f}; {of['records']:,} records",
        verdict,
        too_few(of["records"], "records")
        or ("" if verdict is Verdict.HOLDS else "the score is of the published mask, and of overlap, not of landmarks"),
    )


def _figure(found: Records, groups: dict[str, NDArray[np.bool_]]) -> Figure:
    shown = {name: rows for name, rows in groups.items() if name != "all"}
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = figures.new(3.8 * columns + 0.4, 3.2 * lines + 0.2)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (name, rows) in zip(grid, shown.items(), strict=False):
        x, y = found.dice[rows], found.uncertainty[rows]
        if rows.sum() <= _POINTS:
            axes.plot(x, y, ".", color=figures.COLOURS[0], markersize=4, alpha=0.5)
        else:
            axes.hexbin(x, y, yscale="log", gridsize=40, bins="log", cmap="cividis", mincnt=1)
        figures.log_y(axes)
        figures.tidy(axes, x="Dice RCA (Mean)", y="mean node std (px, log)", title=f"{name}: {rows.sum():,}")
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    return figure


EXPERIMENT = Experiment("Uncertainty and RCA scores", check, run)
