"""Commands in a process of their own, which joins no Ray, and what became of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_RUN = """
import contextlib, io, json, sys
from chexmask_u import cli
for command in json.loads(sys.argv[1]):
    told, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(said):
        code = cli.main(command)
    print(json.dumps([code, told.getvalue(), said.getvalue(), "ray" in sys.modules]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, what it wrote, and whether it had to import Ray."""

    code: int
    stdout: str
    stderr: str
    with_ray: bool


def without_cluster(folder: Path) -> dict[str, str]:
    """The environment of a machine that has no GPU, and on which no Ray runs."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Ray's own note of a running cluster lies in this folder.
    return mine | {"CUDA_VISIBLE_DEVICES": "", "RAY_TMPDIR": str(folder)}


def run(commands: Sequence[Sequence[str]], folder: Path) -> list[Outcome]:
    """Run `chexmask-u` with these arguments, one after the other in one process, on such a machine."""
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(commands)],
        env=without_cluster(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [Outcome(*json.loads(line)) for line in ended.stdout.splitlines()]
