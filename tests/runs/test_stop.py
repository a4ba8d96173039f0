"""A driver that is told to stop: whatever it is doing from its first line to its last, one line and exit code 1."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from chexmask_u.manifests.folder import list_folder
from chexmask_u.result import BAD_INPUT
from chexmask_u.settings import ManifestFolderSettings
from tests.support import apart

# A start of Ray each, which a busy machine takes a minute for.
pytestmark = pytest.mark.timeout(900)

IMAGES = 200
INTERRUPTED = "chexmask-u: interrupted; the same command goes on where it can"

# Says on stdout that the verb is about to begin.
DRIVER = """
import sys
from chexmask_u import cli
print("begun", flush=True)
sys.exit(cli.main(sys.argv[1:]))
"""

# Sends itself SIGTERM where Python has put its handlers back already.
TOLD_LAST = """
import os, signal, sys
from chexmask_u import cli
class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), number=signal.SIGTERM):
        kill(own, number)
late = Late()
sys.exit(cli.main(["info", "--weights", "nowhere"]))
"""


class Driver:
    """`generate` in a process of its own, with a Ray of its own."""

    def __init__(self, folder: Path, weights: Path) -> None:
        # Short, since Ray's sockets below it have at most 107 characters.
        self.ray = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
        self.errors = folder / "stderr"
        command = ["generate", "--manifest", str(folder / "m.parquet"), "--output", str(folder / "run")]
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, *command, "--weights", str(weights), "--rows-per-file", "32"],
                env=apart.without_cluster(self.ray),
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self.process.stdout.readline()

    def wait_for(self, moment: Callable[[Driver], bool]) -> None:
        deadline = time.monotonic() + 300
        while not moment(self) and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def stop(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr, once it was told to stop."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=120)
        return self.process.returncode, self.errors.read_text()

    def core_has_begun(self) -> bool:
        """Whether Ray's core, which takes signals for itself, is being loaded into the driver."""
        return any(self.ray.glob(f"ray/session_*/logs/python-core-driver-*_{self.process.pid}.log"))

    def says(self, words: str) -> bool:
        return words in self.errors.read_text()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        grey = cv2.resize(rng.integers(0, 256, (6, 6), dtype=np.uint8), (200, 180))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), grey)
    list_folder(ManifestFolderSettings(uri=str(folder / "images"), output=str(folder / "m.parquet")))
    return folder


@pytest.fixture
def start(images: Path, tiny_weights: Path) -> Iterator[Callable[[], Driver]]:
    drivers: list[Driver] = []

    def begin() -> Driver:
        shutil.rmtree(images / "run", ignore_errors=True)
        drivers.append(Driver(images, tiny_weights))
        return drivers[-1]

    yield begin
    for driver in drivers:
        if driver.process.poll() is None:
            os.killpg(driver.process.pid, signal.SIGKILL)
        shutil.rmtree(driver.ray, ignore_errors=True)


def is_told(code: int, stderr: str) -> bool:
    lines = [line for line in stderr.splitlines() if line]
    # Ray's own words, on signals and on the level of its log.
    strange = [line for line in lines if "SIGTERM" in line or "Traceback" in line or "log level" in line]
    return code == 1 and lines[-1] == INTERRUPTED and not strange


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(Driver.core_has_begun, id="while Ray's core is loaded", marks=pytest.mark.slow),
        pytest.param(lambda driver: driver.says("Ray: started"), id="once Ray has started"),
    ],
)
def test_a_driver_that_is_told_to_stop_says_so_in_one_line(
    start: Callable[[], Driver], moment: Callable[[Driver], bool]
) -> None:
    driver = start()
    driver.wait_for(moment)
    code, stderr = driver.stop()
    assert is_told(code, stderr), (code, stderr)


def test_a_verb_that_is_told_in_its_last_moments_ends_as_it_would_have() -> None:
    assert subprocess.run([sys.executable, "-c", TOLD_LAST], check=False).returncode == BAD_INPUT


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the process handles and has loaded from /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_can_be_told_before_anything_large_is_loaded(number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("a shell that runs this in the background has Ctrl-C ignored")
    command = [sys.executable, "-m", "chexmask_u", "info", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        about = Path(f"/proc/{process.pid}")
        while not handles(about, signal.SIGTERM):
            time.sleep(0.001)
        loaded = (about / "maps").read_text()
        process.send_signal(number)
        told, said = process.communicate(timeout=60)
    assert (process.returncode, said, told) == (1, INTERRUPTED + "\n", '{"error": "interrupted"}\n')
    assert not [library for library in ("numpy", "pyarrow", "cv2") if library in loaded]


def handles(process: Path, number: signal.Signals) -> bool:
    """Whether a process below /proc has a handler of its own for a signal."""
    status = (process / "status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_driver_can_be_told_at_any_moment(start: Callable[[], Driver]) -> None:
    """At random moments from before Ray to after the last line, which is a run that ended as it would have."""
    lots = random.Random(0)
    seconds = 0.0
    for _ in range(40):
        driver = start()
        began = time.monotonic()
        # The first one is let to its end, to know how long that takes.
        wait = lots.uniform(0, seconds) if seconds else 600.0
        driver.wait_for(lambda _, until=began + wait: time.monotonic() > until)
        seconds = seconds or time.monotonic() - began
        ended = driver.process.poll()
        code, stderr = driver.stop()
        assert is_told(code, stderr) or (code == 0 and ended in (None, 0)), (wait, code, stderr)
