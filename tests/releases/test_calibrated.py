"""A release with a calibration: radii and scores beside the landmarks, and what is said of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import chexmask_u as cu
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.errors import InputError
from chexmask_u.releases.validate import validate
from tests.support import invented_calibrations, invented_runs
from tests.support.invented_runs import Records

KINDS = {"a": Records(range(6), {7: "damaged"})}

# Of the weights that an invented run says it is of.
SHA256 = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return invented_calibrations.calibration(SHA256)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return invented_runs.make_run(tmp_path / "run", KINDS, weights="weights")


@pytest.fixture
def file(tmp_path: Path, calibration: Calibration) -> Path:
    path = tmp_path / "calibration.json"
    path.write_text(calibration.text)
    return path


def rows(release: str) -> list[dict]:
    return pq.read_table(Path(release) / "a" / "landmarks-00000-of-00001.parquet").to_pylist()


def test_released_radii_are_those_of_the_calibration_in_original_pixels(
    run: str, file: Path, tmp_path: Path, calibration: Calibration
) -> None:
    made = invented_runs.make_release(run, str(tmp_path / "releases"), calibration=str(file))
    validate(made["folder"])
    for row in rows(made["folder"]):
        scale = row["letterbox"]["scale"]
        for name, of in (("landmarks_radius", "landmark"), ("contour_radius", "contour")):
            np.testing.assert_allclose(np.array(row[name]) * scale, calibration.radius(row, 0.9, of), rtol=1e-4)
        assert row["ood_score"] == pytest.approx(float(calibration.ood_score(row)), abs=0.1)
        radius = calibration.radius(row)
        np.testing.assert_array_equal(
            cu.trusted_landmarks(row, within=float(np.median(radius))), radius <= np.median(radius)
        )
    said = made["calibration"]
    assert (said["sha256"], said["coverage"]) == (hashlib.sha256(file.read_bytes()).hexdigest(), 0.9)
    card = Path(made["folder"], "README.md").read_text()
    assert said["sha256"] in card
    assert said["assumes"] in card
    assert "40 of there" in card
    assert "`contour_radius`" in card
    # How it fares on each kind of image that it was tried on.
    shifted = calibration.about["trials"]["contour"]["kinds"]["shifted"]
    found = shifted["coverages"]["0.9"]
    low, high = (f"{100 * end:.1f}%" for end in found["interval"])
    count = said["radii"]["contour"]["images_that_count"]
    assert f"| contour | shifted | {count} | {100 * found['coverage']:.1f}% ({low} to {high}) |" in card
    assert f"| {shifted['r']:.2f} ({shifted['r_interval'][0]:.2f} to {shifted['r_interval'][1]:.2f}) |" in card


def test_without_one_the_columns_are_absent_and_the_card_says_so(run: str, tmp_path: Path) -> None:
    made = invented_runs.make_release(run, str(tmp_path / "releases"))
    assert "calibration" not in made
    assert not {"landmarks_radius", "contour_radius", "ood_score"} & set(rows(made["folder"])[0])
    card = Path(made["folder"], "README.md").read_text()
    assert "made without a calibration" in card
    assert "landmarks_radius" not in card
    with pytest.raises(ValueError, match="made without a calibration"):
        cu.trusted_landmarks(rows(made["folder"])[0], within=10)


def test_radii_that_come_later_are_a_major_version_and_the_same_ones_none(run: str, file: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "releases")
    invented_runs.make_release(run, output)
    assert invented_runs.make_release(run, output, calibration=str(file))["version"] == "v2.0.0"
    assert invented_runs.make_release(run, output, calibration=str(file))["made_before"]


def test_scores_that_training_left_beside_the_weights_are_told(run: str, tmp_path: Path) -> None:
    weights = tmp_path / "training" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"looked at by its name alone")
    frozen = json.loads(Path(run, "run.json").read_text())
    frozen["weights"]["source"] = str(weights)
    Path(run, "run.json").write_text(json.dumps(frozen))
    scores = {
        "images": 31,
        "with_heart": 20,
        "distance": 12.34,
        "dice_right_lung": 0.9712,
        "hausdorff_right_lung": 45.6,
    }
    beside = weights.with_name("scores.json")
    for number, sha256 in enumerate((SHA256, "0" * 64)):
        beside.write_text(json.dumps({"sha256": sha256, "scores": scores}))
        made = invented_runs.make_release(run, str(tmp_path / str(number)))
        card = Path(made["folder"], "README.md").read_text()
        # Those of other weights say nothing.
        assert ("| right lung | 0.971 | 45.6 px |" in card) == (sha256 == SHA256)
        assert ("scores" in made) == (sha256 == SHA256)


def test_a_calibration_that_cannot_be_used_is_refused_before_anything_is_read(
    run: str, file: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "releases")
    other = invented_runs.make_run(tmp_path / "other", KINDS, weights="others")
    with pytest.raises(InputError, match="belongs to the weights"):
        invented_runs.make_release(other, output, calibration=str(file))
    few = invented_calibrations.calibration(SHA256, 21)
    content = json.loads(few.text)
    content["landmark"]["scores"]["images"] = 8
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="takes at least 9 annotated images"):
        invented_runs.make_release(run, output, calibration=str(file))
    assert not (tmp_path / "releases").exists()
