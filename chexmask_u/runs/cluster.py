"""The Ray cluster under a run: found or started, what it has, and calls on its workers."""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chexmask_u import storage
from chexmask_u.errors import InputError, StoppedError
from chexmask_u.model.device import choose
from chexmask_u.runs.progress import Totals, bar

# The decoder's matrices are too small for more threads to pay.
CORES_PER_REPLICA = 8

# Images that a replica takes at once, unless the settings say how many: a GPU has more to do side by side.
GPU_BATCH, CPU_BATCH = 64, 16

# Batches that a replica has in hand where it runs on a GPU: one is computed while another is brought to the device or
# turned into columns. On a CPU there would be no core for it.
GPU_CALLS = 2

# Cutting the manifest into blocks and a resume's filter each hold a core from beginning to end and hardly use it. On a
# small machine nothing would be left for writing, and no record would be committed before the last one is read.
WAITING_TASKS = 2

# A replica or task that dies more often than this, beyond preemption, does so for a reason; Ray's default is for ever.
MAX_RESTARTS = 20

# Window of the speed that is exported; a batch on a slow machine takes seconds.
SPEED_SECONDS = 60.0

# What ends a driver.
_STOPS = (signal.SIGINT, signal.SIGTERM)

# How Python begins a traceback's last line.
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")

# What Ray puts around any error of a step.
_AROUND_A_STEP = "ray.exceptions.UserCodeException: "

# Ray's core says so whenever it starts with a level that is not its own, and no level keeps it from that.
_LOG_LEVEL_IS_SET = b"Set ray log level"

NO_TF32 = "--precision tf32: only NVIDIA GPUs have it and there is none; leave the flag out"


@dataclass(frozen=True)
class Layout:
    """What a run gets of the cluster as it is now.

    Attributes:
        machines, cores: of the nodes that are up.
        gpus: of those nodes; 0 where the network is to run on CPUs.
        on_gpus: whether the network is to run on GPUs, which may not be up yet.
        replicas: of the network.
        threads: of each replica; None leaves torch's own choice.
        batch: images that a replica takes at once.
        calls: batches that it has in hand.
    """

    machines: int
    cores: int
    gpus: int
    on_gpus: bool
    replicas: int
    threads: int | None
    batch: int
    calls: int


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Connect to the Ray cluster that is named or running; else start a local one on loopback and end it afterwards.

    Yields:
        Whether the cluster was started here.

    Raises:
        InputError: if a named cluster does not answer.
    """
    address = _existing(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise the driver prints warnings about restarts of actors that Ray Data arranges itself.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray's core would take SIGTERM for itself, and answer with a stack of its own and an abort.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    if address is None or _on_loopback(address):
        # Ray uses the host's own address otherwise; it reads this when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    import ray.data

    # It warns of each start that is not in the main thread.
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Its console log speaks of blocks and operators, and of errors that are raised besides.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=ray.util.annotations.RayDeprecationWarning)
    if ray.is_initialized():
        yield False
        return
    if address is not None and not _answers(address):
        raise InputError(f"Ray cluster {address}: does not answer; start it, or leave out --address and RAY_ADDRESS")
    own: dict[str, Any] = {"num_cpus": (os.cpu_count() or 1) + WAITING_TASKS, "dashboard_host": "127.0.0.1"}
    options = own | {"address": "local"} if address is None else {"address": address}
    # In the main thread Ray would take SIGTERM for itself; and what it starts ends with the thread that started it.
    with ThreadPoolExecutor(1) as beside:
        try:
            with _stopped_later(), _without(_LOG_LEVEL_IS_SET):
                start = partial(ray.init, **options, log_to_driver=False, logging_level=logging.ERROR)
                info = beside.submit(start).result()
        except ConnectionError as error:
            raise InputError(
                f"Ray cluster {address}: cannot be joined; is RAY_AUTH_TOKEN the cluster's own?"
            ) from error
        # Where a node takes too long, Ray raises an exception of no kind.
        except Exception as error:
            what = "does not start on this machine" if address is None else f"cluster {address} cannot be joined"
            raise InputError(
                f"Ray {what} ({storage.explain(error)}); is the machine too busy, or the address wrong?"
            ) from error
        try:
            if address is None:
                print(f"Ray: started on this machine, dashboard {info.dashboard_url or 'off'}", file=sys.stderr)
            else:
                print(f"Ray: connected to {ray.get_runtime_context().gcs_address}", file=sys.stderr)
            yield address is None
        finally:
            with _stopped_later():
                beside.submit(ray.shutdown).result()


@contextmanager
def _stopped_later() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off to the end of the context: Ray's core crashes a process that leaves it half-way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


@contextmanager
def _without(words: bytes) -> Iterator[None]:
    """Pass on, at the end of the context, what it wrote to stderr, below Python too; but for lines with these words."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            os.write(2, b"".join(line for line in written if words not in line))


def starts_here(address: str | None) -> bool:
    """Whether `connected` would start a Ray on this machine: no cluster is named, running or joined already."""
    ray = sys.modules.get("ray")
    return _existing(address) is None and not (ray is not None and ray.is_initialized())


def _existing(address: str | None) -> str | None:
    """Address of the cluster that is named or running."""
    return address or os.environ.get("RAY_ADDRESS") or _running_cluster()


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


def layout(device: str, replicas: int | None = None, batch: int | None = None) -> Layout:
    """What a run gets of the cluster that is connected to.

    Args:
        device: "auto", "cpu" or "cuda", as settings have it.
        replicas: of the network; None for one per GPU that is up, or per 8 cores.
        batch: images that a replica takes at once; None for what suits the device.
    """
    import ray

    up, wanted = gpus(), on_gpus(device)
    cores = int(ray.cluster_resources().get("CPU", 1))
    replicas = replicas or (max(1, up) if wanted else max(1, cores // CORES_PER_REPLICA))
    return Layout(
        machines=sum(node["Alive"] for node in ray.nodes()),
        cores=cores,
        gpus=up if wanted else 0,
        on_gpus=wanted,
        replicas=replicas,
        threads=None if wanted else max(1, cores // replicas),
        batch=batch or (GPU_BATCH if wanted else CPU_BATCH),
        calls=GPU_CALLS if wanted else 1,
    )


def check_here(device: str, precision: str, address: str | None) -> None:
    """As `check_device`, before a Ray is started on this machine; of a cluster that is there, Ray alone knows.

    Raises:
        InputError: if the machine does not have what is asked for.
    """
    if starts_here(address) and choose(device) == "cpu" and precision == "tf32":
        raise InputError(NO_TF32)


def check_device(device: str, precision: str, started_here: bool) -> None:
    """Check that the cluster that is connected to has, or will have, what a run asks for.

    Args:
        device, precision: as settings have them.
        started_here: whether the cluster was started for this run, so that no other machine will join it.

    Raises:
        InputError: if it will not.
    """
    if device == "cuda" and not gpus():
        if started_here:
            raise InputError("--device cuda: Ray sees no GPU on this machine; leave the flag out to use the CPU")
        print("Ray: the cluster has no GPU yet; waiting for a node that has one", file=sys.stderr)
    if precision == "tf32" and not on_gpus(device):
        raise InputError(NO_TF32)


def on_gpus(device: str) -> bool:
    """Whether --device has the network run on GPUs of the cluster, which may not be up yet."""
    return device == "cuda" or (device == "auto" and gpus() > 0)


def off_bare_nodes() -> dict[str, str] | None:
    """Labels of the nodes for replicas that ask for no CPU: any but those that have none, as some heads do."""
    import ray

    bare = [node["NodeID"] for node in ray.nodes() if node["Alive"] and not node["Resources"].get("CPU")]
    return {"ray.io/node-id": f"!in({', '.join(bare)})"} if bare else None


def bounded(dataset: Any) -> Any:
    """The dataset, the tasks of whose last step are tried `MAX_RESTARTS` times, where Ray's method takes no number."""
    dataset._logical_plan.dag.ray_remote_args["max_retries"] = MAX_RESTARTS
    return dataset


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


@dataclass(frozen=True)
class Tally:
    """What workers add to; it travels to them by pickling."""

    actor: Any

    def add(
        self,
        units: int,
        failures: Mapping[str, int] | None = None,
        *,
        busy_seconds: float = 0.0,
        idle_seconds: float = 0.0,
    ) -> None:
        """Add to the totals, without waiting; arguments as in `Totals`."""
        self.actor.add.remote(units, dict(failures or {}), busy_seconds, idle_seconds)

    def totals(self) -> Totals:
        import ray

        totals: Totals = ray.get(self.actor.get.remote(), timeout=60)
        return totals


class _Adder:
    """The actor behind a Tally; Ray's metrics have names that begin with ray_chexmask_u_."""

    def __init__(self, unit: str, left: int) -> None:
        from ray.util import metrics

        self.totals = Totals()
        self.left = left
        self.recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        name = f"chexmask_u_{unit}"
        self.done_metric = metrics.Counter(f"{name}_done", f"{unit} done since the run started")
        self.failed_metric = metrics.Counter(f"{name}_failed", f"{unit} that failed, by reason", ("reason",))
        self.left_metric = metrics.Gauge(f"{name}_left", f"{unit} that are still to be done")
        self.speed_metric = metrics.Gauge(f"{name}_per_second", f"{unit} a second over the last minute")
        self.idle_metric = metrics.Gauge(
            "chexmask_u_network_idle_share", "share of the time that replicas of the network waited for images"
        )
        self.left_metric.set(left)

    def add(self, units: int, failures: dict[str, int], busy_seconds: float, idle_seconds: float) -> None:
        totals = self.totals
        totals.units += units
        totals.failures.update(failures)
        totals.busy_seconds += busy_seconds
        totals.idle_seconds += idle_seconds
        now = time.monotonic()
        self.recent.append((now, totals.units))
        while len(self.recent) > 2 and self.recent[1][0] < now - SPEED_SECONDS:
            self.recent.popleft()
        then, before = self.recent[0]
        self.done_metric.inc(units)
        for reason, count in failures.items():
            self.failed_metric.inc(count, {"reason": reason})
        self.left_metric.set(max(0, self.left - totals.units))
        self.speed_metric.set((totals.units - before) / max(now - then, 1e-9))
        if totals.idle_share is not None:
            self.idle_metric.set(totals.idle_share)

    def get(self) -> Totals:
        return self.totals


@contextmanager
def progress(total: int, done: int, verb: str = "generate", unit: str = "image", failed: int = 0) -> Iterator[Tally]:
    """Show the progress of workers as `progress.bar` does; yields what they add to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    plural = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
    # On the driver's own machine: any other may be taken away in mid-run, and the end of a run asks for the totals.
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    adder = ray.remote(_Adder).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
    tally = Tally(adder.remote(plural, total - done))
    with bar(tally.totals, total, done, verb, unit, failed):
        yield tally


def without_extras(context: Any) -> Any:
    """A `DataContext` without what nobody looks at."""
    context.enable_progress_bars = False
    # A thread that watches memory would begin and end with every batch.
    context.memory_usage_poll_interval_s = None
    return context


def set_up_data(checkpoint: str, store_bytes: int) -> None:
    """Tell Ray Data how a run works.

    Args:
        checkpoint: folder or URL of the ids that are committed, which are not done again.
        store_bytes: of the object stores, that blocks between the steps may take.
    """
    import ray
    from ray.data.checkpoint import CheckpointConfig

    context = without_extras(ray.data.DataContext.get_current())
    # Ray's newer reader starts 32 actors for each Parquet source, the manifest and a resume's checkpoint. They take a
    # small machine minutes, and Ray does not start them again should their machine be taken away.
    context.use_datasource_v2 = False
    filesystem, _ = storage.arrow_filesystem(checkpoint)
    context.checkpoint_config = CheckpointConfig(
        id_column="record_id",
        checkpoint_path=checkpoint,
        # With its default a finished run would start again from nothing.
        delete_checkpoint_on_success=False,
        override_filesystem=filesystem,
    )
    # Each filter actor takes a CPU that reading needs; one keeps up with any number of readers here.
    context.checkpoint_config.checkpoint_actor_pool_max_size = 1
    options = context.execution_options
    options.resource_limits = options.resource_limits.copy(object_store_memory=store_bytes)


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


def _last_words(text: str) -> str:
    """The line of a worker's traceback that says what happened; behind it Ray may give advice on its own settings."""
    lines = [line.strip() for line in text.strip().splitlines()]
    errors = [line for line in lines if _ERROR.match(line) and not line.startswith(_AROUND_A_STEP)]
    # A step's own words need no type.
    return (errors or lines)[-1].removeprefix(f"{StoppedError.__module__}.{StoppedError.__name__}: ")


@contextmanager
def stopped_in_one_line() -> Iterator[None]:
    """Raise StoppedError where Ray or the storage gives up; a worker's whole traceback is in Ray's log."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        yield
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise StoppedError(_last_words(str(error))) from error
    except Exception as error:
        if isinstance(error, OSError) or storage.is_transient(error):
            raise StoppedError(storage.explain(error)) from error
        raise
