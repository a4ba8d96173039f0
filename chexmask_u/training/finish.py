"""How a training ends: weights of the best epoch, their scores on held-out images, pictures and model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from chexmask_u import storage
from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.folder import as_csv
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.variants import build
from chexmask_u.runs.identity import library_versions
from chexmask_u.settings import TrainSettings
from chexmask_u.training import checkpoints, figures
from chexmask_u.training import evaluate as evaluation
from chexmask_u.training import examples as annotated
from chexmask_u.training.measure import Count, uncounted
from chexmask_u.training.run import SCORES, WEIGHTS, TrainingRun, card, command
from chexmask_u.weight_files import load_network

# Draws per image of the scores in the model card.
CARD_SAMPLES = 50


def finish(
    settings: TrainSettings, url: str, best: str, facts: dict[str, Any], count: Count = uncounted
) -> dict[str, Any]:
    """Write the weights of the best checkpoint, their scores, pictures and model card; returns what scores.json holds.

    Args:
        settings: of the run.
        url: the run's folder.
        best: path of the checkpoint on the run's file system.
        facts: from `prepare`.
        count: is told of the images that are predicted for the scores.
    """
    run = TrainingRun(url)
    filesystem, path = storage.arrow_filesystem(url)
    state = checkpoints.load(filesystem, best)
    last = checkpoints.load(filesystem, [best, *checkpoints.found(filesystem, path)][-1])
    model = build(settings.input_size, settings.variant)
    model.load_state_dict(state["model"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, WEIGHTS)
        digest = save_model(model, file, dtype=torch.float16 if settings.half else torch.float32)
        run.write(WEIGHTS, file.read_bytes())
        # As its users will: from the file, so rounded as it is there.
        model = load_network(str(file), sha256=digest)
    names = frozenset(facts["validation_names"])
    validation, _ = annotated.read_examples(settings, FRAME, only=lambda some: [name in names for name in some])
    if not len(validation):
        validation = annotated.held_out(len(names), settings.seed, FRAME)
    evaluated = evaluation.score(
        model, validation, samples=CARD_SAMPLES, seed=0, batch_size=1, shifts=True, count=count
    )
    content = {
        "weights": WEIGHTS,
        "sha256": digest,
        "variant": model.variant,
        "family": model.family,
        "has_posterior": model.has_posterior,
        "input_size": model.input_size,
        "epoch": state["epoch"],
        "epochs": last["epoch"],
        "samples": CARD_SAMPLES,
        "datasets": facts["datasets"],
        "left_out": facts["left_out"],
        "initial_sha256": facts["initial_sha256"],
        "every": settings.every,
        "kl_weight": state["history"][-1]["kl_weight"],
        "scores": evaluated.summary,
        "settings": settings.numbers() | {"half": settings.half},
        "command": command(settings),
        "versions": library_versions(),
        "organs": ORGANS,
    }
    run.write("curves.png", figures.curves(last["history"]))
    run.write("uncertainty.png", evaluation.picture(evaluated))
    run.write("images.csv", as_csv(evaluated.images))
    run.write("README.md", card(content))
    # Last: it says that the run is finished.
    run.write_json(SCORES, content)
    return content
