"""`chexmask-u train` from end to end on drawings: what it leaves, that it resumes exactly, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import chexmask_u as cu
from chexmask_u.cli import main
from chexmask_u.training.distributed import sharing
from chexmask_u.training.run import card as model_card
from tests.support.annotated import HEART, save_landmarks, write_folder

pytestmark = pytest.mark.timeout(600)

# One thread: others use the machine, too, and threads that wait for each other would make it slow.
SMALL = (
    *("--input-size", "64", "--epochs", "6", "--batches", "20", "--batch-size", "4", "--every", "2"),
    *("--learning-rate", "1e-3", "--validation", "0.3", "--threads", "1"),
)


@pytest.fixture(scope="module", autouse=True)
def hurried() -> Iterator[None]:
    """Ray Train looks at its workers every two seconds; a report of theirs waits for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        yield


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name two annotated folders: eight people with hearts, one of them unusable, six with lungs alone."""
    folder = tmp_path_factory.mktemp("annotated")
    landmarks = write_folder(folder / "hearts", count=8, side=128)
    landmarks[3] = landmarks[3][:, ::-1]
    save_landmarks(folder / "hearts", landmarks)
    landmarks = write_folder(folder / "lungs", count=6, side=128, first=8)
    landmarks[:, HEART] = np.nan
    save_landmarks(folder / "lungs", landmarks, first=8)
    return ["--data", str(folder / "hearts"), "--data", str(folder / "lungs"), "--on-bad", "skip"]


@pytest.fixture(scope="module")
def trained(local_ray: Any, people: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for the tests that look at what it left."""
    output = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *people, *SMALL, "--output", str(output)]) == 0
    return output


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_metrics(one: Path, other: Path) -> None:
    """To the last digit but one or two: a reduction's order may depend on where memory lies."""
    for left, right in zip(rows(one), rows(other), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert (value == "") == (right[name] == "")
            assert value == "" or float(value) == pytest.approx(float(right[name]), rel=1e-5), name


def test_weights_load_and_their_card_says_what_they_are(trained: Path) -> None:
    model = cu.load_model(str(trained / "model.safetensors"))
    assert (model.input_size, model.variant) == (64, "skip")
    digest = hashlib.sha256((trained / "model.safetensors").read_bytes()).hexdigest()
    card, scores = (trained / "README.md").read_text(), json.loads((trained / "scores.json").read_text())
    assert scores["sha256"] == digest
    assert digest in card
    assert "not for clinical use" in card.replace("\n", " ")
    assert f"{scores['scores']['mse']:.1f} px²" in card
    assert "the lowest validation error of those" in card
    std = scores["scores"]["shifts"]["noise"]["landmark"]["std"]
    low, high = std["r_interval"]
    assert f"| noise | std | the landmark | {std['r']:.2f} [{low:.2f}, {high:.2f}] |" in card
    by_energy = scores | {"settings": scores["settings"] | {"objective": "energy"}}
    assert "the lowest validation energy score of those" in model_card(by_energy)
    assert sum(scores["datasets"]["hearts"].values()) == 7
    assert sum(scores["datasets"]["lungs"].values()) == 6
    assert scores["left_out"] == 1
    assert "hearts,person3,swapped" in (trained / "problems.csv").read_text()
    for picture in ("curves.png", "uncertainty.png"):
        assert (trained / picture).read_bytes().startswith(b"\x89PNG")


def test_metrics_of_every_epoch_are_in_the_table_and_in_tensorboard(trained: Path) -> None:
    table = rows(trained)
    assert [int(row["epoch"]) for row in table] == [1, 2, 3, 4, 5, 6]
    assert [row["mse"] != "" for row in table] == [False, True] * 3
    assert float(table[-1]["train_landmarks"]) < float(table[0]["train_landmarks"])
    board = EventAccumulator(str(trained / "tensorboard")).Reload()
    for tag, column in (("train/landmarks", "train_landmarks"), ("validation/dice_heart", "dice_heart")):
        expected = [(int(row["epoch"]), float(row[column])) for row in table if row[column]]
        found = [(event.step, event.value) for event in board.Scalars(tag)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_best_epoch_is_kept_and_scored_as_evaluate_scores_it(
    trained: Path, people: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = json.loads((trained / "scores.json").read_text())
    validated = {int(row["epoch"]): float(row["mse"]) for row in rows(trained) if row["mse"]}
    assert scores["epoch"] == min(validated, key=lambda epoch: validated[epoch])
    weights, split = str(trained / "model.safetensors"), str(trained / "split.csv")
    arguments = ["evaluate", *people, "--weights", weights, "--split", split, "--device", "cpu", "--json"]
    capsys.readouterr()
    assert main([*arguments, "--samples", "50", "--output", str(trained.parent / "scored")]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((trained.parent / "scored" / "scores.json").read_text()) == again
    with (trained.parent / "scored" / "images.csv").open() as file:
        assert np.mean([float(row["mse"]) for row in csv.DictReader(file)]) == pytest.approx(again["mse"])
    for name in ("images", "mse", "dice_right_lung", "std", "sigma", "active_latents"):
        assert again[name] == pytest.approx(scores["scores"][name], rel=1e-4), name


@pytest.mark.slow
def test_finished_run_is_not_trained_again_but_can_go_on(
    local_ray: Any, people: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *people, *SMALL, "--output", str(tmp_path / "run")]
    assert main([*command, "--epochs", "2"]) == 0
    assert main([*command, "--epochs", "2"]) == 0
    assert "made before" in capsys.readouterr().out
    assert main([*command, "--epochs", "4"]) == 0
    assert [int(row["epoch"]) for row in rows(tmp_path / "run")] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["epochs"] == 4


# As if the package were not installed: every finder of modules knows nothing of it.
_WITHOUT_TENSORBOARD = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *where):
        return None if name.partition(".")[0] == "tensorboard" else self.finder.find_spec(name, *where)

sys.meta_path[:] = map(Without, sys.meta_path)
from chexmask_u.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_tensorboard_training_says_at_once_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_TENSORBOARD, "train", "--drawings", "9"]
    command += ["--output", str(tmp_path / "run")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert (
        refused.stderr == 'chexmask-u: training needs TensorBoard: pip install -e ".[train]" in the project\'s folder\n'
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch_size", "gpus", "expected"), [(4, 0, 1), (4, 1, 1), (4, 3, 2), (4, 8, 4), (6, 4, 3), (7, 6, 1), (16, 8, 8)]
)
def test_as_many_gpus_train_as_can_share_a_batch_evenly(batch_size: int, gpus: int, expected: int) -> None:
    assert sharing(batch_size, gpus) == expected


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run writes a README.md, and an evaluation the very names that say how far a training run is."""
    (tmp_path / "README.md").write_text("ours")
    for verb in ("train", "evaluate"):
        assert main([verb, "--drawings", "9", "--output", str(tmp_path)]) == 2
        assert "(there is 'README.md'); choose another --output or a new folder in it" in capsys.readouterr().err
    (tmp_path / "training.json").write_text("{}")
    assert main(["evaluate", "--drawings", "9", "--output", str(tmp_path)]) == 2
    assert "choose another --output" in capsys.readouterr().err
    (tmp_path / "scores.json").write_text("{}")
    assert main(["evaluate", "--drawings", "9", "--output", str(tmp_path)]) == 2
    assert "holds a training run; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "scores.json").read_text() == "{}"


def test_run_of_other_settings_or_data_is_refused(
    trained: Path, people: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *SMALL, "--output", str(trained)]
    assert main([*command, *people, "--kl-last", "0.5"]) == 2
    assert "was begun with --kl-last 0.01, not 0.5" in capsys.readouterr().err
    assert main([*command, *people, "--objective", "energy"]) == 2
    assert "was begun with --objective mse, not energy" in capsys.readouterr().err
    assert main([*command, *people[2:]]) == 2
    assert "choose another --output" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_can_go_on_from_weights_on_other_images(
    trained: Path, people: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, weights = tmp_path / "run", str(trained / "model.safetensors")
    command = ["train", *people, *SMALL, "--epochs", "1", "--drawings", "8", "--output", str(output)]
    assert main([*command, "--initial-weights", "demo"]) == 2
    assert "--initial-weights demo: are of the variant skip at input size 512" in capsys.readouterr().err
    assert main([*command, "--initial-weights", weights]) == 0
    assert float(rows(output)[0]["train_landmarks"]) < 0.7 * float(rows(trained)[0]["train_landmarks"])
    kept = {"source": weights, "commit": None, "file": "model.safetensors"}
    assert json.loads((output / "training.json").read_text())["initial_weights_file"] == kept
    card = (output / "README.md").read_text()
    assert json.loads((trained / "scores.json").read_text())["sha256"] in card
    assert "--initial-weights WEIGHTS" in card
    assert main(command) == 2
    assert "not random weights; choose another --output" in capsys.readouterr().err


def test_a_run_that_a_version_with_fewer_settings_began_goes_on(
    trained: Path, people: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = trained / "training.json"
    begun = record.read_text()
    older = json.loads(begun)
    del older["settings"]["schedule"]
    record.write_text(json.dumps(older))
    try:
        command = ["train", *SMALL, *people, "--output", str(trained)]
        assert main(command) == 0
        assert main([*command, "--schedule", "cosine"]) == 2
        assert "was begun with --schedule step, not cosine" in capsys.readouterr().err
    finally:
        record.write_text(begun)


@pytest.mark.slow
def test_two_workers_train_as_one_does(local_ray: Any, people: list[str], trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(["train", *people, *SMALL, "--output", str(output), "--workers", "2"]) == 0
    alone, together = rows(trained), rows(output)
    assert len(together) == len(alone)
    # At this learning rate every rounding grows: after 120 batches the two differ by several percent.
    for one, other in zip(alone[:3], together[:3], strict=True):
        for name in ("train_landmarks", "train_skip1", "train_kl", *(("mse",) if one["mse"] else ())):
            assert float(other[name]) == pytest.approx(float(one[name]), rel=0.01), (one["epoch"], name)


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_with_the_same_weights(trained: Path, people: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "chexmask_u.cli", "train", *people, *SMALL, "--output", str(output)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            # The third epoch is done, and the last checkpoint is that of the second.
            _wait(lambda: (output / "metrics.csv").exists() and len(rows(output)) >= 3, process, tmp_path / "log")
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert not (output / "scores.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert _first_epoch_of_last_attempt(output) in (3, 5)
    assert_same_metrics(output, trained)
    assert (output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_run_whose_list_of_checkpoints_was_torn_goes_on(
    local_ray: Any, people: list[str], trained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shorter = ["train", *people, *SMALL, "--output", str(output), "--epochs", "4"]
    assert main(shorter) == 0
    snapshot = output / "checkpoints" / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:50])
    # A kill between the last checkpoint and the card.
    (output / "scores.json").unlink()
    # As if no epoch after the second had been as good; Ray keeps the best one beside the newest.
    checkpoints = output / "checkpoints"
    best = torch.load(checkpoints / "epoch-000004" / "state.pt", weights_only=True)
    best |= {"epoch": 2, "history": [*best["history"][:1], best["history"][1] | {"mse": 1.0}]}
    for epoch in (1, 2):
        (checkpoints / f"epoch-{epoch:06d}").mkdir(exist_ok=True)
        torch.save(best, checkpoints / f"epoch-{epoch:06d}" / "state.pt")
    # And what an earlier kill left of another.
    torn = checkpoints / "epoch-000001" / "state.pt"
    torn.write_bytes(torn.read_bytes()[:5000])
    assert main(shorter) == 0
    assert json.loads((output / "scores.json").read_text())["epoch"] == 2
    snapshot.write_bytes(snapshot.read_bytes()[:50])
    assert main(["train", *people, *SMALL, "--output", str(output)]) == 0
    assert _first_epoch_of_last_attempt(output) == 5
    assert_same_metrics(output, trained)
    assert json.loads((output / "scores.json").read_text())["epoch"] == 2


@pytest.mark.slow
def test_diverged_run_stops_and_names_the_images(
    local_ray: Any, people: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*people, *SMALL, "--learning-rate", "10", "--batches", "60", "--output", str(tmp_path / "run")]
    assert main(["train", *arguments, "--json"]) == 1
    out = capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert len(facts["images"]) == 4
    assert "gradient is not finite" in out
    assert all(name in out for name in facts["images"])
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_bad_input_is_refused_before_training(
    local_ray: Any, people: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *people, "--on-bad", "refuse", *SMALL, "--output", str(tmp_path / "run")]) == 2
    assert "1 swapped (x and y are swapped: hearts/person3)" in capsys.readouterr().err
    assert "hearts,person3,swapped" in (tmp_path / "run" / "problems.csv").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()


def _first_epoch_of_last_attempt(run: Path) -> int:
    """Each attempt writes an event file of its own."""
    last = max((run / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime)
    steps: list[int] = [event.step for event in EventAccumulator(str(last)).Reload().Scalars("train/landmarks")]
    return steps[0]


def _wait(condition: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
