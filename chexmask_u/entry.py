"""Where `chexmask-u` begins: told to stop from its first moment on, before anything else is imported."""

import importlib
import os
import signal
import sys
import types
from collections.abc import Sequence
from typing import NoReturn

INTERRUPTED = "interrupted; the same command goes on where it can"


def main(arguments: Sequence[str] | None = None) -> int:
    """`cli.main`, which half a second of imports come before."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    run = importlib.import_module("chexmask_u.cli").main
    return int(run(arguments))


def end(signum: int, frame: types.FrameType | None) -> NoReturn:
    """Say that nothing was done, and end; an exception might be lost in what is being imported."""
    os.write(2, f"chexmask-u: {INTERRUPTED}\n".encode())
    if "--json" in sys.argv:
        os.write(1, b'{"error": "interrupted"}\n')
    os._exit(1)
