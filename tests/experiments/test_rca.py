"""Uncertainty of records against their RCA scores, of a release and of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chexmask_u import cli
from tests.support import experiments
from tests.support.chosen_releases import draw, write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: in one the score falls as the uncertainty grows, in the other it does not go with it."""
    folder = tmp_path_factory.mktemp("scored") / "releases" / "v1.0.0"
    folder.parent.mkdir()
    rng = np.random.default_rng(0)
    of = {}
    for source in ("falling", "unrelated"):
        rows = []
        for index in range(30):
            one = draw(f"{index}.png", 900, 800, index)
            wide = float(rng.uniform(1, 5))
            score = 0.95 - 0.1 * wide if source == "falling" else float(rng.uniform(0.4, 0.9))
            one.std[:] *= wide
            rows.append(type(one)(**{**vars(one), "dice_rca_mean": score if index else None}))
        of[source] = rows
    return write_release(folder, of)


@pytest.mark.parametrize("kind", ["release", "run"])
def test_a_source_whose_score_does_not_go_with_it_does_not_hold(release: Path, kind: str, tmp_path: Path) -> None:
    where = release if kind == "release" else release.parent / "run"
    results = experiments.run("rca", tmp_path / "out", f"--{kind}", where)
    verdict = {finding["claim"]: finding["verdict"] for finding in results["findings"]}
    assert verdict["The larger the uncertainty, the lower Dice RCA (falling)"] == "holds"
    assert verdict["The larger the uncertainty, the lower Dice RCA (unrelated)"] != "holds"
    falling = results["by_source"]["falling"]["uncertainty"]
    assert falling["rho"] < -0.95
    assert falling["rho_interval"][1] < -0.9
    assert results["by_source"]["falling"]["records"] == 29
    assert results["without_score"] == 2


def test_records_without_scores_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "releases" / "v1.0.0"
    folder.parent.mkdir()
    write_release(folder, {"mine": [draw(f"{index}.png", 500, 600, index) for index in range(4)]})
    arguments = ["experiment", "rca", "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--release", str(folder)]) == cli.BAD_INPUT
    assert "none of the 4 records has a Dice RCA score" in capsys.readouterr().err
    assert cli.main([*arguments, "--drawings", "3"]) == cli.BAD_INPUT
    assert "rca takes records" in capsys.readouterr().err
    assert cli.main(arguments) == cli.BAD_INPUT
    assert "give --release, --run or --published" in capsys.readouterr().err
