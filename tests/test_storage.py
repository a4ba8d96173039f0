"""URLs and paths as people have them: each names one place, for every library that is asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.images.fetch import fetch


@pytest.mark.parametrize("path", ["//data/run", "///data/run", "/data//run/", "/data/x/../run"])
def test_a_path_begins_with_one_slash(path: str) -> None:
    assert storage.normalise(path) == "/data/run"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a::b.png", "bucket/a::b.png"),
        ("https://host.org/wado?object=1::2", "https://host.org/wado?object=1::2"),
        ("http://[fd00::1]:9000/x.png", "http://[fd00::1]:9000/x.png"),
    ],
)
def test_two_colons_are_a_part_of_the_name(url: str, expected: str) -> None:
    assert storage.resolve(url)[1] == expected


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of two files in the working directory."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as written:
        written.writestr("1.png", "one")
        written.writestr("in/two words.png", "two")
    (tmp_path / "outer words").mkdir()
    with zipfile.ZipFile(tmp_path / "outer words" / "b.zip", "w") as written:
        written.write(tmp_path / "a.zip", "a.zip")
    return tmp_path / "a.zip"


@pytest.mark.parametrize(
    ("url", "content"),
    [
        ("zip://1.png::{folder}/a.zip", b"one"),
        ("zip://in/two words.png::{folder}/a.zip", b"two"),
        ("zip://1.png::a.zip", b"one"),
        ("zip://1.png::./a.zip", b"one"),
        ("zip://1.png::file://{folder}/a.zip", b"one"),
        ("zip://1.png::file://localhost{folder}/a.zip", b"one"),
        ("zip://1.png::zip://a.zip::file://{folder}/outer%20words/b.zip", b"one"),
        ("zip://1.png::simplecache::{folder}/a.zip", b"one"),
        ("simplecache::zip://1.png::{folder}/a.zip", b"one"),
        ("zip://1.png::simplecache://::file://{folder}/a.zip", b"one"),
        ("simplecache::file://{folder}/a.zip", None),
        ("simplecache::{folder}/a.zip", None),
        ("dir://a.zip::{folder}", None),
    ],
)
def test_a_chained_url_names_what_is_inside_wherever_it_is_read(
    url: str, content: bytes | None, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url.format(folder=archive.parent)
    expected = content or archive.read_bytes()
    assert fetch(url, max_bytes=10_000) == expected
    meant = storage.normalise(url)
    assert not storage.is_relative(meant)
    assert storage.is_relative(url) == ("::a.zip" in url or "::./" in url)
    monkeypatch.chdir("/")
    assert fetch(meant, max_bytes=10_000) == expected
    fs, path = storage.arrow_filesystem(meant)
    with fs.open_input_file(path) as file:
        assert file.read() == expected


@pytest.mark.parametrize(
    ("url", "joined"),
    [
        ("zip://::/data/a.zip", "zip://x/1.png::/data/a.zip"),
        ("zip::/data/a.zip", "zip://x/1.png::/data/a.zip"),
        ("zip://in/::s3://bucket/a.zip", "zip://in/x/1.png::s3://bucket/a.zip"),
        ("simplecache::s3://bucket/in", "simplecache::s3://bucket/in/x/1.png"),
        ("simplecache://::s3://bucket/in", "simplecache::s3://bucket/in/x/1.png"),
        ("simplecache::/data", "simplecache::/data/x/1.png"),
        ("s3://bucket/a::b/", "s3://bucket/a::b/x/1.png"),
        ("/data/a::b", "/data/a::b/x/1.png"),
    ],
)
def test_what_is_below_an_archives_folder_is_within_the_archive(url: str, joined: str) -> None:
    assert storage.join(url, "x", "1.png") == joined


@pytest.mark.parametrize(
    ("url", "words"), [("zip://1.png::none.zip", "no such archive"), ("zip://1.png::text.zip", "not a zip file")]
)
def test_an_archive_that_cannot_be_opened_is_told_in_one_line(archive: Path, url: str, words: str) -> None:
    archive.with_name("text.zip").write_text("text")
    with pytest.raises(InputError, match=words):
        storage.filesystem(url)


def test_every_scheme_of_a_chained_url_must_be_known() -> None:
    for url in ("zip://1.png::nosuch://bucket/a.zip", "nosuch://bucket/a", "simplecache::nosuch://bucket/a"):
        with pytest.raises(InputError, match="unknown scheme nosuch://"):
            storage.check_scheme(url)
    storage.check_scheme("simplecache::zip://1.png::s3://bucket/a.zip")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("file://{folder}/two words.png", "two words.png"),
        ("file://{folder}/two%20words.png", "two words.png"),
        ("file://localhost{folder}/two%20words.png", "two words.png"),
        ("file://LOCALHOST{folder}/100%.png", "100%.png"),
        ("file:{folder}/100%25.png", "100%.png"),
        ("file://{folder}/100%.png", "100%.png"),
        ("file://{folder}/a%20b.png", "a%20b.png"),
        ("file://{folder}/a%2520b.png", "a%20b.png"),
        ("file://{folder}/s%C3%BCd/1.png", "s\u00fcd/1.png"),
        ("file://{folder}/new%20folder/m.parquet", "new folder/m.parquet"),
        ("file://{folder}/odd%20folder/new%20folder/m.parquet", "odd%20folder/new folder/m.parquet"),
        ("file://{folder}/new folder/100%25.parquet", "new folder/100%25.parquet"),
        ("file://{folder}/new/100%.parquet", "new/100%.parquet"),
        ("file://{folder}/two words of %25.png", "two words of %.png"),
        ("{folder}/two%20words.png", "two%20words.png"),
        ("{folder}/100%25.png", "100%25.png"),
    ],
)
def test_percent_signs_of_a_file_uri_name_what_its_writer_meant(url: str, name: str, tmp_path: Path) -> None:
    for there in ("two words.png", "100%.png", "a%20b.png", "two words of %.png"):
        (tmp_path / there).touch()
    for folder in ("s\u00fcd", "odd%20folder"):
        (tmp_path / folder).mkdir()
    expected = os.fspath(tmp_path / name)
    assert storage.normalise(url.format(folder=tmp_path)) == expected
    assert storage.resolve(url.format(folder=tmp_path))[1] == expected
    assert storage.arrow_filesystem(url.format(folder=tmp_path))[1] == expected
    if not url.startswith("{"):
        assert storage.normalise((tmp_path / name).as_uri()) == expected


@pytest.mark.parametrize("key", ["a", "two words", "a#b", "a%20b", "100%", "what?", "ü/胸", "[x]*", "a+b", "a=1&b"])
def test_keys_of_a_bucket_are_taken_literally(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    # Nothing is asked of this server: a client is made for it, and no more.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    # Parquet goes through one of them and images through the other.
    for opener in (storage.arrow_filesystem, storage.filesystem):
        assert opener(f"s3://bucket/{key}/m.parquet")[1] == f"bucket/{key}/m.parquet"


WRITE = """
import resource, signal, sys
from chexmask_u import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.put(sys.argv[1], b"y" * 2000)
except OSError:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of a file's size")
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    storage.put(str(target), b"before")
    done = subprocess.run([sys.executable, "-c", WRITE, str(target)], check=False)
    assert done.returncode == 7
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_python_takes_a_path_wherever_it_takes_a_name_and_says_what_it_wants(
    tiny_weights: Path, radiograph: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "1.png"
    cv2.imwrite(str(file), radiograph)
    assert (cu.read_image(file).image == cu.read_image(str(file)).image).all()
    assert cu.load_model(tiny_weights).sha256 == cu.load_model(str(tiny_weights)).sha256
    row = {"record_id": "mine/1.png", "source": "mine", "image_id": "1.png"}
    assert cu.pair_images([row], tmp_path).paths == {"mine/1.png": str(file)}
    with pytest.raises(InputError, match="no such file"):
        next(cu.read_published(tmp_path / "none.csv"))
    with pytest.raises(TypeError, match="uri must be a path or URL, not a ndarray"):
        cu.read_image(radiograph)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path must be a path or URL, not a ndarray"):
        cu.segment(radiograph)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be a path or URL, not a NoneType"):
        cu.load_model(None)  # type: ignore[arg-type]
