"""Experiment: run every one that the given data allow, and write one page of what holds, findings.html."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from matplotlib.figure import Figure

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.experiments import RESULTS, carry_out, figures, get
from chexmask_u.experiments.base import Experiment, Finding, Outcome, Verdict
from chexmask_u.experiments.study import Study
from chexmask_u.folder import Folder
from chexmask_u.settings import ALL_EXPERIMENTS, EXPERIMENTS

PAGE = "findings.html"

_COLOURS = {Verdict.HOLDS: "#009e73", Verdict.FAILS: "#d55e00", Verdict.UNKNOWN: "#6b6b6b"}
_MARKS = {Verdict.HOLDS: "o", Verdict.FAILS: "X", Verdict.UNKNOWN: "$?$"}


def check(study: Study) -> None:
    """Images, weights and records that were given must be there; what each experiment lacks, the page says."""
    if study.has_images:
        study.need(1, "an experiment")
        assert study.networks
    assert study.records_facts is None or study.records_facts["n"]


def run(study: Study) -> Outcome:
    """Run each in a folder of its own; one that has been run there is taken as it is."""
    folder = Folder(storage.normalise(study.settings.output))
    found: dict[str, dict[str, Any]] = {}
    lacking: dict[str, str] = {}
    for name in EXPERIMENTS:
        if name == ALL_EXPERIMENTS:
            continue
        own = Folder(folder.path(name))
        before = own.read_json(RESULTS)
        try:
            found[name] = carry_out(name, _fitting(name, study), own) if before is None else before
        except InputError as error:
            lacking[name] = str(error)
    if not found:
        raise InputError(f"none of the experiments can be run: {'; '.join(dict.fromkeys(lacking.values()))}")
    pictures = {name: Folder(folder.path(name)).read("figure.png") for name in found}
    folder.write(PAGE, render(found, lacking, pictures))
    findings = [
        Finding(**{**one, "verdict": Verdict(one["verdict"])}) for of in found.values() for one in of["findings"]
    ]
    table = [
        {"experiment": name, **{key: one[key] for key in ("claim", "paper", "ours", "verdict", "cause")}}
        for name, of in found.items()
        for one in of["findings"]
    ]
    results = {
        "experiments": {name: f"{name}/{RESULTS}" for name in found},
        "not_run": lacking,
        "verdicts": dict(Counter(str(finding.verdict) for finding in findings)),
        "page": PAGE,
    }
    return Outcome(results, {}, table, _figure(findings), findings)


def _fitting(name: str, study: Study) -> Study:
    """The study with the weights that an experiment takes."""
    return study if get(name).takes_masks or not study.has_images else study.of_landmarks()


def render(
    found: Mapping[str, Mapping[str, Any]], lacking: Mapping[str, str], pictures: Mapping[str, bytes | None]
) -> str:
    """The page: one file, which asks for nothing from anywhere.

    Args:
        found: results.json of each experiment.
        lacking: why others were not run.
        pictures: figure.png of each experiment.
    """
    source = (resources.files("chexmask_u") / "templates" / "findings.html.j2").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        experiments=[
            {
                "name": name,
                "about": EXPERIMENTS.get(name, name),
                "of": of,
                "made_of": made_of(of),
                "png": base64.b64encode(picture).decode("ascii") if (picture := pictures[name]) else None,
            }
            for name, of in found.items()
        ],
        lacking=lacking,
        counts=Counter(finding["verdict"] for of in found.values() for finding in of["findings"]),
        verdicts=[str(verdict) for verdict in Verdict],
    )


def made_of(results: Mapping[str, Any]) -> str:
    """Images, weights and draws of an experiment, in one line."""
    told = []
    if results["images"]:
        counts = ", ".join(f"{count} of {name}" for name, count in results["images"]["by_dataset"].items())
        split = results["settings"]["split"]
        told.append(f"{counts} images" + (f", the {results['settings']['part']} part of its split" if split else ""))
    if results["records"]:
        told.append(f"{results['records']['n']:,} records of a {results['records']['kind']}")
    told += [
        f"{one['label']} ({one['variant']}, {one['input_size']}, sha256 {one['sha256'][:8]})"
        for one in results["weights"]
    ]
    told.append(f"N = {results['samples']}, seed {results['seed']}, chexmask_u {results['versions']['chexmask_u']}")
    return "; ".join(told)


def _figure(findings: Sequence[Finding]) -> Figure:
    """Every claim with its verdict."""
    figure = figures.new(11, 0.6 + 0.27 * len(findings))
    axes = figure.subplots()
    for place, finding in enumerate(findings):
        axes.plot([0], [place], marker=_MARKS[finding.verdict], color=_COLOURS[finding.verdict], markersize=8)
        axes.text(0.02, place, f"{finding.verdict}: {finding.claim}", va="center", fontsize="small", parse_math=False)
    axes.set(xlim=(-0.02, 1), ylim=(len(findings) - 0.5, -0.5))
    axes.set_axis_off()
    return figure


EXPERIMENT = Experiment("The paper's findings", check, run, takes_masks=True)
