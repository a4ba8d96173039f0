"""Scores of weights on annotated images."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.cli import build_parser
from chexmask_u.errors import InputError
from chexmask_u.settings import EvaluateSettings, TrainSettings
from chexmask_u.training import evaluate, examples
from tests.support.annotated import save_landmarks, write_folder


@pytest.mark.parametrize("number", [1, 2])
def test_the_commands_in_the_card_of_the_bundled_weights_are_such_that_train_takes(number: int) -> None:
    card = (Path(cu.__file__).parent / "weights" / "README.md").read_text()
    command = card.split("```sh\nchexmask-u ")[number]
    given = vars(build_parser().parse_args(shlex.split(command.partition("```")[0].replace("\\\n", " "))))
    parsed = TrainSettings.from_mapping(given)
    assert (parsed.input_size, parsed.half, parsed.freeze_convolutions) == (512, True, number == 2)


def test_evaluate_gives_the_bundled_weights_the_scores_of_their_card(shared: Path) -> None:
    split = Path(cu.__file__).parent / "weights" / "split.csv"
    given = {"data": [str(shared / "data" / "jsrt")], "split": str(split), "samples": 20, "device": "cpu"}
    summary = evaluate.evaluate(EvaluateSettings.from_mapping(given)).summary
    assert summary["images"] == 20
    assert summary["mse"] == pytest.approx(172, abs=0.5)
    assert summary["mse_of_mean"] == pytest.approx(157, abs=0.5)
    dice = [summary[f"dice_{organ}"] for organ in cu.ORGANS]
    np.testing.assert_allclose(dice, [0.972, 0.966, 0.940], atol=0.0006)
    assert summary["std"] == pytest.approx(10.6, abs=0.05)
    assert summary["std_error_ratio"] == pytest.approx(0.94, abs=0.006)
    # The cover hides the right lung.
    assert summary["covered"]["std_ratio_under_cover"] > 1.3
    assert summary["covered"]["images_higher"] > 0.8


@pytest.mark.parametrize("seed", [0, 1])
def test_evaluate_draws_none_of_the_drawings_that_training_drew(seed: int) -> None:
    shown = examples.drawn(3, seed, 1024)
    scored, _ = evaluate.read(EvaluateSettings(drawings=3))
    assert not set(shown.names) & set(scored.names)
    assert not any((one == other).all() for one in shown.images for other in scored.images)
    # Those that training holds out where there is nothing else.
    np.testing.assert_array_equal(scored.images, examples.held_out(3, 0, 1024).images)


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
