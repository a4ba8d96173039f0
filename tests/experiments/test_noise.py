"""Uncertainty under growing corruption: of the bundled weights, and of a network that sees nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u import cli
from chexmask_u.experiments.noise import Curve, judge
from chexmask_u.training import examples
from tests.support import experiments


def test_two_weights_stand_side_by_side_and_of_three_images_nothing_can_be_told(tmp_path: Path) -> None:
    blind = experiments.blind_weights(tmp_path / "blind.safetensors")
    given = ("--drawings", 3, "--samples", 5, "--corruption", "noise", "--weights", "demo", "--weights", blind)
    results = experiments.run("noise", tmp_path / "out", *given)
    findings = {finding["claim"]: finding for finding in results["findings"]}
    for label in ("demo", "blind"):
        finding = findings[f"Mean node std grows with noise ({label})"]
        assert finding["verdict"] == "cannot be told"
        assert finding["cause"] == "3 images are too few for an interval over images; give at least 8"
    assert results["by_weights"]["blind"]["noise"]["std"]["growth_interval"] == [1, 1]
    rows = experiments.table(tmp_path / "out")
    assert {row["weights"] for row in rows} == {"demo", "blind"}
    assert all(row["mean"] for row in rows)
    # At the first level nothing is changed.
    clean = examples.held_out(3, 0, 1024)
    alone = cu.predict(cu.load_model("demo"), clean.images, clean.names, 5).landmarks_std.mean()
    assert results["by_weights"]["demo"]["noise"]["std"]["mean"][0] == pytest.approx(alone, rel=1e-4)


def test_a_plateau_and_a_decline_are_found_where_they_are() -> None:
    levels = (0.0, 10.0, 20.0, 40.0, 80.0)
    rng = np.random.default_rng(0)
    size = rng.uniform(1, 2, (8, 1))
    rising = Curve(levels, size * [1, 2, 3, 4, 5])
    assert rising.plateau() is None
    assert rising.trend(0)["rho"] == 1
    assert rising.trend(0)["p_trend"] < 0.001
    assert rising.decline(0).high < 1
    saturated = Curve(levels, size * [1, 2, 3, 3.01, 3.01])
    assert saturated.plateau() == 2
    declining = Curve(levels, size * [1, 2, 4, 3, 2])
    assert declining.decline(0).value == pytest.approx(2)
    assert declining.decline(0).low > 1
    noise = Curve(levels, rng.uniform(1, 2, (40, 5)))
    assert noise.trend(0)["p_trend"] > 0.05
    assert noise.growth(0).low < 1.1


def test_what_grows_saturates_and_declines_holds() -> None:
    levels = (0.0, 10.0, 20.0, 40.0, 80.0)
    size = np.random.default_rng(0).uniform(1, 2, (8, 1))
    up_and_down, flat = Curve(levels, size * [1, 2, 4, 4, 3]), Curve(levels, size * [1, 1, 1, 1, 1])
    found = judge("w", "skip", {"std": up_and_down, "sigma": flat}, 0)
    assert [one.verdict for one in found] == ["holds", "does not hold", "holds", "holds"]
    assert "20 of 255" in found[2].ours
    rising = Curve(levels, size * [1, 2, 3, 4, 5])
    found = judge("w", "skip", {"std": rising, "sigma": rising}, 0)
    assert [one.verdict for one in found] == ["holds", "holds", "does not hold", "does not hold"]
    # Without skip connections no decline is claimed.
    assert len(judge("w", "noskip", {"std": rising, "sigma": rising}, 0)) == 3


def test_an_unknown_corruption_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["experiment", "noise", "--drawings", "3", "--output", str(tmp_path), "--corruption", "blurr"]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert "did you mean 'blur'?" in capsys.readouterr().err
