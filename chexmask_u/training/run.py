"""The folder of a training run: frozen settings, split, metrics, and at the end weights, scores, pictures and card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

import jinja2

from chexmask_u.calibration.worth import with_interval
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder, as_csv
from chexmask_u.runs.identity import library_versions
from chexmask_u.runs.lock import LOCK
from chexmask_u.settings import TrainSettings
from chexmask_u.training import examples as annotated
from chexmask_u.training.datasets import FORMS
from chexmask_u.training.examples import Examples, Problem
from chexmask_u.weight_files import WeightFile

SETTINGS = "training.json"
SCORES = "scores.json"
PROBLEMS = "problems.csv"
WEIGHTS = "model.safetensors"

# Where the settings keep which file the run was begun with.
_INITIAL_FILE = "initial_weights_file"

# Settings that say where things lie, and are no part of what was done.
_PLACES = ("data", "landmarks", "output", "address")


@dataclass(frozen=True)
class TrainingRun(Folder):
    """The folder of a training run."""

    def check_place(self) -> None:
        """Raise InputError if the folder holds something else than a training run."""
        # The owner file, and what an attempt wrote whose images were refused.
        self.check_own("training run", [SETTINGS], ignored=(LOCK, PROBLEMS))


def freeze(
    run: TrainingRun,
    settings: TrainSettings,
    train: Examples,
    validation: Examples,
    problems: Sequence[Problem],
    initial: WeightFile | None,
) -> None:
    """Record what fixes the numbers of the run, or check that the run which is there was made with the same.

    Args:
        initial: the weights that it begins with, with their digest; None for random ones.

    Raises:
        InputError: if it was not; the first difference is named.
    """
    initial_sha256 = None if initial is None else initial.sha256
    now: dict[str, Any] = {
        "settings": settings.numbers(),
        "data": {
            "train": len(train),
            "validation": len(validation),
            "sha256": {"train": train.digest(), "validation": validation.digest()},
        },
        "initial_weights": initial_sha256,
    }
    before = run.read_json(SETTINGS)
    if before is not None:
        # A setting that an older version did not have had the effect of its default.
        defaults = {field.name: field.default for field in fields(settings)}
        for name, value in now["settings"].items():
            begun_with = before["settings"].get(name, defaults[name])
            if begun_with != value:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{run.url}: was begun with {flag} {begun_with}, not {value}; "
                    "choose another --output, or the settings it was begun with"
                )
        initial_before = before.get("initial_weights")
        if initial_before != initial_sha256:
            raise InputError(
                f"{run.url}: was begun with {_weights(initial_before)}, not {_weights(initial_sha256)}; "
                "choose another --output, or the --initial-weights it was begun with"
            )
        if before["data"] != now["data"]:
            raise InputError(
                f"{run.url}: was begun with {before['data']['train']} and {before['data']['validation']} images, "
                f"and now there are {len(train)} and {len(validation)}, or others; "
                "choose another --output, or the data it was begun with"
            )
        return
    names, parts = [*train.names, *validation.names], ["train"] * len(train) + ["validation"] * len(validation)
    run.write(annotated.SPLIT, annotated.split_csv(names, parts))
    run.write(PROBLEMS, annotated.problems_csv(problems))
    # Last: it says that the run has begun.
    about = {
        "given": settings.asdict(),
        "versions": library_versions(),
        _INITIAL_FILE: None if initial is None else initial.facts(),
    }
    run.write_json(SETTINGS, now | about)


def begun_with(run: TrainingRun) -> dict[str, Any] | None:
    """What is kept of the weights that a run was begun with, as `weight_files.find_again` takes it; None for none."""
    before = run.read_json(SETTINGS) or {}
    facts = before.get(_INITIAL_FILE)
    return None if facts is None else {**facts, "sha256": before["initial_weights"]}


def _weights(sha256: str | None) -> str:
    return "random weights" if sha256 is None else f"the weights with sha256 {sha256[:12]}"


def metrics_csv(history: Sequence[Mapping[str, float]]) -> str:
    """One line per epoch; validation columns are empty where there was none."""
    return as_csv([{name: f"{value:.8g}" for name, value in row.items()} for row in history])


def command(settings: TrainSettings) -> str:
    """The command that makes such a run, without the places where its data lie."""
    flags = [f"--data {_dataset(value)}" for value in settings.data]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in _PLACES or value == field.default:
            continue
        if field.name == "initial_weights" and value != "demo" and "://" not in value:
            value = "WEIGHTS"
        flag = f"--{field.name.replace('_', '-')}"
        flags.append(flag if value is True else f"{flag} {value}")
    return " ".join(["chexmask-u train", *flags, "--output RUN"])


def _dataset(value: str) -> str:
    name, equals, _ = value.partition("=")
    return f"{name}=FOLDER" if equals and name in FORMS else "FOLDER"


def card(content: Mapping[str, Any]) -> str:
    """The model card of the weights.

    Args:
        content: what scores.json holds.
    """
    name = "mask_card.md.j2" if "entropy" in content["scores"] else "model_card.md.j2"
    template = resources.files("chexmask_u") / "templates" / name
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["with_interval"] = with_interval
    return environment.from_string(template.read_text()).render(content)
