"""What the Tab key does in an interactive bash, after the one line that the documentation asks for."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import pytest

# Where bash rings the bell, moves the cursor or tells the terminal how to paste.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x07\r]")
_LINE_START, _LINE_END = "\x01", "\x05"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Iterator[Callable[[str], list[str]]]:
    """Types keys into a bash that completes `chexmask-u`; gives the words that stand there then."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "radiographs").mkdir()
    (folder / "manifest-of-ours.parquet").touch()
    (folder / "chexmask-u").write_text(f'#!/bin/sh\nexec {sys.executable} -m chexmask_u.cli "$@"\n')
    (folder / "chexmask-u").chmod(0o755)
    settings = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"}
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], settings)

    def shown(until: str) -> str:
        text, end = "", time.monotonic() + 60
        while until not in text:
            assert time.monotonic() < end, f"{until!r} did not come: {text!r}"
            if select.select([terminal], [], [], 0.1)[0]:
                text = _CONTROL.sub("", text + os.read(terminal, 4096).decode(errors="replace"))
        return text

    def typed(keys: str) -> list[str]:
        # The quotes keep the end's mark out of what is typed.
        os.write(terminal, f"{keys}{_LINE_START}printf '%s,' {_LINE_END}; echo E'N'D\n".encode())
        return re.findall(r"^(.*),END", shown("END"), re.MULTILINE)[-1].split(",")

    os.write(terminal, b"""eval "$(chexmask-u --completion bash)"; echo rea'd'y\n""")
    shown("ready")
    yield typed
    os.close(terminal)
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("chexmask-u seg\t", "chexmask-u segment"),
        ("chexmask-u manifest mim\t", "chexmask-u manifest mimic-cxr-jpg"),
        ("chexmask-u generate --rep\t", "chexmask-u generate --replicas"),
        ("chexmask-u export --format coc\t", "chexmask-u export --format coco"),
        ("chexmask-u generate --manifest man\t", "chexmask-u generate --manifest manifest-of-ours.parquet"),
        ("chexmask-u segment --output rad\t", "chexmask-u segment --output radiographs/"),
    ],
)
def test_tab_completes_verbs_flags_values_and_paths(words, keys, line):
    assert words(keys) == line.split()
