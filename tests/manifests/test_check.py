"""Manifest files: which ones a run takes, and which are refused before it begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexmask_u import record
from chexmask_u.manifests.check import ManifestFacts, check_columns, inspect
from chexmask_u.manifests.parquet import BATCH_ROWS, complete
from tests.support.manifest_files import fill, refusal


def write(path: Path, **columns: Any) -> str:
    """A manifest of two rows, with other columns where told and without those that are None."""
    default = {
        "record_id": ["folder/a.png", "folder/b.png"],
        "uri": ["/images/a.png", "/images/b.png"],
        "source": ["folder", "folder"],
        "image_id": ["a.png", "b.png"],
    }
    table = pa.table({name: values for name, values in {**default, **columns}.items() if values is not None})
    pq.write_table(table, path)
    return str(path)


def check(uri: str) -> ManifestFacts:
    """As a run does it: the footer first, then the ids."""
    check_columns(uri)
    return inspect(uri)


def test_a_hand_made_manifest_is_taken(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "image_id": ["1", "2", "3"],
            "uri": ["/images/1.png", "file:///images/2.png", "memory://images/3.png"],
            "record_id": ["x", "y", "z"],
            "source": ["mine", "theirs", "mine"],
            "height": [512.0, None, 300.0],
            "dice_rca_mean": [0.9, 0.8, None],
            "comment": ["ours", "to", "keep"],
        }
    )
    frame.to_parquet(tmp_path / "m.parquet")
    facts = check(str(tmp_path / "m.parquet"))
    assert (facts.rows, facts.sources) == (3, {"mine": 2, "theirs": 1})
    rows = complete(pq.read_table(tmp_path / "m.parquet"))
    assert rows.schema == record.MANIFEST
    assert rows["height"].to_pylist() == [512, None, 300]
    assert rows["width"].to_pylist() == [None] * 3
    assert rows["dice_rca_mean"].to_pylist() == pytest.approx([0.9, 0.8, None])


def test_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "whole.parquet")).read_bytes()
    contents = {"text": b"record_id,uri\na,b\n", "empty": b"", "half": whole[: len(whole) // 2], "cut": whole[:-1]}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        message = refusal(check_columns, str(path))
        assert str(path) in message
        assert "no Parquet file" in message
    assert str(tmp_path) in refusal(check_columns, str(tmp_path))
    missing = refusal(check_columns, str(tmp_path / "missing.parquet"))
    assert "no such manifest" in missing
    assert "chexmask-u manifest folder" in missing


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "m.parquet"))
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    assert str(path) in refusal(check, str(path))


@pytest.mark.parametrize("column", ["record_id", "uri", "source", "image_id"])
def test_each_needed_column_must_be_there_with_text_in_every_row(tmp_path: Path, column: str) -> None:
    path = tmp_path / "m.parquet"
    for values, expected in (
        (None, f"no column '{column}'"),
        ([1, 2], f"'{column}' must be string, not int64"),
        (["folder", None], f"1 rows have no {column}"),
        (["", "folder"], f"1 rows have no {column}"),
    ):
        message = refusal(check, write(path, **{column: values}))
        assert str(path) in message
        assert expected in message


@pytest.mark.parametrize("column", ["height", "width", "dice_rca_mean", "dice_rca_max"])
def test_numbers_must_be_numbers(tmp_path: Path, column: str) -> None:
    message = refusal(check, write(tmp_path / "m.parquet", **{column: ["512", "512"]}))
    assert f"'{column}' must be a number, not string" in message
    for values in ([1, 2], [1.0, None], pa.nulls(2)):
        assert check(write(tmp_path / "m.parquet", **{column: values})).rows == 2


def test_a_number_that_is_missing_may_be_written_as_nan_as_other_tools_do(tmp_path: Path) -> None:
    uri = write(tmp_path / "m.parquet", height=[1024.0, float("nan")], dice_rca_mean=[float("nan"), 0.5])
    assert check(uri).rows == 2
    rows = complete(pq.read_table(uri))
    assert (rows["height"].to_pylist(), rows["dice_rca_mean"].to_pylist()) == ([1024, None], [None, 0.5])


@pytest.mark.parametrize("value", [1024.5, 2.0**31])
def test_a_size_that_is_none_is_refused_before_the_run(tmp_path: Path, value: float) -> None:
    message = refusal(check, write(tmp_path / "m.parquet", height=[1024.0, value]))
    assert "'height' must hold int32 values" in message


def test_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    names = {name: list("abcab") for name in ("record_id", "image_id", "source")}
    uri = write(tmp_path / "m.parquet", uri=[f"/{letter}" for letter in "abcab"], **names)
    message = refusal(check, uri)
    assert uri in message
    assert "2 record ids occur more than once" in message
    assert "'a'" in message or "'b'" in message


def test_faults_are_found_wherever_they_stand_in_a_long_manifest(tmp_path: Path) -> None:
    rows = 2 * BATCH_ROWS + 100
    names = [f"x/{index}" for index in range(rows)]
    whole = {"uri": [f"/{name}" for name in names], "source": ["x"] * (rows - 1) + ["y"], "image_id": names}
    facts = check(write(tmp_path / "m.parquet", record_id=names, **whole))
    assert (facts.rows, facts.sources) == (rows, {"x": rows - 1, "y": 1})

    def with_changes(column: str, **changes: str | None) -> str:
        values = list(names if column == "record_id" else whole[column])
        for place, value in changes.items():
            values[{"first": 0, "middle": BATCH_ROWS + 7, "last": -1}[place]] = value
        return write(tmp_path / "m.parquet", **{"record_id": names, **whole, column: values})

    message = refusal(check, with_changes("record_id", middle=names[3], last=names[3]))
    assert "1 record ids occur more than once, for instance 'x/3'" in message
    assert "3 rows have no uri" in refusal(check, with_changes("uri", first=None, middle="", last=None))
    assert "uri 'b.png' is relative" in refusal(check, with_changes("uri", middle="b.png", last="c.png"))
    assert "'Not This'" in refusal(check, with_changes("source", last="Not This"))
    assert "s33://x/a" in refusal(check, with_changes("uri", first="memory://a", last="s33://x/a"))


def test_different_ids_are_not_taken_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all of their hashes were the same: what counts is the ids."""
    monkeypatch.setattr("builtins.hash", lambda value: 7)
    assert check(write(tmp_path / "m.parquet")).rows == 2


def test_a_driver_checks_a_long_manifest_in_little_memory(tmp_path: Path) -> None:
    """Read at once it takes 420 MiB."""
    rows = 200_000
    names = [f"{index:0380d}" for index in range(rows)]
    uri = write(
        tmp_path / "m.parquet", record_id=names, uri=[f"/{name}" for name in names], source=["x"] * rows, image_id=names
    )
    script = (
        "import resource, sys\n"
        "from chexmask_u.manifests.check import inspect\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == 'linux' else 1024)\n"
        "before = peak()\n"
        "print(inspect(sys.argv[1]).rows, (peak() - before) / 1024)\n"
    )
    # Its own allocator keeps what is free for later.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    told = subprocess.run(
        [sys.executable, "-c", script, uri], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    found, mib = told.stdout.split()
    assert int(found) == rows
    assert float(mib) < 250


def test_a_manifest_without_rows_is_refused(tmp_path: Path) -> None:
    none = pa.array([], pa.string())
    uri = write(tmp_path / "m.parquet", record_id=none, uri=none, source=none, image_id=none)
    assert "holds no rows" in refusal(check, uri)


def test_images_on_a_storage_that_nothing_opens_are_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "m.parquet", uri=["/images/a.png", "s33://bucket/b.png"])
    message = refusal(check, uri)
    assert "s33://bucket/b.png" in message
    assert "unknown scheme s33://" in message
    assert "s3://" in message


@pytest.mark.parametrize("source", ["My Data", "../up", "a/b", "failures", "mine-masks", "-a", "\u00fcn\u00ef", "a\n"])
def test_a_source_that_names_no_dataset_config_is_refused(tmp_path: Path, source: str) -> None:
    message = refusal(check, write(tmp_path / "m.parquet", source=["folder", source]))
    assert repr(source) in message
    assert "lower case letters" in message


@pytest.mark.parametrize(
    "uri",
    [
        "b.png",
        "./b.png",
        "~/b.png",
        "file://images/b.png",
        "file:b.png",
        "zip://b.png::a.zip",
        "zip://b.png::file://a.zip",
        "simplecache::b.png",
    ],
)
def test_a_uri_that_is_another_place_to_a_worker_is_refused(tmp_path: Path, uri: str) -> None:
    message = refusal(check, write(tmp_path / "m.parquet", uri=["/images/a.png", uri]))
    assert f"uri {uri!r} is relative" in message


@pytest.mark.parametrize(
    "uri",
    [
        "/images/a::b.png",
        "file:///images/100%.png",
        "file://localhost/images/b.png",
        "file:/images/b.png",
        "s3://bucket/a::b.png",
        "zip://b.png::/data/a.zip",
        "zip://b.png::file:///data/a.zip",
        "simplecache::/images/b.png",
        "simplecache::zip://b.png::s3://bucket/a.zip",
    ],
)
def test_a_uri_that_is_one_place_to_everybody_is_taken(tmp_path: Path, uri: str) -> None:
    assert check(write(tmp_path / "m.parquet", uri=["/images/a.png", uri])).rows == 2


def test_each_scheme_of_a_chained_uri_is_looked_at(tmp_path: Path) -> None:
    uris = ["zip://a.png::/data/a.zip", "zip://b.png::nosuch://bucket/a.zip"]
    assert "unknown scheme nosuch://" in refusal(check, write(tmp_path / "m.parquet", uri=uris))


def test_what_is_no_manifest_is_told_how_to_get_one(tmp_path: Path) -> None:
    image = fill(tmp_path / "images", "a.png") / "a.png"
    told = refusal(check_columns, str(tmp_path / "images"))
    assert "is a folder, not a manifest" in told
    assert f"`chexmask-u manifest folder {tmp_path / 'images'} --output M.parquet`" in told
    (tmp_path / "m.csv").write_text("record_id,uri\n")
    for path, what in ((image, "is an image"), (tmp_path / "m.csv", "no Parquet file"), (tmp_path / "n", "no such")):
        for action in (check_columns, inspect):
            told = refusal(action, str(path))
            assert str(path) in told
            assert what in told
            assert "`chexmask-u manifest folder FOLDER --output M.parquet`" in told
