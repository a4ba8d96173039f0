"""Entropy of the mean mask against 1 - Dice, of networks of landmarks and of masks in one run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import chexmask_u as cu
from chexmask_u import cli
from chexmask_u.errors import InputError
from chexmask_u.experiments.pixel import mean_of_draws
from chexmask_u.experiments.study import Study
from chexmask_u.folder import Folder
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.pixel import predict_masks
from chexmask_u.model.variants import build
from chexmask_u.settings import ExperimentSettings
from chexmask_u.training import examples
from chexmask_u.weight_files import load_network
from tests.support import experiments


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    model = build(64, "unet")
    with torch.no_grad():
        # So that every image has pixels on both sides of one half.
        model.organs.weight.mul_(8)
    save_model(model, path)
    return path


@pytest.mark.slow
def test_both_kinds_of_network_are_measured_alike_and_compared(tmp_path: Path, unet: Path, tiny_weights: Path) -> None:
    given = ("--drawings", 4, "--samples", 5, "--timed", 1, "--kind", "clean", "--kind", "noise")
    output = tmp_path / "out"
    results = experiments.run("pixel", output, *given, "--weights", tiny_weights, "--weights", unet)
    assert set(results["by_weights"]["unet"]) == {"clean", "noise", "all kinds", "seconds"}
    claims = [finding["claim"] for finding in results["findings"]]
    assert [claim.partition("U-Net ")[2] for claim in claims] == [
        "(tiny against unet; clean)",
        "(tiny against unet; all kinds)",
    ]
    rows = experiments.table(output)
    assert {(row["weights"], row["images"]) for row in rows} == {
        (label, kind) for label in ("tiny", "unet") for kind in ("clean", "noise", "all kinds")
    }
    # By hand, from the draws alone.
    people = examples.held_out(4, 0, 1024)
    truth = [[cu.organ_mask(points * 1024, organ, 1024, 1024) for organ in cu.ORGANS] for points in people.landmarks]
    means = predict_masks(load_network(str(unet)), people.images, people.names, 5)
    lost, entropy = np.zeros((4, 3)), np.zeros((4, 3))
    for image, organs in enumerate(truth):
        for place, mask in enumerate(organs):
            p = means[image, place].astype(np.float64)
            found = p > 0.5
            lost[image, place] = 1 - 2 * (found & (mask > 0)).sum() / (found.sum() + mask.sum())
            inside = p[mask > 0]
            entropy[image, place] = -(inside * np.log(inside) + (1 - inside) * np.log(1 - inside)).mean()
    told = results["by_weights"]["unet"]["clean"]["all organs"]
    r = np.corrcoef(lost.mean(axis=1), entropy.mean(axis=1))[0, 1]
    assert told["r"] == pytest.approx(r, abs=1e-3)
    assert told["dice"] == pytest.approx(1 - lost.mean(), abs=1e-4)
    assert told["entropy"] == pytest.approx(entropy.mean(), rel=1e-4)
    # What was predicted is not predicted again.
    files = {path: path.stat().st_mtime_ns for path in (output / "predictions").iterdir()}
    again = experiments.run("pixel", output, *given, "--weights", tiny_weights, "--weights", unet)
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in (output / "predictions").iterdir()} == files


def test_the_mean_mask_of_draws_is_the_share_that_covers_a_pixel() -> None:
    (person,) = examples.drawn(1, 0, 64).landmarks * 1024
    away, far = np.array([2000, 0]), np.array([0, 1e9])
    draws = np.stack([person, person, person + away, person + far])
    mean = mean_of_draws(draws)
    for organ, found in zip(cu.ORGANS, mean, strict=True):
        np.testing.assert_array_equal(found, 0.5 * cu.organ_mask(person, organ, 1024, 1024))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pixel", "--drawings", "2"], "pixel takes at least 3 images, and there are 2"),
        (["pixel", "--drawings", "4", "--kind", "nose"], "--kind nose: is none"),
        (["noise", "--drawings", "4", "--weights", "UNET"], "masks and no landmarks"),
        (["pixel", "--images", "IMAGES"], "not annotated, and overlap needs annotations"),
    ],
    ids=["too few", "no such kind", "another experiment", "not annotated"],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    unet: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((64, 64), 50 * number, np.uint8))
    names = {"UNET": str(unet), "IMAGES": str(tmp_path / "images")}
    given = [names.get(word, word) for word in arguments]
    assert cli.main(["experiment", *given, "--output", str(tmp_path / "out")]) == cli.BAD_INPUT
    assert words in capsys.readouterr().err


def test_experiments_of_landmarks_leave_weights_of_masks_out_where_all_are_run(
    tmp_path: Path, unet: Path, tiny_weights: Path
) -> None:
    def study(*weights: Path) -> Study:
        given = {"experiment": "all", "drawings": 3, "output": str(tmp_path), "weights": [str(one) for one in weights]}
        return Study(ExperimentSettings.from_mapping(given), Folder(str(tmp_path)))

    both = study(tiny_weights, unet)
    assert [one.label for one in both.networks] == ["tiny", "unet"]
    assert [one.label for one in both.of_landmarks().weights] == ["tiny"]
    with pytest.raises(InputError, match="none of the weights give landmarks"):
        study(unet).of_landmarks()
