"""What an earlier version left goes on: its run is resumed, its release validated, exported, compared and published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from chexmask_u.cli import main

KEPT = Path(__file__).parent / "kept"

# Where its manifest says that the images are.
IMAGES = Path("/tmp/chexmask-u-kept")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A copy of the interrupted run, with its images in their place."""
    shutil.copytree(KEPT / "images", IMAGES, dirs_exist_ok=True)
    yield Path(shutil.copytree(KEPT / "run", tmp_path / "run"))
    shutil.rmtree(IMAGES)


def facts(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What a verb tells programs, once it is done."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_an_earlier_run_goes_on_to_the_same_records(
    run: Path, tmp_path: Path, local_ray: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = ["--samples", 5, "--weights", KEPT / "weights.safetensors"]
    done = facts(capsys, "generate", "--manifest", KEPT / "manifest.parquet", "--output", run, *numbers)
    assert (done["already_done"], done["ok"], done["failed"], done["complete"]) == (8, 9, 1, True)

    release = facts(capsys, "release", run, "--output", tmp_path / "releases")
    changed = facts(capsys, "diff", KEPT / "v1.0.0", release["folder"])
    found = changed["sources"]["synthetic"]
    assert (found["in_both"], found["added"], found["removed"]) == (9, 0, 0)
    assert max(moved["max"] for moved in found["farthest"].values()) < 0.01
    # Its earlier parts were written before there was such a column.
    rows = pq.read_table(Path(release["folder"]) / "synthetic" / "landmarks-00000-of-00001.parquet")
    kept_ids = set(pq.read_table(KEPT / "run" / "records", columns=["record_id"])["record_id"].to_pylist())
    for row in rows.to_pylist():
        for name in ("landmarks_xy", "landmarks_across", "landmarks_along"):
            assert (row[name] is None) == (row["record_id"] in kept_ids)
    assert facts(capsys, "validate", release["folder"])["schema_version"] == "1.2"


def test_an_earlier_release_is_a_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = KEPT / "v1.0.0"
    assert facts(capsys, "validate", release)["counts"] == {"synthetic": {"ok": 9, "failed": 1}}
    for form in ("chexmask-csv", "coco"):
        exported = facts(capsys, "export", release, "--format", form, "--output", tmp_path / form)
        assert exported["rows"] == {"synthetic": 9}


def test_an_earlier_release_can_be_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing listens there: what would be sent is told all the same.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    told = facts(capsys, "publish", KEPT / "v1.0.0", "--repo", "org/kept", "--dry-run")
    assert {file["path"] for file in told["files"]} >= {"README.md", "synthetic/landmarks-00000-of-00001.parquet"}
