"""Training of networks that give masks: their targets, loss, epochs, card, and what refuses their weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import chexmask_u as cu
from chexmask_u import storage
from chexmask_u.bench.forecast import LEAST_IMAGES
from chexmask_u.cli import main
from chexmask_u.errors import InputError
from chexmask_u.manifests.folder import list_folder
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.variants import build
from chexmask_u.settings import ManifestFolderSettings
from chexmask_u.training import checkpoints, examples
from chexmask_u.training.examples import Examples
from chexmask_u.training.finish import finish
from chexmask_u.training.goals.masks import MaskObjective, shares
from chexmask_u.training.loop import Batches, Training
from chexmask_u.training.mask_scores import mask_row, predictive_entropy, relation
from chexmask_u.training.run import card as model_card
from tests.support.annotated import HERE, settings, write_folder

PIXEL = pytest.mark.parametrize("variant", ["unet", "phiseg"])


def training_of(variant: str, people: Examples, **changes: object) -> Training:
    chosen = settings(
        variant=variant, batch_size=4, learning_rate=2e-2, every=1, kl_first=1e-2, kl_last=1e-2, **changes
    )
    return Training(chosen, people, len(people), people.take([0, 1]), HERE, lambda module: module)


def test_a_target_is_the_share_of_each_pixel_that_is_the_organs(mixed: Examples) -> None:
    target = shares(mixed.landmarks[0], 64)
    assert target.shape == (3, 64, 64)
    assert ((target > 0) & (target < 1)).any()
    for organ, mask in zip(cu.ORGANS, target, strict=True):
        drawn = cu.organ_mask(mixed.landmarks[0] * 1024, organ, 1024, 1024)
        assert mask.sum() * 16**2 == pytest.approx(drawn.sum(), rel=1e-4)
    assert shares(mixed.landmarks[0][:94], 64).tolist() == target[:2].tolist()


@PIXEL
def test_every_batch_has_masks_of_the_augmented_image_and_lungs_alone_where_no_heart_is_annotated(
    variant: str, mixed: Examples
) -> None:
    chosen = settings(variant=variant, batches=8, batch_size=2, scale=0, rotation=0, contrast=0)
    batches = Batches(chosen, mixed, 12, HERE)
    organs = set()
    for number, batch in enumerate(batches.of_epoch(0)):
        alone = batch.names[0].startswith("lungs")
        organs.add(batch.target.shape[1])
        assert batch.target.shape == (2, 2 if alone else 3, 64, 64)
        assert batch.noise.shape == (2, build(64, variant).noise_size)
        row = batches.rows(0, number)[0]
        np.testing.assert_allclose(batch.target[0], shares(mixed.landmarks[row][: 94 if alone else 120], 64), atol=1e-3)
    assert organs == {2, 3}


@PIXEL
def test_loss_of_lungs_ignores_what_the_network_says_of_the_heart(variant: str) -> None:
    torch.manual_seed(0)
    model = build(64, variant)
    images, target, noise = torch.rand(2, 1, 64, 64), torch.rand(2, 2, 64, 64), torch.randn(2, model.noise_size)
    terms = MaskObjective(model)(images, target, noise)
    logits = model.training_masks(images, target, noise).logits
    torch.testing.assert_close(terms.masks, F.binary_cross_entropy_with_logits(logits[0][:, :2], target))
    (terms.masks + terms.coarse + terms.kl).backward()
    heads = [
        module for name, module in model.named_modules() if "organs" in name and isinstance(module, torch.nn.Conv2d)
    ]
    assert len(heads) == len(logits)
    for head in heads:
        assert head.weight.grad[2].abs().max() == 0
        assert head.weight.grad[0].abs().max() > 0


@pytest.mark.parametrize("variant", ["unet", pytest.param("phiseg", marks=pytest.mark.slow)])
def test_it_learns_to_draw_organs_and_resumes_to_the_same_weights(
    variant: str, mixed: Examples, tmp_path: Path
) -> None:
    people = mixed.take([0, 1, 2, 3])
    whole = training_of(variant, people, batches=8, epochs=3)
    rows = [whole.run_epoch(lambda _: None) for _ in range(2)]
    torch.save(whole.state(), tmp_path / "state.pt")
    rows.append(whole.run_epoch(lambda _: None))
    assert rows[2]["train_masks"] < 0.75 * rows[0]["train_masks"]
    assert (rows[2]["train_kl"] > 0) == (variant == "phiseg")
    # Of whoever knows no more than how large organs are.
    share = np.mean([shares(points, 64).mean(axis=(1, 2)) for points in people.landmarks], axis=0)
    assert rows[2]["cross_entropy"] < predictive_entropy(share).mean() < rows[0]["train_masks"]
    resumed = training_of(variant, people, batches=8, epochs=3)
    resumed.load(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.run_epoch(lambda _: None)
    assert resumed.history == whole.history
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
def test_a_finished_run_has_weights_scores_and_a_card_that_says_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "annotated"
    write_folder(folder, count=2, side=128)
    chosen = settings(
        variant="phiseg",
        data=[str(folder)],
        drawings=0,
        batches=2,
        epochs=1,
        batch_size=2,
        output=str(tmp_path / "run"),
    )
    people, _ = examples.read_examples(chosen, 64)
    training = Training(chosen, people, 2, people, HERE, lambda module: module)
    training.run_epoch(lambda _: None)
    _, path = storage.arrow_filesystem(chosen.output)
    best = f"{path}/{checkpoints.FOLDER}/{checkpoints.name_of(1)}"
    Path(best).mkdir(parents=True)
    torch.save(training.state(), Path(best, checkpoints.STATE))
    facts = {"validation_names": people.names, "datasets": {}, "left_out": 0, "initial_sha256": None}
    content = finish(chosen, chosen.output, best, facts)
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.startswith("# PHiSeg weights, input 64 x 64")
    assert "no landmarks" in card
    other = model_card(content | {"variant": "unet", "family": "U-Net", "has_posterior": False})
    assert other.startswith("# U-Net weights")
    assert "PHiSeg" not in other
    assert content["sha256"] in card
    assert f"{content['scores']['dice_heart']:.4f}" in card
    for picture in ("curves.png", "uncertainty.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")
    # As `evaluate` scores them.
    capsys.readouterr()
    weights = str(tmp_path / "run" / "model.safetensors")
    arguments = ["evaluate", "--data", str(folder), "--weights", weights, "--samples", "50", "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path / "scored"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["dice"] == pytest.approx(content["scores"]["dice"], abs=1e-4)
    assert again["variant"] == "phiseg"
    with (tmp_path / "scored" / "images.csv").open() as file:
        assert np.mean([float(row["entropy"]) for row in csv.DictReader(file)]) == pytest.approx(again["entropy"])


@pytest.mark.parametrize(
    "words",
    [
        ["segment", "images", "--output", "pictures"],
        ["info"],
        ["generate", "--manifest", "m.parquet", "--output", "run"],
        ["calibrate", "--data", "folder", "--output", "calibration.json"],
        ["plan", "--manifest", "m.parquet"],
        ["bench", "--output", "bench"],
    ],
    ids=lambda words: words[0],
)
def test_what_needs_landmarks_refuses_weights_that_give_masks(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(LEAST_IMAGES):
        cv2.imwrite(f"images/{number}.png", np.full((64, 64), number, np.uint8))
    list_folder(ManifestFolderSettings(uri="images", output="m.parquet"))
    save_model(build(64, "unet"), tmp_path / "unet.safetensors")
    assert main([*words, "--weights", "unet.safetensors"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "unet.safetensors" in line)
    assert "masks and no landmarks" in line
    assert "`evaluate`" in line


@pytest.mark.parametrize("words", [["--calibration", "demo"], ["--shifts"], ["--leave-out", "left_lung.heart_border"]])
def test_what_judges_landmarks_alone_is_refused_for_masks(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(build(64, "unet"), tmp_path / "unet.safetensors")
    arguments = ["--weights", str(tmp_path / "unet.safetensors"), *words]
    assert main(["evaluate", "--drawings", "1", *arguments]) == 2
    assert f"{words[0]}: is for landmarks, and" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": "phiseg", "input_size": 96}, "--input-size must be a multiple of 64 with --variant phiseg"),
        ({"variant": "unet", "objective": "energy"}, "needs --variant skip or noskip"),
        ({"variant": "unet", "freeze_convolutions": True, "initial_weights": "demo"}, "--variant skip or noskip"),
    ],
)
def test_settings_that_masks_cannot_have_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        settings(**changes)


def test_entropy_is_least_where_all_draws_agree_and_largest_at_a_half() -> None:
    found = predictive_entropy(np.array([0.0, 0.1, 0.5, 0.9, 1.0]))
    assert found[[0, 4]].tolist() == [0, 0]
    assert found[2] == pytest.approx(np.log(2))
    assert found[1] == pytest.approx(found[3]) == pytest.approx(-0.1 * np.log(0.1) - 0.9 * np.log(0.9))


def test_scores_of_a_mean_mask_see_the_annotated_organs_alone() -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[:4] = 1
    mean = np.zeros((3, 8, 8))
    mean[0, :4], mean[0, 2:6] = 1.0, 0.5
    mean[1] = truth
    row = mask_row(mean, [truth, truth, None])
    # A half is not more likely inside than not.
    assert row["dice_right_lung"] == pytest.approx(2 * 16 / (16 + 32))
    assert row["entropy_right_lung"] == pytest.approx(np.log(2) / 2)
    assert (row["dice_left_lung"], row["entropy_left_lung"]) == (1, 0)
    assert "dice_heart" not in row
    assert row["entropy"] == pytest.approx(np.log(2) / 4)


def test_a_relation_that_cannot_be_told_is_none_and_no_nan() -> None:
    rows = [{"dice": 0.9, "entropy": 0.1, "dice_heart": 0.9, "entropy_heart": 0.1 * index} for index in range(5)]
    found = relation(rows)
    assert found["image"]["r"] is None
    assert "right_lung" not in found
    clear = relation([{"dice": 1 - 0.1 * index, "entropy": 0.2 * index} for index in range(5)])
    assert clear["image"]["r"] == pytest.approx(1)
    assert clear["image"]["r_interval"][0] == pytest.approx(1)
