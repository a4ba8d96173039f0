"""A real Ray cluster for tests, on loopback: a CPU head, and a worker that says it has a GPU."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 120.0
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
class RayCluster:
    """A running cluster: where drivers and jobs find it, and the environment that opens it to them."""

    gcs_address: str
    job_address: str
    env: dict[str, str]
    folder: Path

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
def ray_cluster(env: Mapping[str, str], *, head_cpus: int = 2, worker_cpus: int = 2) -> Iterator[RayCluster]:
    """Start `ray start --head` without a GPU and a node that says it has one; both end with the context.

    Args:
        env: what the jobs' processes find in their environment, beyond this process's own.
        head_cpus, worker_cpus: CPUs that the two nodes advertise.
    """
    port, dashboard, client, head_agent, worker_agent = free_ports(5)
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
    worker = [
        sys.executable,
        "-c",
        JOIN_ON_LOOPBACK,
        "start",
        f"--address=127.0.0.1:{port}",
        f"--dashboard-agent-listen-port={worker_agent}",
        f"--num-cpus={worker_cpus}",
        "--num-gpus=1",
        *common,
    ]
    cluster = RayCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment, folder)
    try:
        with ExitStack() as stack:
            stack.enter_context(_node(head, environment, folder / "head"))
            stack.enter_context(_node(worker, environment, folder / "worker"))
            _wait_for_nodes(cluster, 2)
            yield cluster
    finally:
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


@contextmanager
def _node(command: Sequence[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True, cwd="/")
    try:
        _wait_for(lambda: b"Ray runtime started" in log.read_bytes(), process, log)
        yield
    finally:
        stop_group(process)


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


def _descendants(pid: int) -> dict[int, int]:
    """Ids and start times of all processes below one."""
    processes = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found: dict[int, int] = {}
    parents = {pid}
    while parents:
        parents = {child for child, (parent, _, _) in processes.items() if parent in parents} - found.keys()
        found.update({child: processes[child][2] for child in parents})
    return found


def _stat(pid: int) -> tuple[int, int, int]:
    """Parent, group and start time of a process; zeros if it is gone."""
    try:
        # The name in parentheses may hold spaces.
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0, 0
    return int(values[1]), int(values[2]), int(values[19])
