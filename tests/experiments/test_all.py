"""One page of what holds: experiments that the data allow, those run apart before, and why others were not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chexmask_u import cli
from tests.support import experiments


@pytest.mark.slow
def test_the_page_tells_what_holds_what_does_not_and_what_was_not_run(tmp_path: Path) -> None:
    blind = experiments.blind_weights(tmp_path / "blind.safetensors")
    given = ("--drawings", 8, "--weights", blind)
    output = tmp_path / "all"
    # Run apart, with other settings, and taken as it is.
    experiments.run("samples", output / "samples", *given, "--count", 3, "--count", 6)
    results = experiments.run("all", output, *given, "--samples", 3, "--corruption", "noise", "--size", 200)
    assert set(results["experiments"]) >= {"error", "noise", "occlusion", "samples"}
    assert "12 images" in results["not_run"]["ood"]
    assert "--release" in results["not_run"]["rca"]
    page = (output / "findings.html").read_text()
    assert page.count("data:image/png;base64,") == len(results["experiments"])
    assert "does not hold" in page
    assert "--count 3 --count 6" in page
    command = json.loads((output / "noise" / "results.json").read_text())["command"]
    assert "--corruption noise" in command
    assert "--size" not in command
    assert "nan" not in (output / "table.csv").read_text().lower()
    for name in results["experiments"]:
        assert (output / name / "figure.svg").exists()
        assert "NaN" not in (output / name / "results.json").read_text()


def test_nothing_is_begun_in_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert cli.main(["experiment", "all", "--drawings", "3", "--output", str(tmp_path)]) == cli.BAD_INPUT
    assert "thesis.tex" in capsys.readouterr().err
