"""A written Space that is served on this machine: what visitors of the page, and people who write one, have."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import matplotlib
import pytest

from chexmask_u import cli

# Says on stderr whom the server talks to, or asks after.
WATCHED = """
import runpy, sys
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        print("TALKS TO", args[1][0], file=sys.stderr, flush=True)
    elif event == "socket.getaddrinfo":
        print("TALKS TO", args[0], file=sys.stderr, flush=True)
sys.addaudithook(watch)
runpy.run_path("app.py", run_name="__main__")
"""

LOOPBACK = {"127.0.0.1", "::1", "localhost", "None"}

# Of images that the page takes.
MAX_SIDE = 1500

# In place of what the page says in the repository.
OWN_WORDS = "Open an image with the copy in this Space"


@dataclass
class Site:
    """A Space, and the page that it serves.

    Attributes:
        url: of the page.
        space: the Space's folder.
        temporary: folder for the server's temporary files.
        asked: addresses that browsers asked for.
    """

    url: str
    space: Path
    temporary: Path
    asked: set[str] = field(default_factory=set)

    def left(self) -> list[str]:
        """Files and folders of uploads; the folder that gradio makes at its start, and leaves empty, is none."""
        (folder,) = self.temporary.iterdir()
        return [path.name for path in folder.rglob("*") if path.name != "vibe_edit_history"]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A Space, served until the tests are done; it is to talk to nobody and to leave nothing."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    place = tmp_path_factory.mktemp("app")
    space, temporary, home = (place / name for name in ("space", "tmp", "home"))
    temporary.mkdir()
    home.mkdir()
    assert cli.main(["app", "--space", str(space), "--max-side", str(MAX_SIDE)]) == cli.DONE
    frame = space / "chexmask_u" / "templates" / "app_frame.html.j2"
    frame.write_text(frame.read_text().replace("Open an image", OWN_WORDS))
    before = files_below(space)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        # Its list of the machine's fonts, which takes seconds to make.
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }
    errors = place / "stderr"
    with errors.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-c", WATCHED], stdout=subprocess.PIPE, stderr=said, text=True, cwd=space, env=environment
        )
    assert server.stdout is not None
    line = server.stdout.readline()
    assert f":{port}" in line, errors.read_text()
    found = Site(line.split()[1], space, temporary)
    yield found
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    told = errors.read_text()
    assert {line.split()[2] for line in told.splitlines() if line.startswith("TALKS TO")} <= LOOPBACK
    assert "Traceback" not in told
    asked = {urlsplit(url).hostname for url in found.asked if not url.startswith(("data:", "blob:"))}
    assert asked <= {"127.0.0.1"}
    assert files_below(space) == before
    assert files_below(home) + list(temporary.iterdir()) == []
