"""A calibration that lies beside weights and cannot be used is said, once; one that is missing is not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import pytest

import chexmask_u as cu
from chexmask_u.calibration.calibration import beside_weights, chosen
from chexmask_u.cli import main
from chexmask_u.training import examples
from tests.support import invented_calibrations, invented_runs
from tests.support.invented_runs import Records

KINDS = {"a": Records(range(2))}


@pytest.fixture
def weights(tiny_weights: Path, tmp_path: Path) -> Path:
    path = tmp_path / "training" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(tiny_weights.read_bytes())
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_few_images(sha256: str) -> str:
    content = json.loads(invented_calibrations.calibration(sha256, 21).text)
    content["landmark"]["scores"]["images"] = 8
    return json.dumps(content)


def test_one_that_cannot_be_used_is_said_in_one_line_with_its_reason(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, sha256 = weights.with_name("calibration.json"), digest(weights)
    assert chosen(None, str(weights), sha256) is None
    assert capsys.readouterr().err == ""
    for content, reason in (
        (b"{", "is no calibration, or damaged"),
        (b"\xff\xfe", "is no calibration, or damaged"),
        (invented_calibrations.calibration("0" * 64, 21).text.encode(), "belongs to the weights with sha256 000000"),
        (with_few_images(sha256).encode(), "takes at least 9 annotated images, and the calibration has 8"),
    ):
        file.write_bytes(content)
        assert chosen(None, str(weights), sha256) is None
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith(f"calibration.json beside the weights is not used: {file}: ")
        assert reason in said
        assert chosen("none", str(weights), sha256) is None
        assert capsys.readouterr().err == ""
    # Experiments take of it what few images are enough for.
    found = beside_weights(str(weights), sha256, for_radii=False)
    assert found is not None
    assert found.known is not None


def test_segment_and_release_say_it(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = invented_runs.make_run(tmp_path / "run", KINDS)
    frozen = json.loads(Path(run, "run.json").read_text())
    frozen["weights"] |= {"source": str(weights), "sha256": digest(weights)}
    Path(run, "run.json").write_text(json.dumps(frozen))
    plain = invented_runs.make_release(run, str(tmp_path / "releases"))
    assert capsys.readouterr().err == ""
    weights.with_name("calibration.json").write_text("{}")
    assert invented_runs.make_release(run, str(tmp_path / "releases"))["made_before"]
    assert "calibration" not in plain
    assert capsys.readouterr().err.count("beside the weights is not used") == 1
    weights.with_name("calibration.json").write_text("[]")
    drawing = tmp_path / "drawing.png"
    cv2.imwrite(str(drawing), examples.drawn(1, 5, 1024).images[0])
    words = ["segment", str(drawing), "--weights", str(weights), "--samples", "2", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "beside the weights is not used" in line]
    assert len(said) == 1
    # A model in hand says nothing of what lies beside any weights.
    cu.segment(drawing, cu.load_model(str(weights)), n_samples=2)
    assert "beside the weights" not in capsys.readouterr().err
