"""A child process that decodes one image at a time, so that an image that kills, hangs or bloats it costs one image."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import cv2
import numpy as np

from chexmask_u import storage
from chexmask_u.images import memory
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.images.preparation import ReadImage, read_bytes
from chexmask_u.images.spacing import Spacing
from chexmask_u.record import ReadError
from chexmask_u.sources.base import Preparation

# A 10,000 x 10,000 image of 16 bits takes 4 s on one core; a machine may be ten times as slow and busy.
SECONDS = 60.0

# What a decoder may take beyond its start, in bytes a pixel of a max_side x max_side image and in bytes.
BYTES_PER_PIXEL = 24
SPARE_BYTES = 512 * 2**20

# A death may come from outside, as when a machine runs out of memory; two of the same image do not.
ATTEMPTS = 2
PAUSE_SECONDS = 1.0

_START = "from chexmask_u.images.sandbox import serve; serve()"

_READY = b"ready\n"

# What anybody may ask of Linux for a pipe. With the usual 64 KiB the two sides wait for each other dozens of times an
# image.
_PIPE_BYTES = 2**20


class SandboxError(RuntimeError):
    """The child does not even start, which is no image's fault."""


@dataclass
class Sandbox:
    """Decodes and prepares images in a child process, which is started on first use and again after each death.

    The child ends by itself with this process, whatever ends it: at the end of its input or, if it is busy, at its time
    limit at the latest.

    Attributes:
        seconds: wall-clock limit for one image, which the kernel enforces.
        bytes_per_pixel, spare_bytes: address space for one image, per pixel of the largest image and besides;
            bounded on Linux alone.
    """

    seconds: float = SECONDS
    bytes_per_pixel: int = BYTES_PER_PIXEL
    spare_bytes: int = SPARE_BYTES
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def read(self, data: bytes, *, source: str, max_side: int, preparation: Preparation = "published") -> ReadImage:
        """`preparation.read_bytes` in the child; one image at a time, whichever thread asks.

        Raises:
            ReadError: as `preparation.read_bytes` does; or "crashed", "timeout" or "out_of_memory".
            SandboxError: if no child can be started.
        """
        request = {
            "bytes": len(data),
            "source": source,
            "max_side": max_side,
            "preparation": preparation,
            "seconds": self.seconds,
            "memory": self.bytes_per_pixel * max_side**2 + self.spare_bytes,
        }
        with self._lock:
            for _ in range(ATTEMPTS):
                answer = self._ask(request, data)
                if answer is not None:
                    break
                code = self._end()
                if code == -signal.SIGALRM:
                    raise ReadError("timeout", f"not decoded within {self.seconds:g} s")
            else:
                raise ReadError("crashed", f"it ended the decoder's process {ATTEMPTS} times ({_cause(code)})")
        header, image = answer
        if "reason" in header:
            raise ReadError(header["reason"], header["error"])
        pixels = np.frombuffer(image, np.uint8).reshape(header["shape"])
        return ReadImage(
            pixels,
            header["height"],
            header["width"],
            Letterbox.from_row(header["letterbox"]),
            Spacing.from_row(header["spacing"]),
        )

    def close(self) -> None:
        """End the child; the next image starts another."""
        with self._lock:
            if self._child is not None:
                self._end()

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes] | None:
        """The child's answer, or None if it died."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.write(data)
            stdin.flush()
            return _receive(stdout)
        except (BrokenPipeError, EOFError):
            return None
        except BaseException:
            # Half a conversation cannot be gone on with.
            self._end()
            raise

    def _start(self) -> None:
        if self._child is not None:
            self._end()
        for _ in range(ATTEMPTS):
            try:
                self._child = subprocess.Popen(
                    # Without -P the folder that this runs in, and a package of that name there, would go first.
                    [sys.executable, "-P", "-c", _START],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    # Ray finds this code by sys.path, which a child does not inherit.
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
                        "OPENBLAS_NUM_THREADS": "1",
                    },
                    # Ctrl-C is for the parent, which then ends the child.
                    process_group=0,
                )
            except OSError as error:
                cause = storage.explain(error)
                # Memory and processes may be short for a moment only.
                time.sleep(PAUSE_SECONDS)
                continue
            if self._pipes()[1].readline() == _READY:
                _widen(self._pipes())
                return
            cause = f"{_cause(self._end())}; this process's stderr says why"
        raise SandboxError(f"the decoder's process does not start ({cause})")

    def _end(self) -> int:
        """Make sure that the child is gone; returns its exit code, negative for a signal."""
        child = self._child
        assert child is not None
        self._child = None
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            # One that died is gone by now, and one that hears the end of its input goes.
            return child.wait(1)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        return self._child.stdin, self._child.stdout


shared = Sandbox()
"""This process's own."""

atexit.register(shared.close)


def serve() -> None:
    """The child's side: read images from stdin and answer on stdout, until the input ends."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    requests: BinaryIO = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What a library prints must not come between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    memory.keep_freed()
    # What is kept of one image is not to be missing for the next.
    base = _address_space() + memory.KEPT_BYTES
    answers.write(_READY)
    answers.flush()
    while line := requests.readline():
        request = json.loads(line)
        _limit_address_space(base + request["memory"])
        data = requests.read(request["bytes"])
        if len(data) < request["bytes"]:
            return
        header: dict[str, Any]
        image = b""
        # The signal's default action needs no Python: it ends a decoder that never comes back.
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        try:
            result = read_bytes(
                data, source=request["source"], max_side=request["max_side"], preparation=request["preparation"]
            )
            image = result.image.tobytes()
            header = {
                "shape": result.image.shape,
                "height": result.height,
                "width": result.width,
                "letterbox": result.letterbox.to_row(),
                "spacing": result.spacing and result.spacing.to_row(),
            }
        except Exception as error:
            header = _failure(error, request["memory"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(header | {"bytes": len(image)}).encode() + b"\n")
        answers.write(image)
        answers.flush()


def _failure(error: BaseException, memory: int) -> dict[str, Any]:
    """What the parent is told of an image that gave none, within so many bytes of address space."""
    if _is_out_of_memory(error):
        text = f"more than {memory // 2**20} MiB would be needed to decode it (--max-side allows for more)"
        return {"reason": "out_of_memory", "error": text}
    if isinstance(error, ReadError):
        return {"reason": error.reason, "error": str(error)}
    return {"reason": "internal", "error": storage.explain(error)}


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, is about memory; decoders call it damage."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.STS_NO_MEM):
            return True
        error = error.__cause__
    return False


def _receive(stdout: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """A header and the pixels uint8, row-major, that follow it; EOFError if the child dies on the way."""
    line = stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    image = stdout.read(header["bytes"])
    if len(image) < header["bytes"]:
        raise EOFError
    return header, image


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _widen(pipes: Iterable[IO[bytes]]) -> None:
    # A user's share of such pipes may be used up; narrow ones do as well.
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            for pipe in pipes:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _address_space() -> int:
    """Bytes of address space that this process has; 0 where nobody says."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _limit_address_space(size: int) -> None:
    # Elsewhere the limit is ignored or refused.
    if sys.platform == "linux":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
