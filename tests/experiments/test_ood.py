"""Odd images told from usual ones: by altered copies, folders, labels and scores; and who is not told to be odd."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from chexmask_u import cli
from chexmask_u.experiments.ood import auc
from chexmask_u.sources.synthetic import draw as draw_radiograph
from chexmask_u.training.shifts import no_chests
from tests.support import experiments
from tests.support.chosen_releases import draw, write_release

FEW = ("--drawings", 12, "--samples", 4)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["experiment", "ood", *map(str, arguments)]) == cli.BAD_INPUT
    return capsys.readouterr().err


def test_altered_copies_are_told_apart_and_not_by_a_network_that_sees_nothing(
    tmp_path: Path, tiny_weights: Path
) -> None:
    blind = experiments.blind_weights(tmp_path / "blind.safetensors")
    results = experiments.run("ood", tmp_path / "out", *FEW, "--weights", tiny_weights, "--weights", blind)
    of = results["by_weights"]
    assert set(of["tiny"]["scores"]["predictive"]) == {"rotated", "cropped", "inverted", "no chest", "all"}
    assert of["tiny"]["test_in"] == 4
    # Its sigma is alike for all images: no forest can grow on it.
    assert set(of["blind"]["scores"]) == {"predictive"}
    low, high = of["blind"]["scores"]["predictive"]["inverted"]["auc_interval"]
    assert low <= 0.5 <= high
    assert all(row["auc"] for row in experiments.table(tmp_path / "out"))


@pytest.mark.slow
def test_folders_and_labels_say_the_same(tmp_path: Path, tiny_weights: Path) -> None:
    for index in range(12):
        path = tmp_path / "mine" / f"chest{index}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), draw_radiograph(index, side=1024).image)
    for index, (_, image) in enumerate(no_chests(2)):
        path = tmp_path / "odd" / f"odd{index}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), image)
    given = ("--samples", 4, "--weights", tiny_weights)
    apart = experiments.run(
        "ood", tmp_path / "apart", "--images", tmp_path / "mine", "--out-of", tmp_path / "odd", *given
    )
    names = [path.stem for folder in ("mine", "odd") for path in sorted((tmp_path / folder).iterdir())]
    labels = "\n".join(f"{name},{'in' if name.startswith('chest') else 'out'}" for name in names)
    (tmp_path / "labels.csv").write_text(f"name,label\n{labels}\n")
    both = ("--images", tmp_path / "mine", "--images", tmp_path / "odd", "--labels", tmp_path / "labels.csv")
    told = experiments.run("ood", tmp_path / "told", *both, *given)
    first, second = (one["by_weights"]["tiny"]["scores"]["predictive"] for one in (apart, told))
    assert first["of odd"]["auc"] == second["out"]["auc"]
    assert first["of odd"]["n_out"] == 5


def test_records_are_out_by_their_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "releases").mkdir()
    rows = []
    for index in range(48):
        one = draw(f"{index}.png", 900, 800, index, dice_rca_mean=0.5 if index % 3 == 0 else 0.9)
        one.std[:] *= 4 if index % 3 == 0 else 1
        rows.append(one)
    release = write_release(tmp_path / "releases" / "v1.0.0", {"mine": rows})
    results = experiments.run("ood", tmp_path / "out", "--release", release)
    assert results["by_weights"]["release"]["scores"]["predictive"]["Dice RCA below 0.7"]["auc"] == 1
    assert experiments.verdicts(results) == ["holds"]
    told = refused(capsys, "--release", release, "--dice", "0.2", "--output", tmp_path / "none")
    assert "takes both classes, and all 48 images are in" in told


def test_what_cannot_be_judged_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ("--output", tmp_path / "out")
    assert "takes at least 12 images, and there are 4" in refused(capsys, "--drawings", 4, *output)
    (tmp_path / "labels.csv").write_text("name,label\nx,in\n")
    told = refused(capsys, "--drawings", 12, "--labels", tmp_path / "labels.csv", *output)
    assert "does not say whether drawings/2147483648-00000 is in or out" in told


def test_the_area_is_scikit_learns_and_copies_of_an_image_go_together() -> None:
    rng = np.random.default_rng(0)
    usual, odd = rng.normal(0, 1, 30).round(1), rng.normal(1, 1, 40).round(1)
    alone = auc(usual, odd, np.arange(40).astype(str), 0)
    truth = np.repeat([0, 1], [30, 40])
    assert alone.value == pytest.approx(roc_auc_score(truth, np.concatenate([usual, odd])))
    copies = auc(usual, np.repeat(odd[:10], 4), np.repeat(np.arange(10), 4).astype(str), 0)
    apart = auc(usual, np.repeat(odd[:10], 4), np.arange(40).astype(str), 0)
    assert copies.high - copies.low > 1.2 * (apart.high - apart.low)
