"""A variant is a class and a line of the registry: whoever predicts, trains and evaluates asks nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import chexmask_u as cu
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.decoder import Decoded
from chexmask_u.model.draws import Draws
from chexmask_u.model.network import Network, TrainingDraws
from chexmask_u.model.variants import VARIANTS, build
from chexmask_u.settings import TrainSettings
from chexmask_u.training import evaluate, examples
from chexmask_u.training.loop import Place, Training
from chexmask_u.weight_files import load_network


class MeanShape(Network):
    """The shape that all people have on average, shaken by three numbers a draw; it does not look at the image."""

    noise_size = 3
    has_posterior = False

    def __init__(self, input_size: int, variant: str) -> None:
        super().__init__(input_size, variant)
        self.shape = nn.Parameter(torch.rand(120, 2))

    def sample(self, images: Tensor, noise: Callable[[], Tensor]) -> Draws:
        zero = torch.zeros(len(images), 64)
        return Draws(self.shape + 0.01 * noise()[..., None, :2], zero, zero)

    def centre(self, images: Tensor) -> Draws:
        return self.sample(images, lambda: torch.zeros(len(images), 1, 3))

    def training_draws(self, images: Tensor, noise: Tensor, precision: str = "float32") -> TrainingDraws:
        return TrainingDraws(Decoded(self.sample(images, lambda: noise).landmarks, None, None), torch.zeros(()))


def test_a_new_variant_predicts_trains_and_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    # Under a name that --variant takes.
    monkeypatch.setitem(VARIANTS, "noskip", MeanShape)
    people = examples.drawn(6, 0, 64)
    settings = TrainSettings(
        drawings=1, output="unused", variant="noskip", input_size=64, batches=40, learning_rate=0.05, every=1
    )
    training = Training(
        settings, people, 0, people.take([0, 1]), Place(0, 1, torch.device("cpu")), lambda module: module
    )
    row = training.run_epoch(lambda _: None)
    assert row["rmse"] < 200
    assert row["train_kl"] == 0
    assert "kl" not in row
    model = training.model.eval()
    images = np.zeros((2, 1024, 1024), np.uint8)
    predicted = cu.predict(model, images, ["a", "b"], n_samples=8)
    np.testing.assert_allclose(
        cu.predict(model, images, ["b", "c"], n_samples=8).landmarks_mean[0], predicted.landmarks_mean[1]
    )
    assert 4 < predicted.landmarks_std.mean() < 16
    scored = evaluate.score(model, examples.drawn(3, 5, 1024), samples=4, seed=0, batch_size=2).summary
    assert scored["std"] > 0
    assert "kl" not in scored


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_every_variant_are_told_by_the_names_in_them(variant: str, tmp_path: Path) -> None:
    model = build(128, variant)
    path = str(tmp_path / "weights.safetensors")
    save_model(model, path, dtype=torch.float16)
    loaded = load_network(path)
    assert (loaded.variant, loaded.input_size, type(loaded)) == (variant, 128, type(model))
    if isinstance(model, Network):
        assert type(cu.load_model(path)) is type(model)
    else:
        with pytest.raises(cu.CheckpointError, match=rf"{path}: are weights of .*, which gives masks and no landmarks"):
            cu.load_model(path)


def test_every_variant_can_be_trained_from_the_command_line() -> None:
    (field,) = (field for field in fields(TrainSettings) if field.name == "variant")
    assert set(field.metadata["choices"]) == set(VARIANTS)
