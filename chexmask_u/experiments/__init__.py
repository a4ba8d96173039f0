"""The paper's experiments on any weights and images; a module here that defines `EXPERIMENT` is one.

Its docstring's first line, after "Experiment: ", is what ``--help`` says of it. An experiment predicts by
`Study.predict` alone, and gives back an `Outcome`; all that is written, checked and said of it is done here.
"""

from __future__ import annotations

import importlib
import json
import shlex
from dataclasses import fields
from typing import Any

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.experiments import figures
from chexmask_u.experiments.base import Experiment, Outcome
from chexmask_u.experiments.statistics import INTERVAL, rounded
from chexmask_u.experiments.study import PREDICTIONS, Study
from chexmask_u.folder import Folder, as_csv
from chexmask_u.result import Result
from chexmask_u.runs.identity import library_versions
from chexmask_u.runs.job import check_places
from chexmask_u.settings import ALL_EXPERIMENTS, EXPERIMENTS, ExperimentSettings, flag
from chexmask_u.weight_files import say_if_demonstration

# What an experiment was begun with, and what it found.
BEGUN, RESULTS = "experiment.json", "results.json"


def get(name: str) -> Experiment:
    """The experiment of that name."""
    found: Experiment = importlib.import_module(f"{__name__}.{name}").EXPERIMENT
    return found


def run(settings: ExperimentSettings) -> dict[str, Any]:
    """Run one experiment, or go on with it.

    Returns:
        What results.json holds.

    Raises:
        InputError: if what is given is not enough or cannot be used, or the output holds something else.
        CheckpointError: as `load_model`.
    """
    check_places({"--output": settings.output})
    folder = Folder(storage.normalise(settings.output))
    check_begun(folder, settings.experiment, settings, None)
    study = Study(settings, Folder(folder.path(PREDICTIONS)))
    return carry_out(settings.experiment, study, folder)


def carry_out(name: str, study: Study, folder: Folder) -> dict[str, Any]:
    """Check, measure and write one experiment of a study to a folder; gives what results.json holds."""
    experiment = get(name)
    if study.has_images and not experiment.takes_masks:
        study.refuse_masks()
    experiment.check(study)
    facts = rounded(study.facts())
    check_begun(folder, name, study.settings, facts)
    for one in facts["weights"]:
        say_if_demonstration(one["source"])
    try:
        outcome = experiment.run(study)
    except InputError:
        if RESULTS not in folder.names():
            # It was never begun; with other images or settings it may be.
            folder.remove(BEGUN)
        raise
    results = rounded(
        {
            "experiment": name,
            "title": experiment.title,
            **outcome.results,
            "findings": [vars(finding) for finding in outcome.findings],
            "n": facts["images"]["n"] if facts["images"] else facts["records"]["n"],
            "interval": INTERVAL,
            "units": dict(outcome.units),
            **facts,
            "settings": study.settings.asdict(),
            "command": command(name, study.settings),
            "versions": library_versions(),
        }
    )
    folder.write("table.csv", as_csv(rounded(list(outcome.table))))
    write_figure(folder, outcome)
    folder.write_json(RESULTS, results)
    return dict(results)


def command(name: str, settings: ExperimentSettings) -> str:
    """What to type to do it again."""
    words = ["chexmask-u", "experiment", name]
    for one in fields(settings):
        value = getattr(settings, one.name)
        if one.name in ("experiment", "output") or value == one.default:
            continue
        if one.metadata["only"] and name not in one.metadata["only"]:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += [flag(one.name), str(each)]
    return storage.redact(shlex.join([*words, "--output", settings.output]))


def write_figure(folder: Folder, outcome: Outcome) -> None:
    """figure.png and figure.svg."""
    folder.write("figure.png", figures.png(outcome.figure))
    folder.write("figure.svg", figures.svg(outcome.figure))


def check_begun(folder: Folder, name: str, settings: ExperimentSettings, facts: dict[str, Any] | None) -> None:
    """Check that a folder holds nothing, or the same experiment; and say what is begun, once its facts are known.

    Raises:
        InputError: naming the first difference.
    """
    # Experiments that were run apart, of which `all` makes one page.
    beside = tuple(EXPERIMENTS) if name == ALL_EXPERIMENTS else ()
    folder.check_own("experiment", [BEGUN], ignored=("problems.csv", PREDICTIONS, *beside))
    before = folder.read_json(BEGUN)
    now: dict[str, Any] = {flag(one): value for one, value in settings.numbers().items()} | {"experiment": name}
    if facts is not None:
        now["weights"] = [one["sha256"] for one in facts["weights"]]
        now["images"] = None if facts["images"] is None else facts["images"]["sha256"]
        now["records"] = None if facts["records"] is None else facts["records"]["sha256"]
    # As they are read again.
    now = json.loads(json.dumps(now))
    for what, value in now.items():
        if before is not None and what in before and before[what] != value:
            raise InputError(
                f"{folder.url}: was begun with other settings ({what} was {before[what]}, now {value});"
                " type the same command again, or choose another --output"
            )
    if before is None and facts is not None:
        folder.write_json(BEGUN, now)


def table(results: dict[str, Any]) -> str:
    """The findings in lines for people."""
    lines = [f"{results['title']} ({results['n']} images)"]
    for finding in results["findings"]:
        lines += [f"  {finding['claim']}: {finding['verdict']}", f"    {finding['ours']}"]
        lines += [f"    {finding['cause']}"] if finding["cause"] else []
    return "\n".join(lines)


def verb(settings: ExperimentSettings) -> Result:
    """`chexmask-u experiment NAME`."""
    results = run(settings)
    return Result(results, f"{table(results)}\n  {settings.output}/{RESULTS}")
