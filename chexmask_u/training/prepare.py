"""What a training begins with: examples read, checked and split, settings frozen, and initial weights that fit."""

from __future__ import annotations

from typing import Any

from chexmask_u.errors import InputError
from chexmask_u.model.network import BaseNetwork
from chexmask_u.settings import TrainSettings
from chexmask_u.training import examples as annotated
from chexmask_u.training.examples import Examples
from chexmask_u.training.run import PROBLEMS, TrainingRun, begun_with, freeze
from chexmask_u.weight_files import WeightFile, find_again, load_network

# Held-out drawings where there is nothing else to hold out.
HELD_OUT_DRAWINGS = 64


def prepare(settings: TrainSettings, url: str, initial: WeightFile | None) -> tuple[Examples, Examples, dict[str, Any]]:
    """Read, check and split all examples, and freeze the run's settings and the weights that it begins with.

    Returns:
        Training examples, drawings last; validation examples; and how many there are of what.
    """
    run = TrainingRun(url)
    found, problems = annotated.read_examples(settings, settings.input_size)
    if problems:
        run.write(PROBLEMS, annotated.problems_csv(problems))
    annotated.refuse(problems, settings.on_bad)
    parts = annotated.split(found.names, settings.validation, settings.split)
    training, validation = (
        found.take([row for row, part in enumerate(parts) if part == wanted]) for wanted in ("train", "validation")
    )
    first_drawing = len(training)
    if settings.drawings:
        training = annotated.join([training, annotated.drawn(settings.drawings, settings.seed, settings.input_size)])
    if not len(found):
        validation = annotated.held_out(HELD_OUT_DRAWINGS, settings.seed, settings.input_size)
    if not len(training) or not len(validation):
        raise InputError(
            f"{len(training)} images are left to train on and {len(validation)} to validate; "
            "see --data, --split and --validation"
        )
    freeze(run, settings, training, validation, problems, initial)
    names = [*((name, "train") for name in training.names), *((name, "validation") for name in validation.names)]
    datasets: dict[str, dict[str, int]] = {}
    for name, part in names:
        counts = datasets.setdefault(name.partition("/")[0], {"train": 0, "validation": 0})
        counts[part] += 1
    facts = {
        "train": len(training),
        "validation": len(validation),
        "left_out": len(problems),
        "first_drawing": first_drawing,
        "datasets": datasets,
        "validation_names": validation.names,
        "initial_sha256": None if initial is None else initial.sha256,
    }
    return training, validation, facts


def find_initial(settings: TrainSettings, run: TrainingRun) -> WeightFile:
    """The weights that the run begins with, or was begun with; for workers, too.

    Raises:
        CheckpointError: if there are none.
        InputError: as `load_initial`.
    """
    found = find_again(str(settings.initial_weights), begun_with(run))
    return found.known(str(load_initial(settings, found).sha256))


def load_initial(settings: TrainSettings, found: WeightFile) -> BaseNetwork:
    """The network that the run begins with.

    Raises:
        InputError: if it is of another variant or input size than the one to be trained.
    """
    model = load_network(found)
    if (model.variant, model.input_size) != (settings.variant, settings.input_size):
        raise InputError(
            f"--initial-weights {settings.initial_weights}: are of the variant {model.variant} at input size "
            f"{model.input_size}; set --variant and --input-size alike"
        )
    return model
