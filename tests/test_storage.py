"""URLs and paths as people have them: each names one place, for every library that is asked for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chexmask_u import storage


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


def test_a_chained_url_still_names_what_is_inside(tmp_path: Path) -> None:
    fs, path = storage.resolve(f"simplecache::file://{tmp_path}/a.png")
    assert path == f"{tmp_path}/a.png"
    assert fs.protocol == "simplecache"


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
