"""A real Ray cluster for tests, on loopback: a CPU head, and workers, which can be killed and added."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 300.0
# Nothing here is worth a longer farewell; Ray would take 20 s after a job.
STOP_SECONDS = 3.0

# With loopback as the only network, `ray start` refuses to add a node to a head; without, it replaces 127.0.0.1 by the
# host's own address. (At 127.0.0.2 both would do, but Ray then listens on every address of the host.)
JOIN_ON_LOOPBACK = """
from ray._private import ray_constants, services
from ray.scripts.scripts import main
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda *_: "127.0.0.1"
main()
"""

# The `ray` of this interpreter, whatever PATH says.
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Node:
    """A node's `ray start --block` and all that it started."""

    process: subprocess.Popen[Any]

    def kill(self) -> None:
        """SIGKILL to the raylet, its workers and all else of the node, as when a machine is taken away."""
        for pid in (self.process.pid, *_descendants(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class RayCluster:
    """A running cluster: where drivers and jobs find it, and the environment that opens it to them."""

    gcs_address: str
    job_address: str
    env: dict[str, str]
    folder: Path
    worker_options: Sequence[str] = ()
    nodes: list[Node] = field(default_factory=list)

    @property
    def workers(self) -> list[Node]:
        """The living nodes but for the head."""
        return [node for node in self.nodes[1:] if node.process.poll() is None]

    def processes(self, *nodes: Node) -> dict[int, str]:
        """Command lines of the living processes of these or all nodes, by id; Ray's workers name their task there."""
        living = [node.process.pid for node in nodes or self.nodes if node.process.poll() is None]
        return {pid: line for pid in _descendants(*living) if (line := _command_line(pid))}

    def add_worker(self) -> Node:
        """Start another worker node; returns once it has joined."""
        (agent,) = free_ports(1)
        options = [f"--address={self.gcs_address}", f"--dashboard-agent-listen-port={agent}", *self.worker_options]
        return self.start([sys.executable, "-c", JOIN_ON_LOOPBACK, "start", *options])

    def start(self, command: Sequence[str]) -> Node:
        """Start a node, which ends with the cluster."""
        log = self.folder / f"node-{len(self.nodes)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=self.env, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        self.nodes.append(Node(process))
        try:
            _wait_for(lambda: b"Ray runtime started" in log.read_bytes(), process, log)
        except RuntimeError:
            stop_group(process)
            raise
        return self.nodes[-1]

    def client_env(self) -> dict[str, str]:
        """The environment of a user who may use this cluster, on a machine where no other one is named."""
        return _without_ray(os.environ) | {name: self.env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}

    def api(self, path: str) -> Any:
        """What the dashboard answers to a GET, as JSON."""
        request = urllib.request.Request(
            self.job_address + path, headers={"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def state(self, kind: str) -> list[dict[str, Any]]:
        """Ray's record of all "nodes" or "actors", the dead ones too."""
        rows: list[dict[str, Any]] = self.api(f"/api/v0/{kind}?detail=1&limit=1000")["data"]["result"]["result"]
        return rows


@contextmanager
def ray_cluster(
    env: Mapping[str, str], *, head_cpus: int = 2, worker_cpus: int = 2, worker_gpus: int = 1, workers: int = 1
) -> Iterator[RayCluster]:
    """Start `ray start --head` without a GPU and worker nodes, each saying it has one; all end with the context.

    Args:
        env: what the jobs' processes find in their environment, beyond this process's own.
        head_cpus, worker_cpus, worker_gpus: what each node advertises.
        workers: how many worker nodes.
    """
    port, dashboard, client, head_agent = free_ports(4)
    # Short, since Ray's sockets below it have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    environment = {
        **_without_ray(os.environ),
        **env,
        # A job's `python` is then this one.
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # How Ray spells "on loopback only".
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Two nodes on a small machine that others use too: a busy disk or memory is no reason to refuse work.
        "RAY_local_fs_capacity_threshold": "1.0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_raylet_start_wait_time_s": str(int(START_SECONDS)),
        # Ray has its workers run behind everything else, so that tests would wait for whoever else uses the machine.
        "RAY_worker_niceness": "0",
    }
    common = [
        "--block",
        f"--object-store-memory={256 * 2**20}",
        # Two nodes of one address would both hand out the same ports of Ray's default range.
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    head = [
        str(RAY),
        "start",
        "--head",
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={head_agent}",
        f"--ray-client-server-port={client}",
        f"--temp-dir={folder / 'ray'}",
        f"--num-cpus={head_cpus}",
        "--num-gpus=0",
        *common,
    ]
    cluster = RayCluster(
        f"127.0.0.1:{port}",
        f"http://127.0.0.1:{dashboard}",
        environment,
        folder,
        [f"--num-cpus={worker_cpus}", f"--num-gpus={worker_gpus}", *common],
    )
    try:
        cluster.start(head)
        for _ in range(workers):
            cluster.add_worker()
        _wait_for_nodes(cluster, 1 + workers)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            stop_group(node.process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def stop_group(process: subprocess.Popen[Any]) -> None:
    """End a process that was started with `start_new_session=True`, and all that it started, by their ids."""
    descendants = _descendants(process.pid)
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Ray gives its workers groups of their own. A start time tells a process from a later one with its id.
    for pid, started in {**descendants, **_descendants(process.pid)}.items():
        if _stat(pid)[2] == started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def _wait_for_nodes(cluster: RayCluster, count: int) -> None:
    """Wait until the dashboard knows all nodes and takes jobs."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if sum(node["state"] == "ALIVE" for node in cluster.state("nodes")) == count:
                cluster.api("/api/jobs/")
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{cluster.job_address} does not answer") from error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{cluster.job_address}: not all {count} nodes joined in {START_SECONDS:.0f} s")
        time.sleep(0.2)


def _wait_for(condition: Any, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"`ray start` failed or took too long: {log.read_text()}")
        time.sleep(0.1)


def _without_ray(env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which no other cluster, credential or loopback setting is named."""
    return {name: value for name, value in env.items() if not name.startswith("RAY_")}


def _descendants(*pids: int) -> dict[int, int]:
    """Ids and start times of all processes below these."""
    processes = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found: dict[int, int] = {}
    parents = set(pids)
    while parents:
        parents = {child for child, (parent, _, _) in processes.items() if parent in parents} - found.keys()
        found.update({child: processes[child][2] for child in parents})
    return found


def parent(pid: int) -> int:
    """Id of a process's parent; 0 if it is gone."""
    return _stat(pid)[0]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _stat(pid: int) -> tuple[int, int, int]:
    """Parent, group and start time of a process; zeros if it is gone."""
    try:
        # The name in parentheses may hold spaces.
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0, 0
    return int(values[1]), int(values[2]), int(values[19])
