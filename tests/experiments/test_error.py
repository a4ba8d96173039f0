"""Uncertainty against the error: of images with one and two annotators, and of records."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u import cli
from chexmask_u.experiments.error import reliability, sparsification
from tests.support import experiments, invented_calibrations
from tests.support.annotated import save_landmarks, write_folder
from tests.support.chosen_releases import Record, draw, write_release


def write_annotator(path: Path, landmarks: dict[str, np.ndarray]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "Dataset", "Landmarks"])
        writer.writerows([name, "mine", ",".join(f"{x:.2f}" for x in of.ravel())] for name, of in landmarks.items())
    return path


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("annotated") / "people"
    return folder, write_folder(folder, 4, side=1024)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["experiment", "error", *map(str, arguments)]) == cli.BAD_INPUT
    return capsys.readouterr().err


def test_the_correlation_is_that_of_predictions_and_annotations(
    people: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder, landmarks = people
    results = experiments.run("error", tmp_path / "out", "--data", folder, "--samples", 10)
    images = np.stack([cu.read_image(folder / "images" / f"person{index}.png").image for index in range(4)])
    names = [f"people/person{index}" for index in range(4)]
    prediction = cu.predict(cu.load_model("demo"), images, names, 10)
    errors = np.linalg.norm(prediction.landmarks_mean - landmarks, axis=-1)
    r = np.corrcoef(prediction.landmarks_std.mean(axis=-1).ravel(), errors.ravel())[0, 1]
    found = results["by_weights"]["demo"]["landmark"]
    assert found["std"]["r"] == pytest.approx(r, abs=1e-4)
    assert found["error"] == pytest.approx(errors.mean(), rel=1e-4)
    low, high = found["std"]["r_interval"]
    assert low <= r <= high
    # The bundled weights have a calibration beside them.
    assert 0 < found["expected landmark"]["within_radius"] <= 1
    assert len(experiments.table(tmp_path / "out")) == 6


def test_two_annotators_count_alike_and_must_have_the_same_images(
    people: tuple[Path, np.ndarray], tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, landmarks = people
    (tmp_path / "second").mkdir()
    save_landmarks(tmp_path / "second", landmarks + np.float32([3, 4]))
    second = f"people={tmp_path / 'second' / 'landmarks.npz'}"
    given = ("--data", folder, "--samples", 5, "--weights", tiny_weights)
    results = experiments.run("error", tmp_path / "out", *given, "--annotator", second)
    assert results["by_weights"]["tiny"]["annotators_apart"] == pytest.approx(5, abs=0.01)
    save_landmarks(tmp_path / "second", landmarks[:3])
    told = refused(capsys, *given, "--annotator", second, "--on-bad", "skip", "--output", tmp_path / "other")
    assert "people/person3, have no landmarks of this person" in told


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    folder = tmp_path_factory.mktemp("released") / "releases" / "v1.0.0"
    folder.parent.mkdir()
    records = [draw(f"{index}.png", 900, 700, index) for index in range(8)]
    return write_release(folder, {"mine": records}), records


def in_frame(one: Record, rng: np.random.Generator, times: float) -> np.ndarray:
    """An annotation as far from the mean as the std says, in some direction."""
    std = one.letterbox.spread_to_frame(one.std)
    return one.letterbox.to_frame(one.mean) + times * std * rng.choice((-1, 1), std.shape)


def test_an_honest_std_of_records_holds_and_a_blind_one_does_not(
    release: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    folder, records = release
    rng = np.random.default_rng(0)
    honest = write_annotator(tmp_path / "honest.csv", {one.image_id: in_frame(one, rng, 1) for one in records})
    results = experiments.run("error", tmp_path / "one", "--release", folder, "--annotator", f"a={honest}")
    assert experiments.verdicts(results) == ["holds"]
    found = results["by_weights"]["release"]["landmark"]["std"]
    assert found["r"] > 0.9
    assert found["ece"] < 0.5
    assert found["top_over_bottom_interval"][0] > 3
    moved = {one.image_id: one.letterbox.to_frame(one.mean) + rng.normal(0, 5, one.mean.shape) for one in records}
    blind = write_annotator(tmp_path / "blind.csv", moved)
    results = experiments.run("error", tmp_path / "two", "--release", folder, "--annotator", f"a={blind}")
    assert experiments.verdicts(results) == ["does not hold"]


def test_annotations_that_do_not_fit_are_refused(
    release: tuple[Path, list[Record]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, records = release
    whole = {one.image_id: one.letterbox.to_frame(one.mean) for one in records}
    first = write_annotator(tmp_path / "first.csv", whole)
    fewer = write_annotator(tmp_path / "fewer.csv", dict(list(whole.items())[:7]))
    short = write_annotator(tmp_path / "short.csv", {name: of[:94] for name, of in whole.items()})
    given = ("--release", folder, "--output", tmp_path / "out", "--annotator")
    assert "were not annotated by the others" in refused(capsys, *given, f"a={first}", "--annotator", f"b={fewer}")
    assert "188 values in Landmarks, not 240" in refused(capsys, *given, f"a={short}")
    assert "NAME=CSV" in refused(capsys, *given, first)
    none = write_annotator(tmp_path / "none.csv", {f"x{name}": of for name, of in whole.items()})
    assert "takes at least 3 images, and there are 0" in refused(capsys, *given, f"a={none}")
    for one in records:
        one.std[:] = 3
    (tmp_path / "releases").mkdir()
    alike = write_release(tmp_path / "releases" / "v1.0.0", {"mine": records})
    given = ("--release", alike, "--output", tmp_path / "out", "--annotator")
    assert "does not vary" in refused(capsys, *given, f"a={first}")


def test_a_curve_falls_where_the_uncertainty_knows_and_tenths_say_how_far() -> None:
    errors = np.random.default_rng(0).exponential(5, 2000)
    knows, chance = sparsification(errors, errors), sparsification(np.random.default_rng(1).random(2000), errors)
    assert [knows[0], chance[0]] == pytest.approx([errors.mean()] * 2)
    assert knows[10] < 0.5 * errors.mean()
    assert chance[10] == pytest.approx(errors.mean(), rel=0.1)
    tenths = reliability(2 * errors[:, None], errors[:, None])
    assert len(tenths) == 10
    assert all(tenth["expected"] == pytest.approx(2 * tenth["found"]) for tenth in tenths)


def test_a_radius_of_too_few_images_is_left_out_and_said(
    people: tuple[Path, np.ndarray], tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "few" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(tiny_weights.read_bytes())
    content = json.loads(invented_calibrations.calibration(hashlib.sha256(weights.read_bytes()).hexdigest(), 21).text)
    content["landmark"]["scores"]["images"] = 8
    weights.with_name("calibration.json").write_text(json.dumps(content))
    results = experiments.run("error", tmp_path / "out", "--data", people[0], "--samples", 3, "--weights", weights)
    (found,) = results["by_weights"].values()
    assert "expected contour" in found["contour"]
    assert "expected landmark" not in found["landmark"]
    said = capsys.readouterr().err
    assert "the landmark radius of its calibration is not used: a coverage of 0.9 takes at least 9" in said
    assert "the contour radius of its calibration" not in said
