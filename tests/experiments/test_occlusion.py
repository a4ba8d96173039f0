"""Covered nodes against visible ones: what the bundled weights feel, and what a network that sees nothing does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from chexmask_u import cli
from chexmask_u.experiments import figures
from tests.support import experiments

FEW = ("--drawings", 4, "--samples", 10, "--size", 300)


@pytest.fixture(scope="module")
def felt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("occlusion") / "felt"
    experiments.run("occlusion", output, *FEW, "--node", 10)
    return output


def test_the_bundled_weights_are_unsure_under_a_cover(felt: Path) -> None:
    results = experiments.run("occlusion", felt, *FEW, "--node", 10)
    # Four images are shown and not judged.
    assert experiments.verdicts(results) == ["cannot be told"]
    assert "4 images are too few" in results["findings"][0]["cause"]
    assert results["std_inside"] > 1.2 * results["std_before"]
    assert results["growth_ratio_interval"][0] > 1
    assert results["std_outside"] == pytest.approx(results["std_outside_before"], rel=0.2)
    assert results["n"] == 4
    assert len(experiments.table(felt)) == 4
    assert {"figure.png", "figure.svg", "results.json", "table.csv"} <= {path.name for path in felt.iterdir()}


def test_a_network_that_sees_nothing_does_not_hold(tmp_path: Path) -> None:
    blind = experiments.blind_weights(tmp_path / "blind.safetensors")
    results = experiments.run("occlusion", tmp_path / "out", *FEW, "--drawings", 8, "--weights", blind)
    assert experiments.verdicts(results) == ["does not hold"]
    assert results["findings"][0]["cause"]
    assert results["std_inside"] == results["std_before"]


def test_what_was_predicted_is_not_predicted_again(felt: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (felt / "predictions").iterdir()}
    lost = min(kept)
    before = lost.read_bytes()
    lost.write_bytes(before[:100])
    results = (felt / "results.json").read_text()
    (felt / "results.json").unlink()
    experiments.run("occlusion", felt, *FEW, "--node", 10)
    assert (felt / "results.json").read_text() == results
    assert lost.read_bytes() == before
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept if path != lost)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*FEW, "--node", "11"), "--node was [10], now [11]"),
        (("--drawings", "4", "--samples", "11", "--size", "300", "--node", "10"), "--samples was 10, now 11"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    felt: Path, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.main(["experiment", "occlusion", "--output", str(felt), *map(str, arguments)]) == cli.BAD_INPUT
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--drawings", "2"), "takes at least 3 images"),
        (("--drawings", "3", "--size", "5"), "--size must be from 16"),
        (("--drawings", "3", "--node", "120"), "--node must be from 0 to 119"),
        ((), "--data is needed"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert cli.main(["experiment", "occlusion", "--output", str(output), *arguments]) == cli.BAD_INPUT
    assert told in capsys.readouterr().err
    assert not (output / "results.json").exists()


@pytest.mark.parametrize(
    ("name", "given", "takers"),
    [
        ("occlusion", ("--release", "RELEASE"), "error, ood, rca, all"),
        ("samples", ("--labels", "labels.csv"), "ood, all"),
        ("noise", ("--timed", "4"), "samples, pixel, all"),
        ("rca", ("--size", "100"), "occlusion, all"),
    ],
)
def test_what_another_experiment_takes_is_refused_and_not_in_help(
    name: str, given: tuple[str, str], takers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["experiment", name, "--drawings", "3", *given, "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert capsys.readouterr().err == f"chexmask-u: {given[0]}: {name} does not take it, but {takers} do\n"
    with pytest.raises(SystemExit):
        cli.main(["experiment", name, "--help"])
    assert given[0] not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_sizes_can_be_read_where_values_span_little() -> None:
    for low, high in ((5.5, 9.5), (22, 45), (2.2, 2.7), (0.3, 40)):
        axes = figures.new(4, 3).subplots()
        axes.plot([0, 1], [low, high])
        figures.log_y(axes)
        bottom, top = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
        assert len(ticks) >= 3, (low, high, ticks)
