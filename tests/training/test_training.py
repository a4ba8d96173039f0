"""What training stands on: landmarks from masks, augmentation, batches, the loss, annotated folders and bad ones."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import chexmask_u as cu
from chexmask_u.cli import _parser
from chexmask_u.errors import InputError
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.encoder import Features
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.settings import EvaluateSettings, TrainSettings
from chexmask_u.sources.synthetic import draw
from chexmask_u.training import evaluate, examples, scores
from chexmask_u.training.augment import augment
from chexmask_u.training.contour import mask_landmarks
from chexmask_u.training.distributed import _rank
from chexmask_u.training.examples import Examples
from chexmask_u.training.loop import Batches, DivergedError, Place, Training
from chexmask_u.training.loss import SKIP_WEIGHT, Objective, energy_score, kl_weight, learning_rate

SIDE = 256
HEART = cu.LANDMARKS["heart"]
HERE = Place(0, 1, torch.device("cpu"))


def settings(**changes: object) -> TrainSettings:
    return TrainSettings.from_mapping({"drawings": 1, "output": "unused", "input_size": 64, **changes})


def write_folder(folder: Path, count: int = 4, side: int = SIDE, first: int = 0) -> np.ndarray:
    """Drawings as a folder of images with landmarks.npz; returns the landmarks [count, 120, 2]."""
    (folder / "images").mkdir(parents=True)
    drawings = [draw(first + index, side=side) for index in range(count)]
    for index, drawing in enumerate(drawings):
        cv2.imwrite(str(folder / "images" / f"person{first + index}.png"), drawing.image)
    landmarks = np.stack([drawing.landmarks for drawing in drawings])
    save_landmarks(folder, landmarks, first)
    return landmarks


def save_landmarks(folder: Path, landmarks: np.ndarray, first: int = 0, **more: np.ndarray) -> None:
    names = np.array([f"person{first + index}" for index in range(len(landmarks))])
    np.savez(folder / "landmarks.npz", names=names, landmarks=landmarks, **more)


def read(*folders: Path | str, **more: object) -> tuple[Examples, list[examples.Problem]]:
    given = EvaluateSettings.from_mapping({"data": [str(folder) for folder in folders], **more})
    return examples.read_examples(given, SIDE)


# --- landmarks from masks


@pytest.mark.parametrize("organ", cu.ORGANS)
def test_landmarks_of_a_mask_lie_where_the_annotated_ones_do(organ: str) -> None:
    offsets, overlaps = [], []
    for index in range(20):
        landmarks = draw(index, side=64).landmarks * 16
        mask = cu.organ_mask(landmarks, organ, 1024, 1024)
        found = landmarks.copy()
        found[cu.LANDMARKS[organ]] = mask_landmarks(mask, organ)
        offsets.append(np.hypot(*(found - landmarks)[cu.LANDMARKS[organ]].T).mean())
        overlaps.append(scores.dice(mask, cu.organ_mask(found, organ, 1024, 1024)))
    # Neighbours are about 40 px apart.
    assert np.median(offsets) < 20
    assert min(overlaps) > 0.98


def test_landmarks_of_jsrt_masks_are_near_those_of_the_annotators(shared: Path) -> None:
    with np.load(shared / "data" / "jsrt" / "landmarks.npz") as archive:
        annotated = archive["landmarks"].astype(np.float64)
    for organ, most in (("right_lung", 12), ("left_lung", 22), ("heart", 15)):
        offsets = []
        for landmarks in annotated[::4]:
            mask = cu.organ_mask(landmarks, organ, 1024, 1024)
            found = mask_landmarks(mask, organ)
            offsets.append(np.hypot(*(found - landmarks[cu.LANDMARKS[organ]]).T).mean())
        assert np.mean(offsets) < most, organ


def test_a_mask_whose_inside_and_outside_were_exchanged_is_refused() -> None:
    mask = cu.organ_mask(draw(0, side=256).landmarks, "left_lung", 256, 256)
    with pytest.raises(ValueError, match="left_lung has most of the image's border inside"):
        mask_landmarks(1 - mask, "left_lung")


def test_a_mask_that_compression_or_a_change_of_size_blurred_keeps_its_outline() -> None:
    mask = cu.organ_mask(draw(0, side=512).landmarks, "left_lung", 512, 512)
    _, compressed = cv2.imencode(".jpg", mask * np.uint8(255), [cv2.IMWRITE_JPEG_QUALITY, 90])
    blurred = [cv2.imdecode(compressed, cv2.IMREAD_GRAYSCALE)]
    blurred.append(cv2.resize(cv2.resize(mask * np.uint8(255), (200, 200)), (512, 512)))
    for one in blurred:
        landmarks = np.zeros((120, 2))
        landmarks[cu.LANDMARKS["left_lung"]] = mask_landmarks(one, "left_lung")
        assert scores.dice(mask, cu.organ_mask(landmarks, "left_lung", 512, 512)) > 0.985


def test_mask_without_an_organ_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of the heart is empty"):
        mask_landmarks(np.zeros((8, 8), np.uint8), "heart")
    dot = np.zeros((8, 8), np.uint8)
    dot[4, 4] = 1
    with pytest.raises(ValueError, match="not the shape"):
        mask_landmarks(dot, "heart")


# --- augmentation


@pytest.mark.parametrize("organ", cu.ORGANS)
def test_augmented_landmarks_stay_on_the_organ(organ: str) -> None:
    strong = settings(rotation=20, scale=0.3, shift=0.08, contrast=0)
    overlaps = []
    for index in range(10):
        landmarks = draw(index, side=SIDE).landmarks
        image = cu.organ_mask(landmarks, organ, SIDE, SIDE) * np.uint8(255)
        # OpenCV draws at pixel centres, which lie at halves of the landmarks' continuous coordinates.
        grey, moved = augment(np.random.default_rng(index), image, (landmarks + 0.5) / np.float32(SIDE), strong)
        expected = cu.organ_mask(moved * SIDE - 0.5, organ, SIDE, SIDE)
        assert not np.allclose(moved, landmarks / SIDE, atol=0.01)
        overlaps.append(scores.dice((grey > 0.5).astype(np.uint8), expected))
    # Half a pixel's shift gives 0.987.
    assert np.mean(overlaps) > 0.99


def test_scale_alone_pushes_no_landmark_out_of_the_image() -> None:
    landmarks = draw(0, side=64).landmarks / np.float32(64)
    # As tall as the image itself.
    landmarks = ((landmarks - landmarks.min()) / np.ptp(landmarks)).astype(np.float32)
    large = settings(rotation=0, scale=0.5)
    for seed in range(20):
        _, moved = augment(np.random.default_rng(seed), np.zeros((64, 64), np.uint8), landmarks, large)
        assert moved.min() > -1e-4
        assert moved.max() < 1 + 1e-4


def test_absent_heart_stays_absent_and_harms_nothing() -> None:
    landmarks = draw(0, side=64).landmarks / np.float32(64)
    without = landmarks.copy()
    without[HEART] = np.nan
    image = draw(0, side=64).image
    rng = [np.random.default_rng(3) for _ in range(2)]
    grey, moved = augment(rng[0], image, landmarks, settings(scale=0))
    same_grey, same_moved = augment(rng[1], image, without, settings(scale=0))
    np.testing.assert_array_equal(grey, same_grey)
    np.testing.assert_array_equal(moved[:94], same_moved[:94])
    assert np.isnan(same_moved[HEART]).all()


# --- batches, loss and schedules


@pytest.fixture(scope="module")
def mixed() -> Examples:
    """Six people with hearts, six without, four drawings; 64 x 64."""
    drawn = examples.drawn(16, 0, 64)
    landmarks = drawn.landmarks.copy()
    landmarks[6:12, HEART] = np.nan
    names = [
        f"{kind}/{index}" for kind, count in (("hearts", 6), ("lungs", 6), ("drawings", 4)) for index in range(count)
    ]
    return Examples(names, drawn.images, landmarks)


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


def test_loss_of_lungs_ignores_what_the_network_says_of_the_heart(variant: str) -> None:
    torch.manual_seed(0)
    model = cu.HybridGNet(64, variant)  # type: ignore[arg-type]
    objective = Objective(model)
    images, target, noise = torch.rand(2, 1, 64, 64), torch.rand(2, 94, 2), torch.randn(2, 64)
    terms = objective(images, target, noise)
    mean, log_var, features = model.encode(images)
    z = mean + noise * torch.exp(log_var / 2)
    decoded = model.decode_all(z[:, None], features)
    offset = decoded.landmarks[:, 0, :94] - target
    torch.testing.assert_close(terms.landmarks, offset.square().mean())
    if variant == "skip":
        halves = torch.stack([(target[:, 2 * i] + target[:, 2 * i + 1]) / 2 for i in range(47)], dim=1)
        torch.testing.assert_close(terms.skip1, (decoded.pos1[:, 0, :47] - halves).square().mean())
        torch.testing.assert_close(terms.skip2, (decoded.pos2[:, 0, :94] - target).square().mean())
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, torch.exp(log_var / 2)), normal(0.0, 1.0))
    torch.testing.assert_close(terms.kl, expected.sum(1).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        terms.total(0.1), terms.landmarks + terms.skip1 + terms.skip2 + 0.1 * expected.mean(), rtol=1e-4, atol=1e-4
    )


def test_energy_score_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    drawn, target = rng.random((2, 5, 7, 2)), rng.random((2, 7, 2))
    scored = []
    for image in range(2):
        for node in range(7):
            x, y = drawn[image, :, node], target[image, node]
            error = np.mean([np.hypot(*(one - y)) for one in x])
            apart = np.mean([np.hypot(*(x[i] - x[j])) for i in range(5) for j in range(5) if i != j])
            scored.append(error - apart / 2)
    assert energy_score(torch.from_numpy(drawn), torch.from_numpy(target)).item() == pytest.approx(np.mean(scored))


@pytest.mark.parametrize("draws", [2, 4])
def test_energy_score_is_least_for_draws_that_are_spread_as_the_truth_is(draws: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # The second node is four times as unsure as the first, and along one axis twice as much as along the other.
    spread = torch.tensor([[[0.01, 0.02]], [[0.04, 0.08]]]).view(1, 2, 2)
    truth = spread * torch.randn(40_000, 2, 2, generator=generator)
    drawn = spread.unsqueeze(1) * torch.randn(40_000, draws, 2, 2, generator=generator)

    def score(factor: float | torch.Tensor, offset: float = 0.0) -> float:
        return energy_score(factor * drawn + offset, truth).item()

    assert score(1) == min(score(factor) for factor in (0.0, 0.5, 0.8, 1, 1.25, 2))
    assert score(1) < min(score(1, offset) for offset in (-0.02, 0.02))
    # Right on the whole, and wrong at each node.
    assert score(1) < score(torch.tensor([2.5, 0.625]).view(2, 1))


def test_energy_of_lungs_is_that_of_all_draws_of_one_encoding(variant: str) -> None:
    torch.manual_seed(0)
    model = cu.HybridGNet(64, variant)  # type: ignore[arg-type]
    images, target, noise = torch.rand(2, 1, 64, 64), torch.rand(2, 94, 2), torch.randn(2, 3, 64)
    terms = Objective(model, objective="energy")(images, target, noise.flatten(1))
    mean, log_var, features = model.encode(images)
    draws = [model.decode_all((mean + one * torch.exp(log_var / 2))[:, None], features) for one in noise.unbind(1)]
    expected = energy_score(torch.cat([draw.landmarks[:, :, :94] for draw in draws], 1), target)
    torch.testing.assert_close(terms.landmarks, expected)
    total = expected + 0.1 * terms.kl / 64
    if variant == "skip":
        halves = torch.stack([(target[:, 2 * i] + target[:, 2 * i + 1]) / 2 for i in range(47)], dim=1)
        skip1 = energy_score(torch.cat([draw.pos1[:, :, :47] for draw in draws], 1), halves)
        skip2 = energy_score(torch.cat([draw.pos2[:, :, :94] for draw in draws], 1), target)
        total = total + (skip1 + skip2) / 2
    torch.testing.assert_close(terms.total(0.1, SKIP_WEIGHT["energy"]), total)


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
        chosen = settings(objective=objective, batches=20, batch_size=4, learning_rate=1e-3, kl_last=1e-4, every=1)
        training = Training(chosen, mixed, 12, mixed.take([0, 7]), HERE, lambda module: module)
        energies[objective] = [training.run_epoch(lambda _: None).get("energy") for _ in range(2)]
        model = training.model.eval()
        with torch.inference_mode():
            grey = torch.from_numpy(mixed.images[:4]).unsqueeze(1) / 255
            mean, log_var, features = model.encode(grey)
            noise = torch.randn(4, 50, 64, generator=torch.Generator().manual_seed(0))
            drawn = model.decode(mean.unsqueeze(1) + noise * torch.exp(log_var / 2).unsqueeze(1), features).numpy()
        found = scores.calibration(drawn.mean(1), drawn.std(1), mixed.landmarks[:4])
        ratios[objective] = found["std_error_ratio"]
    assert ratios["energy"] > 2 * ratios["mse"]
    first, second = energies["energy"]
    assert second < first
    assert energies["mse"] == [None, None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"draws": 1}, "--draws must be at least 2, not 1"), ({"variant": "dropout"}, "needs --variant skip or noskip")],
)
def test_energy_score_of_what_has_no_draws_to_compare_is_refused(changes: dict[str, object], words: str) -> None:
    settings(**changes)
    with pytest.raises(InputError, match=words):
        settings(objective="energy", **changes)


def test_dropout_variant_trains_and_draws_the_same_in_any_batch(mixed: Examples, tmp_path: Path) -> None:
    chosen = settings(variant="dropout", batches=20, batch_size=4, learning_rate=1e-3)
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
    scored = evaluate.score(model, examples.drawn(3, 5, 1024), samples=4, seed=0, batch_size=2).summary
    assert "kl" not in scored
    assert "std" in evaluate.table(scored)


def test_default_schedules_are_the_papers() -> None:
    paper = TrainSettings(drawings=1, output="unused")
    weights = [kl_weight(paper, epoch) for epoch in (0, 100, 200, 900)]
    np.testing.assert_allclose(weights, [1e-5, (1e-5 + 1e-2) / 2, 1e-2, 1e-2])
    rates = [learning_rate(paper, epoch) for epoch in (0, 49, 50, 149)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 0.9e-4, 0.81e-4])


def test_the_best_epoch_has_the_kl_weight_that_was_asked_for_if_any_has() -> None:
    paper = TrainSettings(drawings=1, output="unused")
    rows = [{"epoch": 150.0, "mse": 90.0}, {"epoch": 210.0, "mse": 110.0}, {"epoch": 300.0, "mse": 100.0}]
    assert min(rows, key=lambda row: _rank(paper, row))["epoch"] == 300
    assert min(rows[:1], key=lambda row: _rank(paper, row))["epoch"] == 150
    dropout = replace(paper, variant="dropout")
    assert min(rows, key=lambda row: _rank(dropout, row))["epoch"] == 150
    by_energy = replace(paper, objective="energy")
    scored = [row | {"energy": energy} for row, energy in zip(rows, (4.0, 5.0, 6.0), strict=True)]
    assert min(scored, key=lambda row: _rank(by_energy, row))["epoch"] == 210


def test_the_learning_rate_can_fall_along_a_cosine() -> None:
    chosen = TrainSettings(
        drawings=1, output="unused", schedule="cosine", learning_rate=1e-3, decay_epochs=60, epochs=60
    )
    rates = [learning_rate(chosen, epoch) for epoch in (0, 20, 30, 40, 60)]
    np.testing.assert_allclose(rates, [1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0], atol=1e-12)
    with pytest.raises(InputError, match="--decay-epochs 60, before --epochs 61"):
        replace(chosen, epochs=61)


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


@pytest.mark.parametrize("number", [1, 2])
def test_the_commands_in_the_card_of_the_bundled_weights_are_such_that_train_takes(number: int) -> None:
    card = (Path(cu.__file__).parent / "weights" / "README.md").read_text()
    command = card.split("```sh\nchexmask-u ")[number]
    given = vars(_parser().parse_args(shlex.split(command.partition("```")[0].replace("\\\n", " "))))
    parsed = TrainSettings.from_mapping(given)
    assert (parsed.input_size, parsed.half, parsed.drawings) == (256, True, 4000)


def test_evaluate_gives_the_bundled_weights_the_scores_of_their_card(shared: Path) -> None:
    split = Path(cu.__file__).parent / "weights" / "split.csv"
    given = {"data": [str(shared / "data" / "jsrt")], "split": str(split), "samples": 20, "device": "cpu"}
    summary = evaluate.evaluate(EvaluateSettings.from_mapping(given)).summary
    assert summary["images"] == 20
    assert summary["mse"] == pytest.approx(156, abs=0.5)
    dice = [summary[f"dice_{organ}"] for organ in cu.ORGANS]
    np.testing.assert_allclose(dice, [0.970, 0.962, 0.944], atol=0.0006)
    assert summary["std"] == pytest.approx(2.2, abs=0.05)
    # The cover hides the right lung.
    assert summary["covered"]["std_ratio_under_cover"] > 1.3
    assert summary["covered"]["images_higher"] >= 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_evaluate_draws_none_of_the_drawings_that_training_drew(seed: int) -> None:
    shown = examples.drawn(3, seed, 1024)
    scored, _ = evaluate.read(EvaluateSettings(drawings=3))
    assert not set(shown.names) & set(scored.names)
    assert not any((one == other).all() for one in shown.images for other in scored.images)
    # Those that training holds out where there is nothing else.
    np.testing.assert_array_equal(scored.images, examples.held_out(3, 0, 1024).images)


# --- scores


def test_hausdorff_and_dice_of_squares() -> None:
    square = np.array([[10, 10], [50, 10], [50, 50], [10, 50]], np.float64)
    assert scores.hausdorff(square, square) == 0
    assert scores.hausdorff(square, square + np.array([7, 0])) == pytest.approx(7)
    assert scores.hausdorff(square, np.array([[10, 10], [50, 10], [50, 50], [10, 90]])) == pytest.approx(40)
    masks = [np.zeros((40, 40), np.uint8) for _ in range(2)]
    masks[0][:20], masks[1][10:30] = 1, 1
    assert scores.dice(*masks) == pytest.approx(0.5)


def test_calibrated_draws_score_as_calibrated() -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(2, 9, (50, 1, 1)) * np.ones((50, 120, 2))
    truth = rng.uniform(0, 1024, (50, 120, 2))
    truth[:10, HEART] = np.nan
    found = scores.calibration(truth + rng.standard_normal(truth.shape) * spread, spread, truth)
    assert found["std_error_ratio"] == pytest.approx(1, abs=0.03)
    assert found["within_1_std"] == pytest.approx(0.683, abs=0.02)
    assert found["within_2_std"] == pytest.approx(0.954, abs=0.01)
    assert found["rank_correlation"] is not None
    assert found["rank_correlation"] > 0.9


def test_posterior_tells_collapse_from_use() -> None:
    rng = np.random.default_rng(0)
    mean, sigma = np.zeros((40, 64)), np.ones((40, 64))
    mean[:, :5], sigma[:, :5] = rng.standard_normal((40, 5)), 0.2
    health = scores.posterior(mean, sigma)
    assert health["active_latents"] == 5
    np.testing.assert_allclose(health["kl_per_latent"][5:], 0, atol=1e-9)
    assert min(health["kl_per_latent"][:5]) > 1


# --- annotated folders, and what is wrong with them


def test_folder_of_any_sizes_is_prepared_with_its_landmarks(tmp_path: Path) -> None:
    from chexmask_u.sources.synthetic import write_demo

    write_demo(tmp_path, count=8)
    with np.load(tmp_path / "landmarks.npz") as archive:
        original = dict(zip(archive["names"], archive["landmarks"], strict=True))
    found, problems = read(tmp_path)
    assert len(found) == 8
    # Files that no landmarks were made for.
    assert {problem.kind for problem in problems} == {"no_annotation"}
    for name, landmarks in zip(found.names, found.landmarks, strict=True):
        file = next(file for file in original if Path(file).stem == name.partition("/")[2])
        image = cu.read_image(str(tmp_path / "images" / file))
        np.testing.assert_allclose(landmarks * 1024, image.letterbox.to_frame(original[file]), atol=0.01)


class Seeing(HybridGNet):
    """Keeps what it is given to encode."""

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Features]:
        self.seen = images
        return super().encode(images)


@pytest.mark.parametrize("side", [256, 384, 640])
def test_training_sees_an_image_as_the_network_will_when_it_predicts(side: int) -> None:
    """At sides that do not divide 1024, too, where a library has ideas of its own of an area."""
    image = np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8)
    model = Seeing(side, "noskip").eval()
    cu.predict(model, image[None], ["a"], n_samples=1)
    reduced = examples.reduced(image, side)
    assert reduced.dtype == np.uint8
    np.testing.assert_allclose(reduced, model.seen[0, 0].numpy() * 255, atol=0.5001, rtol=0)


def test_images_that_are_linked_from_another_disk_are_read_and_dead_links_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "images").symlink_to(tmp_path / "disk" / "images")
    (folder / "landmarks.npz").symlink_to(tmp_path / "disk" / "landmarks.npz")
    assert len(read(folder)[0]) == 4
    image = tmp_path / "disk" / "images" / "person1.png"
    image.unlink()
    image.symlink_to(tmp_path / "gone.png")
    found, problems = read(folder)
    assert ([problem.name for problem in problems], len(found)) == (["person1"], 3)
    (folder / "more").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"mine/more: is a link that leads nowhere; mend or delete it"):
        read(folder)


def _csv(folder: Path, landmarks: np.ndarray) -> None:
    with (folder / "landmarks.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["name", *(f"{axis}{node}" for node in range(120) for axis in "xy")])
        for index, points in enumerate(landmarks):
            table.writerow([f"person{index}.png", *("" if np.isnan(value) else value for value in points.ravel())])


def _npy(folder: Path, landmarks: np.ndarray) -> None:
    (folder / "landmarks").mkdir()
    for index, points in enumerate(landmarks):
        np.save(folder / "landmarks" / f"person{index}.npy", points)


def _organ_texts(folder: Path, landmarks: np.ndarray) -> None:
    for organ, name in zip(cu.ORGANS, ("RL", "LL", "H"), strict=True):
        (folder / "landmarks" / name).mkdir(parents=True)
        for index, points in enumerate(landmarks[:, cu.LANDMARKS[organ]]):
            if np.isfinite(points).all():
                np.savetxt(folder / "landmarks" / name / f"person{index}.txt", points, delimiter=",")


@pytest.mark.parametrize("write", [_csv, _npy, _organ_texts])
def test_every_form_of_landmarks_gives_the_same_examples(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None]
) -> None:
    landmarks = write_folder(tmp_path)
    landmarks[1, HEART] = np.nan
    save_landmarks(tmp_path, landmarks)
    expected, problems = read(tmp_path)
    assert not problems
    assert expected.has_heart().tolist() == [True, False, True, True]
    (tmp_path / "landmarks.npz").unlink()
    write(tmp_path, landmarks)
    found, problems = read(tmp_path)
    assert not problems
    assert found.names == expected.names
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=1e-5)


def test_masks_give_landmarks_of_those_organs(tmp_path: Path) -> None:
    landmarks = write_folder(tmp_path, side=512)
    (tmp_path / "landmarks.npz").unlink()
    for organ in ("right_lung", "left_lung"):
        (tmp_path / "masks" / organ).mkdir(parents=True)
        for index, points in enumerate(landmarks):
            mask = cu.organ_mask(points, organ, 512, 512) * np.uint8(255)
            cv2.imwrite(str(tmp_path / "masks" / organ / f"person{index}.png"), mask)
    found, problems = read(tmp_path)
    assert not problems
    assert not found.has_heart().any()
    offset = found.landmarks[:, :94] * 512 - landmarks[:, :94]
    assert np.hypot(*np.moveaxis(offset, -1, 0)).mean() < 10
    whole, _ = examples.read_examples(EvaluateSettings(data=(str(tmp_path),)), 1024)
    scored = evaluate.score(cu.load_model("demo"), whole.take([0, 1, 2]), samples=2, seed=0, batch_size=3).summary
    assert scored["from_masks"] == 3
    assert "3 of them annotated by masks: distances" in evaluate.table(scored)


@pytest.mark.parametrize(
    ("sizes", "kind", "words"),
    [
        ((400, 400), "resolution", "annotated at 400 x 400, but the image has 512 x 512"),
        ((512, 400), "unreadable", r"its masks have 512 x 512 \(right_lung\) and 400 x 400 \(left_lung\) pixels"),
    ],
)
def test_masks_of_another_size_than_their_image_are_named(
    tmp_path: Path, sizes: tuple[int, int], kind: str, words: str
) -> None:
    landmarks = write_folder(tmp_path, side=512)
    (tmp_path / "landmarks.npz").unlink()
    for organ, size in zip(("right_lung", "left_lung"), sizes, strict=True):
        (tmp_path / "masks" / organ).mkdir(parents=True)
        mask = cu.organ_mask(landmarks[0], organ, 512, 512)[:size, :size]
        cv2.imwrite(str(tmp_path / "masks" / organ / "person0.png"), mask * np.uint8(255))
    _, problems = read(tmp_path)
    (problem,) = [problem for problem in problems if problem.name == "person0"]
    assert problem.kind == kind
    assert re.search(words, problem.detail)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"PK" + data])
def test_a_damaged_landmark_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_folder(tmp_path)
    file = tmp_path / "landmarks.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"landmarks\.npz: is no \.npz archive"):
        read(tmp_path)


def _without(folder: Path, landmarks: np.ndarray) -> None:
    (folder / "images" / "person1.png").unlink()


def _extra(folder: Path, landmarks: np.ndarray) -> None:
    save_landmarks(folder, np.delete(landmarks, 1, axis=0))
    np.savez(
        folder / "landmarks.npz", names=np.array(["person0", "person2", "person3"]), landmarks=landmarks[[0, 2, 3]]
    )


def _twice(folder: Path, landmarks: np.ndarray) -> None:
    cv2.imwrite(str(folder / "images" / "person1.jpg"), draw(1, side=SIDE).image)


def _truncated(folder: Path, landmarks: np.ndarray) -> None:
    file = folder / "images" / "person1.png"
    file.write_bytes(file.read_bytes()[:500])


def _count(folder: Path, landmarks: np.ndarray) -> None:
    (folder / "landmarks.npz").unlink()
    _npy(folder, landmarks)
    np.save(folder / "landmarks" / "person1.npy", landmarks[1, :100])


def _changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, np.ndarray], None]:
    def write(folder: Path, landmarks: np.ndarray) -> None:
        landmarks = landmarks.copy()
        landmarks[1] = change(landmarks[1])
        save_landmarks(folder, landmarks)

    return write


def _nan_in_lung(points: np.ndarray) -> np.ndarray:
    points[50, 0] = np.nan
    return points


def _nan_in_part_of_heart(points: np.ndarray) -> np.ndarray:
    points[100] = np.nan
    return points


def _far(points: np.ndarray) -> np.ndarray:
    points[3] = (SIDE + 40, 20)
    return points


def _exchanged(points: np.ndarray) -> np.ndarray:
    heart = points[HEART].copy()
    points[HEART] = heart - (0, 0.6 * SIDE) + (0, 20)
    return points.clip(0, SIDE)


def _upside_down_lungs(points: np.ndarray) -> np.ndarray:
    points[:94, 1] = SIDE - points[:94, 1]
    points[HEART] = np.nan
    return points


def _rolled(points: np.ndarray) -> np.ndarray:
    points[:44] = np.roll(points[:44], 5, axis=0)
    return points


def _reversed(points: np.ndarray) -> np.ndarray:
    points[HEART] = points[HEART][::-1]
    return points


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("no_image", _without),
        ("no_annotation", _extra),
        ("duplicate", _twice),
        ("unreadable", _truncated),
        ("count", _count),
        ("not_finite", _changed(_nan_in_lung)),
        ("not_finite", _changed(_nan_in_part_of_heart)),
        ("outside", _changed(_far)),
        ("swapped", _changed(lambda points: points[:, ::-1])),
        ("resolution", _changed(lambda points: points / 2)),
        ("position", _changed(lambda points: np.array([SIDE, 0]) + points * np.array([-1, 1]))),
        ("position", _changed(_exchanged)),
        ("position", _changed(_upside_down_lungs)),
        ("order", _changed(_rolled)),
        ("order", _changed(_reversed)),
    ],
)
def test_bad_input_is_named_and_the_rest_is_usable(
    tmp_path: Path, kind: str, damage: Callable[[Path, np.ndarray], None]
) -> None:
    damage(tmp_path, write_folder(tmp_path))
    found, problems = read(tmp_path)
    assert [(problem.kind, problem.name) for problem in problems] == [(kind, "person1")]
    assert [name.partition("/")[2] for name in found.names] == ["person0", "person2", "person3"]
    with pytest.raises(InputError, match=f"1 {kind} .*/person1.*--on-bad skip"):
        examples.refuse(problems, "refuse")
    examples.refuse(problems, "skip")
    assert next(csv.DictReader(io.StringIO(examples.problems_csv(problems))))["kind"] == kind


def test_a_refused_evaluation_names_the_problems_in_its_output_and_can_be_repeated_there(tmp_path: Path) -> None:
    landmarks = write_folder(tmp_path / "people")
    save_landmarks(tmp_path / "people", landmarks[:, :, ::-1])
    given = EvaluateSettings(data=(str(tmp_path / "people"),), output=str(tmp_path / "scored"), samples=2, device="cpu")
    with pytest.raises(InputError, match="4 swapped"):
        evaluate.evaluate(given)
    assert (tmp_path / "scored" / "problems.csv").read_text().count("swapped") == 4
    save_landmarks(tmp_path / "people", landmarks)
    assert evaluate.evaluate(given).summary["images"] == 4
    assert len((tmp_path / "scored" / "problems.csv").read_text().splitlines()) == 1


def test_image_of_another_resolution_than_was_annotated_is_named(tmp_path: Path) -> None:
    landmarks = write_folder(tmp_path)
    save_landmarks(tmp_path, landmarks, height=np.array([SIDE, 512, SIDE, SIDE]), width=np.full(4, SIDE))
    _, problems = read(tmp_path)
    assert [(problem.kind, problem.detail) for problem in problems] == [
        ("resolution", f"annotated at {SIDE} x 512, but the image has {SIDE} x {SIDE}")
    ]


def test_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "nowhere")
    write_folder(tmp_path / "people")
    (tmp_path / "people" / "landmarks.npz").unlink()
    with pytest.raises(InputError, match="--landmarks people=PATH"):
        read(tmp_path / "people")
    save_landmarks(tmp_path / "people", np.zeros((1, 120, 2)))
    with pytest.raises(InputError, match="no --data is called that"):
        read(tmp_path / "people", landmarks=["others=landmarks.npz"])


# --- the four datasets in their official form


def test_jsrt_files_are_read_as_they_were_distributed(tmp_path: Path) -> None:
    drawing = draw(0, side=2048)
    values = 4095 - np.rint(drawing.image.astype(np.float64) * 4095 / 255).astype(np.uint16)
    (tmp_path / "All247images").mkdir()
    (tmp_path / "All247images" / "JPCLN001.IMG").write_bytes(values.astype(">u2").tobytes())
    (tmp_path / "All247images" / "JPCNN001.IMG").write_bytes(values.astype("<u2").tobytes())
    (tmp_path / "All247images" / "JPCNN002.IMG").write_bytes(values.astype(">u2").tobytes()[:-2])
    names = np.array(["JPCLN001", "JPCNN001", "JPCNN002"])
    landmarks = np.stack([drawing.landmarks / 2] * 3)
    np.savez(tmp_path / "published.npz", names=names, landmarks=landmarks)
    found, problems = read(f"jsrt={tmp_path}", landmarks=[f"jsrt={tmp_path / 'published.npz'}"])
    assert found.names == ["jsrt/JPCLN001"]
    expected = cv2.resize(drawing.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert np.abs(found.images[0].astype(int) - expected).mean() < 1
    np.testing.assert_allclose(found.landmarks[0], drawing.landmarks / 2048, atol=1e-5)
    assert [(problem.name, problem.kind) for problem in problems] == [
        ("JPCNN001", "unreadable"),
        ("JPCNN002", "unreadable"),
    ]
    assert "12 bits" in problems[0].detail


def test_montgomery_takes_its_own_masks(tmp_path: Path) -> None:
    drawing = draw(0, side=800)
    (tmp_path / "CXR_png").mkdir()
    padded = np.pad(drawing.image, ((0, 0), (100, 100)))
    cv2.imwrite(str(tmp_path / "CXR_png" / "MCUCXR_0001_0.png"), padded)
    for organ, folder in (("right_lung", "rightMask"), ("left_lung", "leftMask")):
        (tmp_path / "ManualMask" / folder).mkdir(parents=True)
        mask = cu.organ_mask(drawing.landmarks + np.array([100, 0]), organ, 800, 1000)
        cv2.imwrite(str(tmp_path / "ManualMask" / folder / "MCUCXR_0001_0.png"), mask * np.uint8(255))
    found, problems = read(f"montgomery={tmp_path}")
    assert not problems
    assert found.names == ["montgomery/MCUCXR_0001_0"]
    # A wide image is padded above and below to a square of 1000.
    expected = (drawing.landmarks[:94] + 100) / 1000
    assert np.hypot(*(found.landmarks[0, :94] - expected).T).mean() < 0.02


def test_shenzhen_and_padchest_take_published_landmarks_of_the_frame(tmp_path: Path) -> None:
    drawing = draw(0, side=900)
    shenzhen, padchest = tmp_path / "ChinaSet_AllFiles", tmp_path / "padchest" / "0"
    (shenzhen / "CXR_png").mkdir(parents=True)
    padchest.mkdir(parents=True)
    # Brighter than a border, up to its edge.
    image = drawing.image.clip(8)
    cv2.imwrite(str(shenzhen / "CXR_png" / "CHNCXR_0001_0.png"), image)
    # PadChest's black border is cropped before all else.
    bordered = np.pad(image.astype(np.uint16) * 257, 50)
    cv2.imwrite(str(padchest / "100_abc.png"), bordered)
    frame = drawing.landmarks * np.float32(1024 / 900)
    np.savez(tmp_path / "s.npz", names=np.array(["CHNCXR_0001_0"]), landmarks=frame[None, :94])
    np.savez(tmp_path / "p.npz", names=np.array(["100_abc.png"]), landmarks=frame[None])
    found, problems = read(
        f"shenzhen={shenzhen}",
        f"padchest={tmp_path / 'padchest'}",
        landmarks=[f"shenzhen={tmp_path / 's.npz'}", f"padchest={tmp_path / 'p.npz'}"],
    )
    assert not problems
    assert found.names == ["shenzhen/CHNCXR_0001_0", "padchest/100_abc"]
    assert found.has_heart().tolist() == [False, True]
    np.testing.assert_allclose(found.landmarks[1], drawing.landmarks / 900, atol=1e-5)
    # 16-bit values are stretched, so the pictures are alike, and not the same.
    assert np.corrcoef(found.images[0].ravel(), found.images[1].ravel())[0, 1] > 0.99


# --- splits


def test_split_by_name_never_changes() -> None:
    names = [f"jsrt/JPCLN{number:03d}" for number in range(1, 155)]
    parts = examples.split(names, 0.1, None)
    held_out = [name for name, part in zip(names, parts, strict=True) if part == "validation"]
    assert held_out[:3] == ["jsrt/JPCLN018", "jsrt/JPCLN024", "jsrt/JPCLN075"]
    # Others in the folder, or another name of the folder, change nothing.
    assert examples.split([f"mine/{names[-1][5:]}"], 0.1, None) == parts[-1:]
    # Who is held out at a tenth is held out at a fifth, too.
    wider = examples.split(names, 0.2, None)
    assert all(wide == "validation" for wide, part in zip(wider, parts, strict=True) if part == "validation")


def test_split_file_is_followed_and_must_be_complete(tmp_path: Path) -> None:
    names = ["mine/a", "mine/b", "mine/c"]
    file = tmp_path / "split.csv"
    file.write_text(examples.split_csv(names, ["train", "validation", "train"]))
    assert examples.split(names, 0.9, str(file)) == ["train", "validation", "train"]
    with pytest.raises(InputError, match="part of 1 images, such as d"):
        examples.split([*names, "mine/d"], 0.9, str(file))
    file.write_text("name,part\nmine/a,train\nother/a,validation\n")
    with pytest.raises(InputError, match="a is in both parts"):
        examples.split(names, 0.9, str(file))
    file.write_text("name,part\na,test\n")
    with pytest.raises(InputError, match="'test'"):
        examples.split(names, 0.9, str(file))
