"""Places of a Ray job, whose folder is a copy that Ray deletes; the jobs themselves are in test_jobs.py."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from chexmask_u import cli
from chexmask_u.errors import InputError
from chexmask_u.runs.job import check_places, check_shipped

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder and the environment that Ray gives to the driver of a job."""
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    return folder


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["generate", "--manifest", "s3://bucket/m.parquet", "--output", "run"], "--output run"),
        (["generate", "--manifest", "m.parquet", "--output", "s3://bucket/run"], "--manifest m.parquet"),
        (["generate", "--manifest", "file://m.parquet", "--output", "/runs/1"], "--manifest file://m.parquet"),
        (["generate"], "--output chexmask-u-demo"),
        (["release", "run", "--output", "/releases"], "the run run"),
        (["release", "/runs/1", "--output", "releases"], "--output releases"),
        (["train", "--drawings", "8", "--output", "./training"], "--output ./training"),
        (["evaluate", "--drawings", "8", "--output", "scores"], "--output scores"),
        (["publish", "releases/v1.0.0", "--repo", "org/name"], "the release releases/v1.0.0"),
    ],
)
def test_a_relative_place_is_refused_with_the_remedy_and_without_rays_own_folder(
    copy: Path, command: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *flags = command
    monkeypatch.setattr(sys, "argv", [f"jobs/{verb}.py", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / f"{verb}.py"), run_name="__main__")
    assert ended.value.code == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"chexmask-u: {named}: is relative")
    assert "absolute path" in line
    assert "working_dir_files" not in line
    assert not list(copy.iterdir())


def test_absolute_places_urls_and_files_that_were_submitted_are_taken(copy: Path) -> None:
    check_places({"--output": "/runs/1", "--manifest": "s3://bucket/m.parquet", "--scratch": None, "--x": "~/runs"})
    check_shipped("--weights", "weights/mine.safetensors")
    check_shipped("--weights", "hf://org/name/v1")
    with pytest.raises(InputError, match=r"--weights \.\./mine\.pt: .* workers would not find it"):
        check_shipped("--weights", "../mine.pt")


def test_weights_of_a_job_without_a_submitted_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(InputError, match="not in a folder that was submitted"):
        check_shipped("--weights", "mine.pt")


def test_outside_of_jobs_relative_places_are_taken() -> None:
    check_places({"--output": "run"})
    check_shipped("--weights", "mine.pt")
