"""Seeded faults on runs of a real cluster: what is killed, when, and what became of the records."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from chexmask_u import storage
from chexmask_u.runs.run import Run
from tests.support.ray_cluster import RayCluster, parent
from tests.support.s3 import Gate

# Without a commit for so long a run counts as hung. On a machine that others use too, Ray alone takes a minute or two
# to miss a node and to start a driver's workers elsewhere.
STALL_SECONDS = 300.0

# A driver takes some seconds to get from its start to its first task.
EARLIEST, LATEST = 0.0, 6.0

# Share of the faults that come while the run may not have got over the one before.
HASTE = 0.25

OUTAGE_SECONDS = (1.0, 20.0)

# In the command lines of a run's processes: its steps and the decoders below them.
OF_A_RUN = ("MapBatches", "Write", "ReadParquet", "StreamingRepartition", "CheckpointFilter", "sandbox import serve")

# A driver may stumble over what was killed before it started: Ray takes half a minute to miss a node.
ECHO_SECONDS = 120.0

# How long a fault waits for the process that it is to kill, while the driver lives.
TARGET_SECONDS = 120.0

# What schedulers give a process that they told to stop, at least.
STOP_SECONDS = 30.0


@dataclass
class Outcome:
    """One fault: what it was and what came of it.

    Attributes:
        hit: whether what it kills existed, while the run was not done.
        at: when.
        before: records that were committed then.
        lost: those of them that are not after the next commit.
        twice: records that are committed twice after the next commit.
        seconds: from the fault to the next commit, or to the end of the run if nothing was left to commit.
    """

    fault: str
    hit: bool
    lost: int = 0
    twice: int = 0
    seconds: float | None = None
    at: float = 0.0
    before: frozenset[str] = frozenset()


@dataclass
class Chaos:
    """One run of `chexmask-u generate` under faults.

    Attributes:
        cluster: where it runs.
        run: as this process sees it, whatever happens to the way of the others to it.
        command, env: of the driver.
        rng: decides on everything.
        gate: the others' way to the storage, or None for local disk.
    """

    cluster: RayCluster
    run: Run
    command: Sequence[str]
    env: Mapping[str, str]
    log: Path
    rng: random.Random
    gate: Gate | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    endings: list[tuple[int, str]] = field(default_factory=list)
    # Seconds that the last worker outlived a killed driver.
    afterlives: list[float] = field(default_factory=list)
    _ids: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = 0
        self._started = self._struck = 0.0
        self._offset = 0
        self._helpers: list[threading.Thread] = []
        self._joins: list[threading.Thread] = []
        self._done = False
        self._seen = 0
        self._workers = len(self.cluster.workers)
        self._driver = self._start()
        self._progress = time.monotonic()
        self._faults: dict[str, Callable[[], bool]] = {
            "driver": self._kill_driver,
            "driver told to stop": self._stop_driver,
            "predictor": lambda: self._kill(lambda: self.processes("Predictor")),
            "reader": lambda: self._kill(self._readers),
            "decoder": lambda: self._kill(self._decoders),
            "writer": lambda: self._kill(lambda: self.processes("Write")),
            "writer at a commit": self._kill_writer_at_commit,
            "driver at a commit": self._kill_driver_at_commit,
            "node": self._kill_node,
        }
        if self.gate is not None:
            self._faults["storage"] = self._cut_storage
            self._faults["driver in a rename"] = self._kill_driver_in_rename

    def survive(self, kinds: Sequence[str], total: int) -> None:
        """Inject faults of these kinds, one after another, and run the command again until it is done.

        Args:
            kinds: in order; those that the run ends before are left out.
            total: records that there are to be.

        Raises:
            AssertionError: if the command gives up, or shows a stack, or nothing goes on.
        """
        self.total = total
        for kind in kinds:
            if not self._wait_for_moment():
                break
            self._inject(kind)
        while self._look():
            pass
        for helper in self._helpers + self._joins:
            helper.join()

    def _inject(self, kind: str) -> None:
        self._struck = time.monotonic()
        hit = self._faults[kind]()
        before = self._committed()
        hit = hit and sum(before.values()) < self.total
        self.outcomes.append(Outcome(kind, hit, at=self._struck, before=frozenset(before)))
        _say(f"{kind}: {'hit' if hit else 'missed'} at {sum(before.values())} of {self.total} records")

    def _wait_for_moment(self) -> bool:
        """Until a random moment, mostly after the run got over the last fault; False if the run ends before."""
        hasty = self.rng.random() < HASTE
        pause = self.rng.uniform(EARLIEST, LATEST)
        while not hasty and self._open():
            if not self._look():
                return False
        until = time.monotonic() + pause
        while time.monotonic() < until:
            if not self._look():
                return False
        return True

    def _open(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.hit and outcome.seconds is None]

    def _look(self) -> bool:
        """See what is committed and whether the driver lives; start another if it does not. False: the run is done."""
        if self._done:
            return False
        time.sleep(0.1)
        if len(self.cluster.workers) < self._workers and not any(one.is_alive() for one in self._joins):
            # Ray ends a node that it has not heard of for half a minute, as on a busy machine.
            _say("a node is gone by itself")
            self._join(0)
        code = self._driver.poll()
        committed = self._committed()
        now = time.monotonic()
        for outcome in self._open():
            if committed.keys() - outcome.before or code == 0:
                outcome.seconds = now - outcome.at
                outcome.lost = len(outcome.before - committed.keys())
                outcome.twice = sum(count > 1 for count in committed.values())
                _say(f"{outcome.fault}: {outcome.seconds:.1f} s to the next commit")
        if sum(committed.values()) > self._seen:
            self._progress = now
        self._seen = sum(committed.values())
        if code is not None:
            self._ended(code)
            self._done = code == 0
            if self._done:
                return False
            self._driver = self._start()
        if now - self._progress > STALL_SECONDS:
            raise AssertionError(f"no record was committed for {STALL_SECONDS:.0f} s; {self.dump()}")
        return True

    def _ended(self, code: int) -> None:
        text = self._output()
        self.endings.append((code, text))
        _say(f"the driver ended with {code}: {text.splitlines()[-1:]}")
        assert "Traceback" not in text, text[-6000:]
        if code >= 0:
            assert code in (0, 1, 2), text[-3000:]
            assert code == 0 or any(outcome.at > self._started - ECHO_SECONDS for outcome in self.outcomes), (
                f"ended with {code} though nothing happened to it: {text[-3000:]}"
            )

    def _start(self) -> subprocess.Popen[bytes]:
        self._started = time.monotonic()
        with self.log.open("ab") as output:
            self._offset = output.tell()
            return subprocess.Popen(
                self.command, env=self.env, stdout=output, stderr=output, cwd="/", start_new_session=True
            )

    def _output(self) -> str:
        with self.log.open("rb") as output:
            output.seek(self._offset)
            return output.read().decode(errors="replace")

    def _committed(self) -> Counter[str]:
        """How often each record is committed."""
        fs, path = storage.arrow_filesystem(self.run.checkpoint)
        files = [file for file in _files(fs, path) if not file.endswith(".pending.parquet")]
        for file in files:
            if file not in self._ids:
                try:
                    self._ids[file] = pq.read_table(file, filesystem=fs)["record_id"].to_pylist()
                except FileNotFoundError:
                    continue
        return Counter(name for file in files for name in self._ids.get(file, []))

    def processes(self, *words: str, ray: bool = True) -> list[int]:
        """Ids of the nodes' processes whose command line has one of the words."""
        return [
            pid
            for pid, line in self.cluster.processes().items()
            if line.startswith("ray::") == ray and any(word in line for word in words)
        ]

    # Each returns whether it hit.

    def _kill(self, find: Callable[[], list[int]]) -> bool:
        """SIGKILL to one process, once there is one."""
        deadline = time.monotonic() + TARGET_SECONDS
        while time.monotonic() < deadline and self._driver.poll() is None:
            if found := find():
                self._struck = time.monotonic()
                return _kill(self.rng.choice(sorted(found)))
            time.sleep(0.02)
        return False

    def _decoders(self) -> list[int]:
        return self.processes("chexmask_u.images.sandbox import serve", ray=False)

    def _readers(self) -> list[int]:
        """Workers that read; between two tasks their name does not tell, but their decoder does."""
        return self.processes("_complete_and_read") or [parent(pid) for pid in self._decoders()]

    def _kill_driver(self) -> bool:
        hit = self._driver.poll() is None
        orphans = self.processes(*OF_A_RUN)
        self._driver.kill()
        self._driver.wait()
        killed = time.monotonic()

        def watch() -> None:
            while any(Path(f"/proc/{pid}").exists() for pid in orphans) and time.monotonic() < killed + STALL_SECONDS:
                time.sleep(0.02)
            self.afterlives.append(time.monotonic() - killed)

        if hit and orphans:
            self._helpers.append(threading.Thread(target=watch))
            self._helpers[-1].start()
        return hit

    def _stop_driver(self) -> bool:
        """As a scheduler does before it kills."""
        hit = self._driver.poll() is None
        self._driver.terminate()
        code = self._driver.wait(STOP_SECONDS)
        # While it still imports, it has nothing to end in order.
        said = self._output()
        assert code in (0, 1) or (code == -signal.SIGTERM and not said), f"it ended with {code}: {said[-2000:]}"
        return hit

    def _kill_node(self) -> bool:
        # Never the last one, whatever the pace.
        for one in self._joins:
            one.join()
        node = self.rng.choice(self.cluster.workers)
        lines = self.cluster.processes(node).values()
        hit = any(word in line for line in lines for word in OF_A_RUN)
        node.kill()
        self._join(self.rng.uniform(0, 5))
        return hit

    def _join(self, pause: float) -> None:
        """Have a node join after so many seconds; one that fails to is missed, and follows, in `_look`."""

        def join() -> None:
            time.sleep(pause)
            with suppress(RuntimeError):
                self.cluster.add_worker()

        self._joins.append(threading.Thread(target=join))
        self._joins[-1].start()

    def _cut_storage(self) -> bool:
        assert self.gate is not None
        hit = self._driver.poll() is None
        self.gate.cut()
        time.sleep(self.rng.uniform(*OUTAGE_SECONDS))
        self.gate.open()
        return hit

    def _at_commit(self, strike: Callable[[list[int]], bool]) -> bool:
        """Strike at the processes that write, as soon as there is a checkpoint that is pending."""
        fs, path = storage.arrow_filesystem(self.run.checkpoint)
        deadline = time.monotonic() + TARGET_SECONDS
        while time.monotonic() < deadline and self._driver.poll() is None:
            writers = self.processes("Write")
            looked = time.monotonic()
            while writers and time.monotonic() < looked + 0.3:
                if any(file.endswith(".pending.parquet") for file in _files(fs, path)):
                    self._struck = time.monotonic()
                    return strike(writers)
        return False

    def _kill_writer_at_commit(self) -> bool:
        return self._at_commit(lambda writers: sum(_kill(pid) for pid in writers) > 0)

    def _kill_driver_at_commit(self) -> bool:
        return self._at_commit(lambda writers: sum(_kill(pid) for pid in writers) > 0 and self._kill_driver())

    def _kill_driver_in_rename(self) -> bool:
        """Kill driver and writers once a checkpoint has its new name and before the old one is deleted."""
        assert self.gate is not None
        self.gate.hold.touch()
        try:
            deadline = time.monotonic() + TARGET_SECONDS
            while time.monotonic() < deadline and self._driver.poll() is None:
                if self.gate.held.exists():
                    self._struck = time.monotonic()
                    for pid in self.processes("Write"):
                        _kill(pid)
                    return self._kill_driver()
                time.sleep(0.02)
            return False
        finally:
            self.gate.hold.unlink()
            self.gate.held.unlink(missing_ok=True)

    def dump(self) -> str:
        """What the driver and Ray are doing, as far as they say."""
        lines = [f"driver {self._driver.pid}, code {self._driver.poll()}", self._output()[-2000:]]
        if self._driver.poll() is None:
            lines.append(_stack(self._driver.pid))
        for kind in ("nodes", "actors", "tasks"):
            try:
                states = Counter(
                    (row.get("class_name") or row.get("name") or row.get("node_id"), row["state"])
                    for row in self.cluster.state(kind)
                )
                lines += [f"{kind}: {count} {name} {state}" for (name, state), count in states.items()]
            except Exception as error:
                lines.append(f"{kind}: {error}")
        lines += [f"{pid} {line}" for pid, line in self.cluster.processes().items()]
        return "\n".join(lines)


def _say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", flush=True)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _stack(pid: int) -> str:
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        return ""
    return subprocess.run([spy, "dump", "--pid", str(pid)], capture_output=True, text=True, check=False).stdout


def _files(fs: pafs.FileSystem, path: str) -> list[str]:
    found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return [info.path for info in found if info.path.endswith(".parquet")]


def leftovers(run: Run) -> list[str]:
    """Parquet files of a run that are no part of what is committed."""
    fs, records = storage.arrow_filesystem(run.records)
    _, checkpoint = storage.arrow_filesystem(run.checkpoint)
    counted = set(run.dataset().files)
    pending = [file for file in _files(fs, checkpoint) if file.endswith(".pending.parquet")]
    return pending + [file for file in _files(fs, records) if file not in counted]


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line per kind of fault."""
    lines = [
        "| fault | injected | hit work in flight | records lost | records twice | recovery: median s | max s |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = list(dict.fromkeys(outcome.fault for outcome in outcomes))
    for kind in [*sorted(kinds), "all"]:
        these = [outcome for outcome in outcomes if kind in (outcome.fault, "all")]
        hits = [outcome for outcome in these if outcome.hit]
        seconds = [outcome.seconds for outcome in hits if outcome.seconds is not None]
        times = f"{statistics.median(seconds):.1f} | {max(seconds):.1f}" if seconds else "- | -"
        lost, twice = sum(outcome.lost for outcome in hits), sum(outcome.twice for outcome in hits)
        lines.append(f"| {kind} | {len(these)} | {len(hits)} | {lost} | {twice} | {times} |")
    return "\n".join(lines)
