"""Batches, epochs and state of a training process."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import chexmask_u as cu
from chexmask_u.errors import InputError
from chexmask_u.model.checkpoint import save_model
from chexmask_u.sources.synthetic import draw
from chexmask_u.training import evaluate, examples, scores
from chexmask_u.training.examples import Examples
from chexmask_u.training.loop import Batches, DivergedError, Place, Training
from chexmask_u.training.loss import Objective
from tests.support.annotated import HERE, settings


def test_every_batch_is_of_one_kind_and_sees_only_the_nodes_that_exist(mixed: Examples) -> None:
    batches = list(Batches(settings(batches=40, batch_size=4), mixed, 12, HERE).of_epoch(0))
    kinds = []
    for batch in batches:
        datasets = {name.partition("/")[0] for name in batch.names}
        assert datasets == {"lungs"} or datasets <= {"hearts", "drawings"}
        assert batch.target.shape == (4, 94 if datasets == {"lungs"} else 120, 2)
        assert torch.isfinite(batch.target).all()
        kinds.append(datasets == {"lungs"})
    assert 8 < sum(kinds) < 32
    assert any("drawings/0" in batch.names for batch in batches)


def test_batches_are_the_same_for_any_number_of_workers(mixed: Examples) -> None:
    chosen = settings(batches=3, batch_size=4)
    (alone,) = (list(Batches(chosen, mixed, 12, HERE).of_epoch(2)),)
    parts = [list(Batches(chosen, mixed, 12, Place(rank, 2, HERE.device)).of_epoch(2)) for rank in range(2)]
    for whole, first, second in zip(alone, *parts, strict=True):
        assert sorted([*first.names, *second.names]) == sorted(whole.names)
        for mine, theirs in ((whole.images[0::2], first.images), (whole.noise[1::2], second.noise)):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_what_kind_a_batch_is_says_nothing_of_how_its_images_are_turned(mixed: Examples) -> None:
    chosen = settings(batches=60, batch_size=2, rotation=20, scale=0, shift=0)
    batches = Batches(chosen, mixed, 12, HERE)
    turned: dict[bool, list[float]] = {True: [], False: []}
    for number, batch in enumerate(batches.of_epoch(0)):
        before, after = (
            points[43] - points[0] for points in (mixed.landmarks[batches.rows(0, number)[0]], batch.target[0].numpy())
        )
        angle = np.rad2deg(np.arctan2(*after[::-1]) - np.arctan2(*before[::-1]))
        turned[batch.names[0].startswith("lungs")].append(angle)
    for angles in turned.values():
        assert len(angles) > 15
        assert min(angles) < -10
        assert max(angles) > 10


def test_epochs_differ_and_come_again_from_the_seed(mixed: Examples) -> None:
    def names(epoch: int, seed: int) -> list[list[str]]:
        return [batch.names for batch in Batches(settings(batches=5, seed=seed), mixed, 12, HERE).of_epoch(epoch)]

    assert names(1, seed=4) == names(1, seed=4)
    assert names(1, seed=4) != names(2, seed=4)
    assert names(1, seed=4) != names(1, seed=5)


def test_objectives_see_the_same_images_and_first_draws(mixed: Examples) -> None:
    by_error, by_energy = (
        list(Batches(settings(batches=3, batch_size=4, objective=objective), mixed, 12, HERE).of_epoch(1))
        for objective in ("mse", "energy")
    )
    for one, other in zip(by_error, by_energy, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.noise, other.noise[:, :64])


def test_training_by_energy_leaves_draws_that_are_nearer_to_the_error(mixed: Examples) -> None:
    ratios, energies = {}, {}
    for objective in ("mse", "energy"):
        chosen = settings(objective=objective, batches=8, batch_size=4, learning_rate=1e-3, kl_last=1e-4, every=1)
        training = Training(chosen, mixed, 12, mixed.take([0, 7]), HERE, lambda module: module)
        energies[objective] = [training.run_epoch(lambda _: None).get("energy") for _ in range(2)]
        model = training.model.eval()
        with torch.inference_mode():
            noise = torch.randn(4, 50, 64, generator=torch.Generator().manual_seed(0))
            grey = model.grey(torch.from_numpy(mixed.images[:4]))
            drawn = model.sample(grey, noise.clone).landmarks.numpy()
        found = scores.calibration(drawn.mean(1), drawn.std(1), mixed.landmarks[:4])
        ratios[objective] = found["std_error_ratio"]
    assert ratios["energy"] > 2 * ratios["mse"]
    first, second = energies["energy"]
    assert second < first
    assert energies["mse"] == [None, None]


def test_dropout_variant_trains_and_draws_the_same_in_any_batch(mixed: Examples, tmp_path: Path) -> None:
    chosen = settings(variant="dropout", batches=8, batch_size=4, learning_rate=1e-3)
    training = Training(chosen, mixed, 12, mixed.take([0, 1]), HERE, lambda module: module)
    first, second = (training.run_epoch(lambda _: None) for _ in range(2))
    assert second["train_landmarks"] < first["train_landmarks"]
    assert second["train_kl"] == 0
    save_model(training.model, tmp_path / "dropout.safetensors")
    model = cu.load_model(str(tmp_path / "dropout.safetensors"))
    assert model.variant == "dropout"
    images = np.stack([draw(index).image for index in range(2)])
    both = cu.predict(model, images, ["a", "b"], n_samples=8)
    alone = cu.predict(model, images[1:], ["b"], n_samples=8)
    np.testing.assert_allclose(alone.landmarks_mean[0], both.landmarks_mean[1], atol=1e-2)
    assert both.landmarks_std.min() > 0
    counted: list[int] = []
    drawn = examples.drawn(3, 5, 1024)
    scored = evaluate.score(model, drawn, samples=4, seed=0, batch_size=2, shifts=True, count=counted.append).summary
    # What the progress bar takes for the end.
    assert sum(counted) == evaluate.predictions(3, masks=False, shifts=True)
    assert "kl" not in scored
    assert "std" in evaluate.table(scored)


def test_training_from_a_checkpoint_ends_with_the_weights_of_an_undisturbed_one(
    mixed: Examples, tmp_path: Path
) -> None:
    chosen = settings(batches=4, batch_size=4, learning_rate=1e-3, epochs=3, every=1, decay_epochs=1)

    def fresh() -> Training:
        return Training(chosen, mixed, 12, mixed.take([0]), HERE, lambda module: module)

    whole, cut = fresh(), fresh()
    for _ in range(3):
        whole.run_epoch(lambda _: None)
    cut.run_epoch(lambda _: None)
    torch.save(cut.state(), tmp_path / "state.pt")
    # What is done after the checkpoint is lost.
    cut.run_epoch(lambda _: None)
    resumed = fresh()
    resumed.load(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        resumed.run_epoch(lambda _: None)
    assert resumed.history == whole.history
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_loss_that_is_not_finite_stops_before_the_weights_change_and_names_its_batch(mixed: Examples) -> None:
    chosen = settings(learning_rate=10, batches=60, batch_size=4, scale=0)
    training = Training(chosen, mixed, 12, mixed.take([0]), HERE, lambda module: module)
    with pytest.raises(DivergedError, match="gradient is not finite") as caught:
        training.run_epoch(lambda _: None)
    facts = caught.value.facts
    rows = training.batches.rows(facts["epoch"] - 1, facts["batch"] - 1)
    assert facts["images"] == [mixed.names[row] for row in rows]
    assert all(name in str(caught.value) for name in facts["images"])
    assert all(bool(torch.isfinite(value).all()) for value in training.model.parameters())


def test_frozen_convolutions_stay_and_the_rest_learns(mixed: Examples) -> None:
    with pytest.raises(InputError, match="--freeze-convolutions: needs --initial-weights"):
        settings(freeze_convolutions=True)
    chosen = settings(freeze_convolutions=True, initial_weights="demo", batches=4, batch_size=4, weight_decay=0.1)
    training = Training(chosen, mixed, 12, mixed.take([0]), HERE, lambda module: module)
    free = copy.deepcopy(training.model)
    free.convolutions_frozen = False
    batch = next(training.batches.of_epoch(0))
    given = batch.images, batch.target, batch.noise
    for frozen, learnt in zip(training.objective(*given), Objective(free)(*given), strict=True):
        torch.testing.assert_close(frozen, learnt, rtol=1e-4, atol=1e-4)
    before = {name: weights.clone() for name, weights in training.model.state_dict().items()}
    training.run_epoch(lambda _: None)
    for name, weights in training.model.state_dict().items():
        assert torch.equal(weights, before[name]) == ("dconv" in name), name
