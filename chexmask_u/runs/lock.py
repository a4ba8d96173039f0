"""One driver at a time on one run: an owner file with a heartbeat, on any storage.

Object stores have no locks, and clocks of two machines differ. So who finds the file watches it: if it changes, its
owner is alive; if it does not for a minute, the owner is dead. Only of a process of its own machine does it ask the
kernel. An entry is written over only where none or a dead one was seen, and counts once it is still there after a pause
that is longer than the step from seeing to writing; so of two who come at the same time, the last to write stays.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chexmask_u import storage
from chexmask_u.errors import InputError, StoppedError

# Name of the owner file in the run's folder.
LOCK = "run.lock"

BEAT_SECONDS = 15.0
EXPIRY_SECONDS = 60.0
SETTLE_SECONDS = 2.0
WATCH_SECONDS = 1.0


@contextmanager
def held(url: str) -> Iterator[None]:
    """Be the only driver of the run at `url` for the time of the context.

    Raises:
        InputError: if another driver is alive.
        StoppedError: if another driver takes the run over, because this one did not seem alive.
    """
    owner = _Owner(url)
    owner.claim()
    thread = threading.Thread(target=owner.beat, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if owner.lost:
            raise StoppedError(f"{url} was taken over by {_who(owner.lost)}; this process seemed dead") from None
        raise
    finally:
        owner.over.set()
        thread.join()
        owner.leave()


class _Owner:
    """A driver's process as the owner of a run, and its owner file."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.lost: dict[str, Any] | None = None
        self.over = threading.Event()
        # The next beat is as good, and a driver that is told to stop in an outage is not to wait for its owner file.
        self._fs, self._path = storage.filesystem(storage.join(url, LOCK), patient=False)
        self._entry: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine(),
            "process_started": _started(os.getpid()),
            "beat": 0,
        }

    def claim(self) -> None:
        """Become the owner, now or once an owner that died elsewhere has been silent for long enough.

        Raises:
            InputError: naming the owner that is alive.
        """
        with storage.explained(self.url, "written"):
            if self._create():
                return
            found = self._read()
            if found is not None:
                self._watch(found)
            self._write()
            # Two may have seen the same dead owner.
            time.sleep(SETTLE_SECONDS)
            found = self._read()
        if not self._is_ours(found):
            raise InputError(self._refusal(found))

    def beat(self) -> None:
        """Say again and again that this process is alive, and find out if another one took the run over."""
        while not self.over.wait(BEAT_SECONDS):
            # A storage that fails now may be there at the next beat.
            with suppress(Exception):
                found = self._read()
                if found is not None and not self._is_ours(found):
                    self.lost = _parse(found)
                    _interrupt()
                    return
                self._entry["beat"] += 1
                self._write()

    def leave(self) -> None:
        """Delete the owner file, if it is this process's."""
        with suppress(Exception):
            if self._is_ours(self._read()):
                self._fs.rm_file(self._path)
                if storage.is_local(self.url):
                    # Nothing stays of a run that was refused; a folder that holds anything is not removed.
                    Path(self._path).parent.rmdir()

    def _watch(self, found: bytes) -> None:
        """Return once the owner is known to be dead.

        Raises:
            InputError: if it is alive.
        """
        owner = _parse(found)
        if owner.get("machine") == self._entry["machine"]:
            if _started(owner["pid"]) == owner["process_started"]:
                raise InputError(self._refusal(found))
            return
        print(f"{self.url}: held by {_who(owner)}; taken over in {EXPIRY_SECONDS:.0f} s if it is dead", file=sys.stderr)
        deadline = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise InputError(self._refusal(now))

    def _refusal(self, found: bytes | None) -> str:
        return (
            f"{self.url}: is being written by {_who(_parse(found))}; wait for it or end it "
            f"(if it is surely gone, delete {storage.join(self.url, LOCK)})"
        )

    def _create(self) -> bool:
        """Write the owner file unless there is one; whether it is this process's for sure."""
        if self._read() is not None:
            return False
        if storage.is_local(self.url):
            self._fs.makedirs(storage.normalise(self.url), exist_ok=True)
            try:
                with Path(self._path).open("xb") as file:
                    file.write(self._content())
            except FileExistsError:
                return False
            return True
        # Not every object store knows a conditional write, so nothing is built on it.
        return False

    def _write(self) -> None:
        if storage.is_local(self.url):
            # In one step: a reader is never to see a half.
            draft = Path(f"{self._path}.{self._entry['token']}")
            draft.write_bytes(self._content())
            draft.replace(self._path)
        else:
            self._fs.pipe_file(self._path, self._content())

    def _read(self) -> bytes | None:
        try:
            self._fs.invalidate_cache()
            content: bytes = self._fs.cat_file(self._path)
        except FileNotFoundError:
            return None
        return content

    def _content(self) -> bytes:
        return json.dumps(self._entry).encode() + b"\n"

    def _is_ours(self, found: bytes | None) -> bool:
        return found is not None and _parse(found).get("token") == self._entry["token"]


def _interrupt() -> None:
    """Stop the main thread as Ctrl-C does, or as SIGTERM where that is handled: a shell may have Ctrl-C ignored."""
    number = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def _parse(found: bytes | None) -> dict[str, Any]:
    try:
        owner = json.loads(found or b"")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}"


def _machine() -> str:
    """A name that two processes share only if each sees the other by its id: host, boot and, in a container, that."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When the process with that id started, or None if there is none; ids are used again, so one alone says little."""
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if sys.platform == "linux":
            return None
    else:
        return None if state in "ZX" else values[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
