"""One process of a machine compiles; the others then find in torch's cache what it compiled."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from chexmask_u.model.network import Network


def described(model: Network) -> str:
    """What decides the code that torch makes of a network: the same words, the same code."""
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    return f"{torch.__version__}, {device}, {model.variant}, {model.input_size}, {model.precision}"


@contextmanager
def once_a_machine(what: str) -> Iterator[None]:
    """Compile inside: alone, the first time on this machine; side by side, once an earlier process has done so.

    Processes that come meanwhile wait for the first one, also where it is killed, and then one of them is the first.
    Where the folder of torch's cache cannot be written, nobody waits.

    Args:
        what: is compiled, from `described`.
    """
    try:
        folder = Path(_cache_folder())
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"chexmask-u-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
        compiled, lock = folder / f"{stem}.compiled", folder / f"{stem}.lock"
    except OSError:
        yield
        return
    with ExitStack() as held:
        if not compiled.exists() and _locked(lock, held) and compiled.exists():
            # Another process compiled it meanwhile, so that there is nothing to be alone for.
            held.close()
        yield
        _mark(compiled)


def _cache_folder() -> str:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def _locked(lock: Path, held: ExitStack) -> bool:
    """Wait for the lock, which the kernel gives back should its holder die; returns whether there is one."""
    try:
        file = held.enter_context(lock.open("a"))
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _mark(compiled: Path) -> None:
    try:
        compiled.touch()
    except OSError:
        return
