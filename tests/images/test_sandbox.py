"""Images that crash, hang or bloat their decoder: each costs one image, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from chexmask_u import pipeline, record
from chexmask_u.errors import StoppedError
from chexmask_u.images import sandbox
from chexmask_u.images.preparation import read_bytes
from chexmask_u.images.sandbox import Sandbox
from chexmask_u.manifests.folder import list_folder
from chexmask_u.record import ReadError
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings, ManifestFolderSettings
from chexmask_u.steps.read import read
from tests.support.ray_cluster import _descendants

MAX_SIDE = 10_000

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def small_image(seed: int = 0) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (300, 200), np.uint8)
    return cv2.imencode(".png", cv2.blur(image, (9, 9)))[1].tobytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.fixture(scope="module")
def huge_image() -> bytes:
    """A valid PNG of 10,000 x 10,000 pixels in 400 kB, 16 bits deep: 2 s of decoding and 300 MB."""
    rows = zlib.compress(bytes((1 + 2 * MAX_SIDE) * MAX_SIDE), 1)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", MAX_SIDE, MAX_SIDE, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


@pytest.fixture
def box() -> Iterator[Sandbox]:
    # Other tests may have started it, and some here count children.
    sandbox.shared.close()
    box = Sandbox()
    yield box
    box.close()


def reason(box: Sandbox, data: bytes) -> str | None:
    try:
        box.read(data, source="folder", max_side=MAX_SIDE)
    except ReadError as error:
        return error.reason
    return None


def test_an_image_is_read_as_it_is_in_process(box: Sandbox) -> None:
    for seed, (source, preparation) in enumerate(
        (
            ("folder", "published"),
            ("mimic-cxr-jpg", "published"),
            ("mimic-cxr-jpg", "lossless"),
            ("padchest", "published"),
        )
    ):
        data = small_image(seed)
        there = box.read(data, source=source, max_side=MAX_SIDE, preparation=preparation)
        here = read_bytes(data, source=source, max_side=MAX_SIDE, preparation=preparation)
        assert (there.image == here.image).all()
        assert (there.height, there.width, there.letterbox) == (here.height, here.width, here.letterbox)
    for data in (b"no image", small_image()[:-30], cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes()):
        with pytest.raises(ReadError) as there_raised:
            box.read(data, source="padchest", max_side=MAX_SIDE)
        with pytest.raises(ReadError) as here_raised:
            read_bytes(data, source="padchest", max_side=MAX_SIDE)
        assert there_raised.value.reason == here_raised.value.reason
        assert str(there_raised.value) == str(here_raised.value)


def test_another_package_of_that_name_where_the_run_is_started_is_not_taken(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chexmask_u").mkdir()
    (tmp_path / "chexmask_u" / "__init__.py").write_text("raise RuntimeError('an old checkout')")
    monkeypatch.chdir(tmp_path)
    assert reason(box, small_image()) is None


def test_an_image_that_takes_too_long_is_given_up(box: Sandbox, huge_image: bytes) -> None:
    box.seconds = 0.2
    start = time.perf_counter()
    assert reason(box, huge_image) == "timeout"
    assert time.perf_counter() - start < 5
    box.seconds = 60
    assert reason(box, small_image()) is None


@linux
def test_an_image_that_takes_too_much_memory_is_given_up(box: Sandbox, huge_image: bytes) -> None:
    box.bytes_per_pixel, box.spare_bytes = 0, 100 * 2**20
    with pytest.raises(ReadError, match="more than 100 MiB") as caught:
        box.read(huge_image, source="folder", max_side=MAX_SIDE)
    assert caught.value.reason == "out_of_memory"
    assert reason(box, small_image()) is None


@linux
def test_the_memory_bound_leaves_room_for_the_largest_image(box: Sandbox, huge_image: bytes) -> None:
    box.spare_bytes = 0
    assert reason(box, huge_image) is None


class Killer(threading.Thread):
    """Kills busy decoders of this process, as a fault in native code or a machine short of memory does.

    Busy with a huge image, that is: such a decoder has more memory than one with a small image ever has.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.killed: set[int] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while len(self.killed) < self.times and not self.over.wait(0.05):
            for pid in decoders() - self.killed:
                if resident_mib(pid) > 200:
                    os.kill(pid, signal.SIGKILL)
                    self.killed.add(pid)

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def decoders(parent: int | None = None) -> set[int]:
    """Ids of the sandboxes' children below a process."""
    return {pid for pid in _descendants(parent or os.getpid()) if b"chexmask_u.images.sandbox" in proc(pid, "cmdline")}


def proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def resident_mib(pid: int) -> float:
    return int((proc(pid, "statm").split() or [0, 0])[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@linux
@pytest.mark.parametrize(("times", "expected"), [(1, None), (2, "crashed")])
def test_a_death_from_outside_is_forgiven_once(
    box: Sandbox, huge_image: bytes, times: int, expected: str | None
) -> None:
    assert reason(box, small_image()) is None
    with Killer(times) as killer:
        assert reason(box, huge_image) == expected
    assert len(killer.killed) == times
    assert reason(box, small_image()) is None


@linux
def test_a_child_that_died_while_idle_is_replaced(box: Sandbox) -> None:
    # Those of a local Ray that other tests use.
    others = decoders()
    for _ in range(3):
        assert reason(box, small_image()) is None
        (child,) = decoders() - others
        os.kill(child, signal.SIGKILL)
    assert reason(box, small_image()) is None


@linux
def test_no_zombies_are_left(box: Sandbox, huge_image: bytes) -> None:
    others = set(_descendants(os.getpid()))
    box.seconds = 0.1
    for _ in range(3):
        assert reason(box, huge_image) == "timeout"
    box.close()
    left = set(_descendants(os.getpid())) - others
    states = [(proc(pid, "stat").rpartition(b")")[2].split() or [b""])[0] for pid in left]
    assert b"Z" not in states


def test_a_decoder_that_does_not_start_ends_the_run_and_fails_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(small_image())
    sandbox.shared.close()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(sandbox.SandboxError, match="exit code 1"):
        read(listed(tmp_path))
    monkeypatch.setattr(sandbox, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(sandbox.SandboxError, match="No such file"):
        read(listed(tmp_path))
    monkeypatch.undo()
    assert read(listed(tmp_path))["status"].to_pylist() == ["ok"]


PARENT = """
import sys, threading
from chexmask_u.images.sandbox import Sandbox
box = Sandbox(seconds=float(sys.argv[2]))
box.read(open(sys.argv[1] + "/small.png", "rb").read(), source="folder", max_side=10_000)
print(box._child.pid, flush=True)
if sys.argv[3] == "busy":
    for _ in range(100):
        box.read(open(sys.argv[1] + "/huge.png", "rb").read(), source="folder", max_side=10_000)
threading.Event().wait()
"""


@linux
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path, huge_image: bytes, state: str) -> None:
    (tmp_path / "small.png").write_bytes(small_image())
    (tmp_path / "huge.png").write_bytes(huge_image)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), "5", state], stdout=subprocess.PIPE)
    try:
        child = int(parent.stdout.readline())
        if state == "busy":
            wait_until(lambda: resident_mib(child) > 200)
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not proc(child, "cmdline"))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listed(folder: Path) -> pa.Table:
    paths = sorted(folder.glob("*.png"))
    empty = [None] * len(paths)
    names = [path.name for path in paths]
    columns = [names, [str(path) for path in paths], ["folder"] * len(paths), names, empty, empty, empty, empty]
    return pa.table(dict(zip(record.MANIFEST.names, columns, strict=True)), schema=record.MANIFEST)


@linux
def test_a_poison_image_of_a_run_costs_itself_alone(
    tmp_path: Path, huge_image: bytes, tiny_weights: Path, local_ray: object
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index:02}.png").write_bytes(small_image(index))
    (folder / "10-poison.png").write_bytes(huge_image)
    manifest = str(tmp_path / "manifest.parquet")
    list_folder(ManifestFolderSettings(uri=str(folder), output=manifest))
    settings = GenerateSettings(manifest=manifest, output=str(tmp_path / "run"), weights=str(tiny_weights), samples=3)
    with Killer(times=50):
        summary = pipeline.generate(settings)
    assert (summary["ok"], summary["failed"], summary["complete"]) == (20, 1, True)
    table = Run(settings.output).dataset().to_table()
    failed = {row["image_id"]: row["reason"] for row in table.to_pylist() if row["status"] == "failed"}
    assert failed == {"10-poison.png": "crashed"}


@linux
@pytest.mark.slow
def test_workers_that_die_again_and_again_end_the_run_in_one_line(
    tmp_path: Path, tiny_weights: Path, local_ray: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(small_image())
    manifest = str(tmp_path / "manifest.parquet")
    list_folder(ManifestFolderSettings(uri=str(folder), output=manifest))
    settings = GenerateSettings(manifest=manifest, output=str(tmp_path / "run"), weights=str(tiny_weights), samples=3)
    monkeypatch.setattr(pipeline, "MAX_RESTARTS", 2)
    # Whatever ends a worker's process from outside, as soon as it reads.
    monkeypatch.setattr(pipeline, "_complete_and_read", _die)
    with pytest.raises(StoppedError) as caught:
        pipeline.generate(settings)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()
    assert pipeline.generate(settings)["ok"] == 1


def _die(batch: pa.Table, max_side: int) -> pa.Table:
    os.kill(os.getpid(), signal.SIGKILL)
