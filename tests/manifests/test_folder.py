"""Manifests of folders: what a listing holds, what is passed over, and where it is not written."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from chexmask_u import cli, record
from chexmask_u.images.fetch import fetch
from chexmask_u.manifests.check import inspect
from chexmask_u.manifests.folder import Listing, list_folder
from chexmask_u.manifests.listing import files_below
from chexmask_u.settings import ManifestFolderSettings
from tests.support.manifest_files import fill, refusal


def list_images(folder: Path | str, output: Path, source: str = "folder", **flags: Any) -> Listing:
    return list_folder(ManifestFolderSettings(uri=str(folder), output=str(output), source=source, **flags))


def test_files_without_a_known_ending_are_listed_where_that_is_asked_for(tmp_path: Path, capsys: Any) -> None:
    folder = fill(tmp_path / "export", "IM000001", "1.2.840.113619.2", ".DS_Store", "series/7.ima")
    line = refusal(list_images, folder, tmp_path / "m.parquet")
    assert "holds no .png, .jpg, .jpeg, .dcm, .dicom file; --any-name takes files whatever their names" in line
    flags = ["manifest", "folder", str(folder), "--output", str(tmp_path / "m.parquet"), "--any-name"]
    assert cli.main(flags) == 0
    assert capsys.readouterr().out.endswith(": 3 images; other files, passed over (hidden): 1\n")
    rows = pq.read_table(tmp_path / "m.parquet")
    assert rows["image_id"].to_pylist() == ["1.2.840.113619.2", "IM000001", "series/7.ima"]
    flags[2] = str(fill(tmp_path / "none", ".hidden"))
    assert cli.main(flags) == 2
    assert "none: holds no file\n" in capsys.readouterr().err


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
    facts = inspect(str(tmp_path / "m.parquet"))
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
    assert "unknown scheme nosuch://" in refusal(list_images, "nosuch://bucket/images", output)
    assert not output.exists()


@pytest.mark.parametrize("source", ["My Data", "", "../up", "a/b", "failures", "mine-masks", "-a", "ünï", "a\n"])
def test_a_source_that_names_no_dataset_config_is_refused(tmp_path: Path, source: str) -> None:
    folder = fill(tmp_path / "images", "a.png")
    message = refusal(list_images, folder, tmp_path / "m.parquet", source)
    assert repr(source) in message
    assert "lower case letters" in message


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "images", "a.png")
    assert "cannot be written" in refusal(list_images, folder, folder / "a.png" / "m.parquet")
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


# Links


def images_of(output: Path) -> list[str]:
    return [row["image_id"] for row in pq.read_table(output).to_pylist()]


def test_folders_that_are_linked_from_another_disk_are_listed(tmp_path: Path) -> None:
    disk = fill(tmp_path / "disk", "images_001/images/1.png", "images_002/images/2.png", "deep/er/3.png")
    root = fill(tmp_path / "nih", "images_003/images/4.png")
    for name in ("images_001", "images_002"):
        (root / name).symlink_to(disk / name)
    (disk / "images_002" / "more").symlink_to("../deep", target_is_directory=True)
    (root / "5.png").symlink_to(disk / "deep" / "er" / "3.png")
    listing = list_images(root, tmp_path / "m.parquet")
    assert (listing.rows, listing.passed_over, listing.lost) == (5, 0, {})
    expected = ["5.png", "images_001/images/1.png", "images_002/images/2.png", "images_002/more/er/3.png"]
    assert images_of(tmp_path / "m.parquet") == [*expected, "images_003/images/4.png"]
    for row in pq.read_table(tmp_path / "m.parquet").to_pylist():
        assert Path(row["uri"]).read_bytes()
    (tmp_path / "link").symlink_to(root)
    list_images(tmp_path / "link", tmp_path / "linked.parquet")
    assert images_of(tmp_path / "linked.parquet") == images_of(tmp_path / "m.parquet")


def test_a_real_folder_is_listed_once_however_it_is_reached(tmp_path: Path) -> None:
    disk = fill(tmp_path / "disk", "a/1.png", "a/b/2.png")
    root = fill(tmp_path / "images", "z/3.png", "z/y/4.png")
    links = {
        "0-self": ".",
        "0-direct": "z",
        "z/y/up": "../..",
        "z/above": str(tmp_path / "images"),
        "first": str(disk / "a"),
        "second": str(disk / "a"),
        "third": str(disk / "a" / "b"),
        "round": "round-again",
        "round-again": "round",
    }
    for name, target in links.items():
        (root / name).symlink_to(target, target_is_directory=True)
    (disk / "a" / "back").symlink_to(root, target_is_directory=True)
    listing = list_images(root, tmp_path / "m.parquet")
    assert images_of(tmp_path / "m.parquet") == ["first/1.png", "first/b/2.png", "z/3.png", "z/y/4.png"]
    assert listing.lost == dict.fromkeys(("round", "round-again"), "a link that leads nowhere")


def test_links_that_lead_nowhere_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "images", "1.png")
    for name in ("images_007", "lost.png", ".hidden.png"):
        (root / name).symlink_to(tmp_path / "gone" / name)
    os.mkfifo(root / "pipe.png")
    assert cli.main(["manifest", "folder", str(root), "--output", str(tmp_path / "m.parquet"), "--json"]) == 0
    told, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "Not followed: 3\n  images_007: a link that leads nowhere\n  lost.png: a link that leads nowhere" in told
    assert json.loads(line)["lost"]["pipe.png"] == "neither a file nor a folder"
    assert images_of(tmp_path / "m.parquet") == ["1.png"]
    (root / "1.png").unlink()
    assert "images_007 is a link that leads nowhere" in refusal(list_images, root, tmp_path / "m.parquet")


def test_a_folder_that_cannot_be_opened_is_named() -> None:
    # Root opens every folder, so it becomes somebody else here, who cannot come to pytest's own folders.
    with tempfile.TemporaryDirectory() as name:
        root = fill(Path(name), "1.png", "closed/2.png")
        root.chmod(0o755)
        (root / "closed").chmod(0)
        (root / "link.png").symlink_to("closed/2.png")
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            files = files_below(str(root))
        finally:
            os.seteuid(user)
            (root / "closed").chmod(0o700)
    assert files.paths == ["1.png"]
    assert files.lost == {
        "closed": "a folder that cannot be opened (Permission denied)",
        "link.png": "a link that cannot be followed (Permission denied)",
    }


# Archives


def test_the_images_in_an_archive_are_listed_and_can_be_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("b/1.png", "b/c/2.png", "3.png", "b/notes.txt"):
            archive.writestr(name, name)
    for root, below in ((f"zip://::{tmp_path}/a.zip", ["3.png", "b/1.png", "b/c/2.png"]),
                        (f"zip://b::{tmp_path}/a.zip", ["1.png", "c/2.png"])):  # fmt: skip
        listing = list_images(root, tmp_path / "m.parquet", overwrite=True)
        assert listing.passed_over == 1
        rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
        assert [row["image_id"] for row in rows] == below
        assert inspect(listing.manifest).rows == len(below)
        for row in rows:
            assert fetch(row["uri"], max_bytes=100).decode().endswith(row["image_id"])


# What is there already


def test_a_manifest_is_not_replaced_by_another_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "images", "a.png")
    output = tmp_path / "new" / "folder" / "m.parquet"
    list_images(folder, output)
    table = pq.read_table(output)
    pq.write_table(table, output, compression="zstd")
    before = output.read_bytes()
    assert list_images(folder, output).rows == 1
    assert output.read_bytes() == before, "the same rows, as another version wrote them, keep the digest that runs know"
    fill(folder, "b.png")
    command = ["manifest", "folder", str(folder), "--output", str(output)]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert f"{output}: is there already with other content" in told
    assert "choose another --output, or replace it with --overwrite" in told
    assert output.read_bytes() == before
    assert cli.main([*command, "--overwrite"]) == 0
    assert images_of(output) == ["a.png", "b.png"]


def test_a_file_that_is_no_manifest_is_not_replaced_either(tmp_path: Path) -> None:
    folder, output = fill(tmp_path / "images", "a.png"), tmp_path / "mine.parquet"
    output.write_bytes(b"my own")
    assert "other content" in refusal(list_images, folder, output)
    assert output.read_bytes() == b"my own"
