"""Manifests: what a folder's listing holds, and which files are refused before a run begins."""

from __future__ import annotations

import hashlib
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
from chexmask_u.errors import InputError
from chexmask_u.manifests.check import ManifestFacts, check_columns, inspect
from chexmask_u.manifests.folder import Listing, list_folder
from chexmask_u.manifests.parquet import BATCH_ROWS, complete
from chexmask_u.settings import ManifestFolderSettings
from chexmask_u.storage import arrow_filesystem, filesystem


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not looked at")
    return folder


def list_images(folder: Path | str, output: Path, source: str = "folder") -> Listing:
    return list_folder(ManifestFolderSettings(uri=str(folder), output=str(output), source=source))


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


def refusal(action: Any, *arguments: Any, error: type[ValueError] = InputError) -> str:
    with pytest.raises(error) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Folders


def test_every_image_below_a_folder_is_listed_once_and_in_order(tmp_path: Path) -> None:
    images = ["b/z.png", "b/a/deep/er/1.JPG", "A.jpeg", "a.PNG", "b.png", "10.Jpeg", "2.jpg", "looks.like.jpg.png"]
    images += ["scan.dcm", "scan.DICOM", "scan.Dcm"]
    others = ["notes.txt", "png", "image.png.txt", "b/archive.zip", "dcm", "jpg.d/readme"]
    hidden = [".DS_Store", "._a.png", ".cache/thumb.png", "b/.ipynb_checkpoints/z.png"]
    folder = fill(tmp_path / "images", *images, *others, *hidden)
    (folder / "empty.png").mkdir()
    listing = list_images(folder, tmp_path / "m.parquet", "my-data")
    assert listing == Listing(str(tmp_path / "m.parquet"), len(images), len(others) + len(hidden))
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.schema == record.MANIFEST
    rows = table.to_pylist()
    assert [row["image_id"] for row in rows] == sorted(images)
    for row in rows:
        assert row["record_id"] == f"my-data/{row['image_id']}"
        assert row["source"] == "my-data"
        assert Path(row["uri"]) == folder / row["image_id"]
        assert row["height"] is row["width"] is row["dice_rca_mean"] is row["dice_rca_max"] is None


def test_a_listing_is_a_manifest(tmp_path: Path) -> None:
    list_images(fill(tmp_path / "images", "a.png", "b.png", "c/d.png"), tmp_path / "m.parquet")
    facts = check(str(tmp_path / "m.parquet"))
    assert (facts.rows, facts.sources) == (3, {"folder": 3})
    assert facts.sha256 == hashlib.sha256((tmp_path / "m.parquet").read_bytes()).hexdigest()


def test_relative_folders_are_listed_by_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers run in other folders.
    fill(tmp_path / "images", "a.png")
    monkeypatch.chdir(tmp_path)
    for uri in ("images", "./images/", "file://images", "images/../images"):
        list_folder(ManifestFolderSettings(uri=uri, output="m.parquet"))
        assert pq.read_table("m.parquet")["uri"].to_pylist() == [str(tmp_path / "images" / "a.png")]


def test_listing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", *(f"{index % 7}/{index}.png" for index in range(100)))
    list_images(folder, tmp_path / "one.parquet")
    list_images(folder, tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_folders_that_give_no_listing_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "m.parquet"
    missing = refusal(list_images, tmp_path / "missing", output)
    assert str(tmp_path / "missing") in missing
    assert "no such folder" in missing

    (tmp_path / "empty").mkdir()
    assert ".png, .jpg, .jpeg" in refusal(list_images, tmp_path / "empty", output)
    assert ".png, .jpg, .jpeg" in refusal(list_images, fill(tmp_path / "texts", "a.txt", ".b.png"), output)

    image = fill(tmp_path / "images", "a.png") / "a.png"
    assert "give the folder" in refusal(list_images, image, output)
    assert "unknown scheme nosuch://" in refusal(list_images, "nosuch://bucket/images", output, error=InputError)
    assert not output.exists()


@pytest.mark.parametrize("source", ["My Data", "", "../up", "a/b", "failures", "mine-masks", "-a", "ünï", "a\n"])
def test_a_source_that_names_no_dataset_config_is_refused(tmp_path: Path, source: str) -> None:
    folder = fill(tmp_path / "images", "a.png")
    message = refusal(list_images, folder, tmp_path / "m.parquet", source)
    assert repr(source) in message
    assert "lower case letters" in message
    uri = write(tmp_path / "other.parquet", source=["folder", source or "."])
    assert "lower case letters" in refusal(check, uri)


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "a.png")
    assert "cannot be written" in refusal(list_images, folder, tmp_path / "no" / "such" / "m.parquet")
    (tmp_path / "folder.parquet").mkdir()
    assert "cannot be written" in refusal(list_images, folder, tmp_path / "folder.parquet")
    assert "let --output end in .parquet" in refusal(list_images, folder, tmp_path / "m.csv")


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "a.png")
    try:
        (folder / os.fsdecode(b"scan-\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    message = refusal(list_images, folder, tmp_path / "m.parquet")
    assert "scan-" in message
    assert "rename" in message
    message.encode()


# Files


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
    assert "s33://x/a" in refusal(check, with_changes("uri", first="memory://a", last="s33://x/a"), error=InputError)


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
    message = refusal(check, uri, error=InputError)
    assert "s33://bucket/b.png" in message
    assert "unknown scheme s33://" in message
    assert "s3://" in message


@pytest.mark.parametrize("key", ["a", "two words", "a#b", "a%20b", "100%", "what?", "ü/胸", "[x]*", "a+b", "a=1&b"])
def test_keys_of_a_bucket_are_taken_literally(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    # Nothing is asked of this server: a client is made for it, and no more.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    # Parquet goes through one of them and images through the other.
    for opener in (arrow_filesystem, filesystem):
        assert opener(f"s3://bucket/{key}/m.parquet")[1] == f"bucket/{key}/m.parquet"
