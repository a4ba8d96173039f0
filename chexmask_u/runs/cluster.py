"""The Ray cluster under a run: found or started, what it has, and calls on its workers."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexmask_u import storage
from chexmask_u.errors import InputError, StoppedError

# The decoder's matrices are too small for more threads to pay.
CORES_PER_REPLICA = 8

# Cutting the manifest into blocks and a resume's filter each hold a core from beginning to end and hardly use it. On a
# small machine nothing would be left for writing, and no record would be committed before the last one is read.
WAITING_TASKS = 2

# A replica or task that dies more often than this, beyond preemption, does so for a reason; Ray's default is for ever.
MAX_RESTARTS = 20


@dataclass(frozen=True)
class Layout:
    """What a run gets of the cluster as it is now.

    Attributes:
        machines, cores: of the nodes that are up.
        gpus: of those nodes; 0 where the network is to run on CPUs.
        on_gpus: whether the network is to run on GPUs, which may not be up yet.
        replicas: of the network.
        threads: of each replica; None leaves torch's own choice.
    """

    machines: int
    cores: int
    gpus: int
    on_gpus: bool
    replicas: int
    threads: int | None


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Connect to the Ray cluster that is named or running; else start a local one on loopback and end it afterwards.

    Yields:
        Whether the cluster was started here.

    Raises:
        InputError: if a named cluster does not answer.
    """
    address = address or os.environ.get("RAY_ADDRESS") or _running_cluster()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise the driver prints a warning about a restart of actors that Ray Data arranges itself.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None or _on_loopback(address):
        # Ray uses the host's own address otherwise; it reads this when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    import ray.data

    # Its console log speaks of blocks and operators; the session's own log file keeps all of it.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=ray.util.annotations.RayDeprecationWarning)
    if ray.is_initialized():
        yield False
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address is not None and not _answers(address):
        raise InputError(f"Ray cluster {address}: does not answer; start it, or leave out --address and RAY_ADDRESS")
    try:
        if address is None:
            info = ray.init(
                address="local",
                num_cpus=(os.cpu_count() or 1) + WAITING_TASKS,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            print(f"Ray: started on this machine, dashboard {info.dashboard_url or 'off'}", file=sys.stderr)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            print(f"Ray: connected to {ray.get_runtime_context().gcs_address}", file=sys.stderr)
        if threading.current_thread() is threading.main_thread():
            # Ray takes the signal for itself, and would end the process with a stack of its own.
            signal.signal(signal.SIGTERM, on_sigterm)
    except SystemExit as stopped:
        # Ray's own answer to SIGTERM while it starts.
        raise KeyboardInterrupt from stopped
    except ConnectionError as error:
        raise InputError(f"Ray cluster {address}: cannot be joined; is RAY_AUTH_TOKEN the cluster's own?") from error
    except (ValueError, RuntimeError, OSError) as error:
        what = "does not start on this machine" if address is None else f"cluster {address} cannot be joined"
        raise InputError(
            f"Ray {what} ({storage.explain(error)}); is the machine too busy, or the address wrong?"
        ) from error
    try:
        yield address is None
    finally:
        ray.shutdown()


def _running_cluster() -> str | None:
    """Address of the cluster that `ray start` left a note of on this machine, if it still answers."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if _answers(address) else None


def _on_loopback(address: str) -> bool:
    return address.removeprefix("ray://").rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")


def _answers(address: str) -> bool:
    """Whether something listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


def layout(device: str, replicas: int | None = None) -> Layout:
    """What a run gets of the cluster that is connected to.

    Args:
        device: "auto", "cpu" or "cuda", as settings have it.
        replicas: of the network; None for one per GPU that is up, or per 8 cores.
    """
    import ray

    up = gpus()
    on_gpus = device == "cuda" or (device == "auto" and up > 0)
    cores = int(ray.cluster_resources().get("CPU", 1))
    replicas = replicas or (max(1, up) if on_gpus else max(1, cores // CORES_PER_REPLICA))
    return Layout(
        machines=sum(node["Alive"] for node in ray.nodes()),
        cores=cores,
        gpus=up if on_gpus else 0,
        on_gpus=on_gpus,
        replicas=replicas,
        threads=None if on_gpus else max(1, cores // replicas),
    )


def gpus() -> int:
    """GPUs of the cluster's nodes that are up."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def on_worker(function: Callable[..., Any], *args: Any) -> Any:
    """Run one call on a worker, so that what it reads does not grow the driver."""
    return on_workers(function, [args])[0]


def on_workers(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], gpus: int = 0) -> list[Any]:
    """Run calls on workers side by side, each with a core and so many GPUs; an exception is raised here as there."""
    import ray

    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RESTARTS)(function)
    try:
        return list(ray.get([remote.remote(*args) for args in calls]))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None


def on_nodes_of_replicas(function: Callable[[Any], Any], arg: Any, share: Layout) -> None:
    """Run a call on each node that is up and can hold a replica; an exception is raised here as there.

    Where all GPUs are still to come, it waits for the first one and runs there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=MAX_RESTARTS)(function)
    if share.on_gpus and not share.gpus:
        # As many as there will be replicas, or a cluster would grow to one node first and only then to all.
        calls = [remote.options(num_gpus=1)] * share.replicas
    else:
        kind = "GPU" if share.on_gpus else "CPU"
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
        # Soft: a node may be taken away meanwhile, and then holds no replica.
        places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
        calls = [remote.options(scheduling_strategy=place) for place in places]
    try:
        ray.get([call.remote(arg) for call in calls])
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None


@contextmanager
def object_store_peak() -> Iterator[Callable[[], float]]:
    """Watch how much the object stores of all nodes hold; yields what tells the most MiB that was seen, twice a second.

    Ray reports a store's free bytes as a resource that is available.
    """
    import ray

    peak = 0.0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.5):
            try:
                total, free = ray.cluster_resources(), ray.available_resources()
            except Exception:
                # The cluster is going away; the run itself says why.
                return
            held = total.get("object_store_memory", 0.0) - free.get("object_store_memory", 0.0)
            peak = max(peak, held / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        stop.set()
        thread.join()


def peak_memory_mib() -> float:
    """Peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def stopped_in_one_line() -> Iterator[None]:
    """Raise StoppedError where Ray or the storage gives up; a worker's whole traceback is in Ray's log."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        yield
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise StoppedError(str(error).strip().splitlines()[-1].strip()) from error
    except Exception as error:
        if isinstance(error, OSError) or storage.is_transient(error):
            raise StoppedError(storage.explain(error)) from error
        raise
