"""The graph: manifest -> read -> predict -> mask -> write, and the release after it. The only importer of Ray."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from chexmask_u import lock, manifest, release, storage, write
from chexmask_u.anatomy import FRAME
from chexmask_u.mask import mask
from chexmask_u.model.checkpoint import load_model
from chexmask_u.predict import Predictor
from chexmask_u.read import read
from chexmask_u.settings import GenerateSettings, ReleaseSettings, SettingsError, ValidateSettings

# Rows per block: a block of prepared images is 32 MiB, and a kill redoes the blocks in flight.
ROWS_PER_BLOCK = 32

# Readers would run ahead of the network until Ray's store is full: gigabytes of images, which a kill undoes. Ray shares
# this out between its steps, and leaves reading about half of it: a block per core.
BLOCKS_IN_STORE_PER_CORE = 2
BLOCK_BYTES = ROWS_PER_BLOCK * FRAME**2

# The decoder's matrices are too small for more threads to pay.
CORES_PER_REPLICA = 8

# Cutting the manifest into blocks and a resume's filter each hold a core from beginning to end and hardly use it. On a
# small machine nothing would be left for writing, and no record would be committed before the last one is read.
WAITING_TASKS = 2

# A replica or task that dies more often than this, beyond preemption, does so for a reason; Ray's default is for ever.
MAX_RESTARTS = 20

PROGRESS_SECONDS = 5.0


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


class ClusterError(ValueError):
    """A Ray cluster that cannot be used; the message is one line that names the remedy."""


class RunStoppedError(RuntimeError):
    """A run that ended before its end; what is done is kept, and the same command goes on with it."""


def generate(settings: GenerateSettings) -> dict[str, Any]:
    """Make one record of every manifest row; an interrupted run goes on where it stopped.

    Returns:
        The summary that report.json holds.

    Raises:
        ManifestError, CheckpointError, StorageError, RunError, ClusterError: on bad input, before any image is read.
    """
    if settings.manifest is None or settings.output is None:
        raise SettingsError("--manifest and --output are needed")
    manifest_uri = storage.normalise(settings.manifest)
    run = write.Run(storage.normalise(settings.output))
    manifest.check_columns(manifest_uri)
    model = load_model(settings.weights, sha256=settings.weights_sha256)
    weights = {
        "source": settings.weights,
        "sha256": model.sha256,
        "variant": model.variant,
        "input_size": model.input_size,
    }
    del model
    write.check_same(run, settings, weights, None)
    with lock.held(run.url), cluster(settings.address) as started_here:
        if settings.device == "cuda" and not _gpus():
            if started_here:
                raise ClusterError("--device cuda: Ray sees no GPU on this machine; leave the flag out to use the CPU")
            print("Ray: the cluster has no GPU yet; waiting for a node that has one", file=sys.stderr)
        if settings.precision == "tf32" and not layout(settings.device).on_gpus:
            raise ClusterError("--precision tf32: only NVIDIA GPUs have it and Ray sees none; leave the flag out")
        facts = on_worker(manifest.inspect, manifest_uri)
        write.freeze(run, settings, facts, weights)
        if lost := on_worker(write.Run.redo_lost_parts, run):
            print(f"{lost} parts of the run were lost or damaged; their images are done again", file=sys.stderr)
        if settings.retry:
            again = on_worker(write.Run.retry, run, settings.retried_reasons())
            print(f"{again} failed images are done again", file=sys.stderr)
        done = run.committed_rows()
        finished = run.read_json("report.json")
        if done == facts.rows and finished is not None and finished["complete"]:
            return finished | {"already_done": done}
        start = time.monotonic()
        store: dict[str, float] = {}
        if done < facts.rows:
            store = _run_graph(settings, manifest_uri, run, str(weights["sha256"]), facts.rows, done)
        seconds = time.monotonic() - start
        stored = run.committed_rows()
        return on_worker(
            write.write_report,
            run,
            {
                "complete": stored == facts.rows,
                "manifest_rows": facts.rows,
                "already_done": done,
                "seconds": seconds,
                "images_per_second": (stored - done) / seconds if stored > done else 0.0,
                "driver_peak_mib": peak_memory_mib(),
                **store,
            },
        )


def _run_graph(
    settings: GenerateSettings, manifest_uri: str, run: write.Run, sha256: str, total: int, done: int
) -> dict[str, float]:
    """Run the steps over what is not done yet; returns what the report says of Ray's object stores."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    checkpoint_fs, _ = storage.arrow_filesystem(run.checkpoint)
    context.checkpoint_config = CheckpointConfig(
        id_column="record_id",
        checkpoint_path=run.checkpoint,
        # With its default a finished run would start again from nothing.
        delete_checkpoint_on_success=False,
        override_filesystem=checkpoint_fs,
    )
    # Each filter actor takes a CPU that reading needs; one keeps up with any number of readers here.
    context.checkpoint_config.checkpoint_actor_pool_max_size = 1
    share = layout(settings.device, settings.replicas)
    # A cluster that is to grow has fewer cores now than it will have.
    store_bytes = BLOCKS_IN_STORE_PER_CORE * max(share.cores, CORES_PER_REPLICA * share.replicas) * BLOCK_BYTES
    options = context.execution_options
    options.resource_limits = options.resource_limits.copy(object_store_memory=store_bytes)
    manifest_fs, manifest_path = storage.arrow_filesystem(manifest_uri)
    records_fs, records_path = storage.arrow_filesystem(run.records)
    with object_store_peak() as store_peak, progress(total, done) as count, _stopped_in_one_line():
        (
            ray.data.read_parquet(manifest_path, filesystem=manifest_fs)
            # Straight after the read, or Ray fuses it with its neighbours and one task decodes the whole manifest.
            .repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
            .map_batches(
                partial(_complete_and_read, max_side=settings.max_side),
                batch_format="pyarrow",
                max_retries=MAX_RESTARTS,
            )
            .map_batches(
                _CountingPredictor,
                fn_constructor_kwargs={
                    "count": count,
                    "weights": seen_from_workers(settings.weights),
                    "sha256": sha256,
                    "samples": settings.samples,
                    "seed": settings.seed,
                    "device": settings.device,
                    "precision": settings.precision,
                    "threads": share.threads,
                },
                batch_format="pyarrow",
                batch_size=settings.batch_size,
                compute=ray.data.ActorPoolStrategy(size=share.replicas),
                # A replica waits for its device, so it takes no CPU: readers and a resume's filter need them all.
                num_cpus=0,
                num_gpus=1 if share.on_gpus else 0,
                max_restarts=MAX_RESTARTS,
                max_task_retries=MAX_RESTARTS,
                scheduling_strategy="SPREAD",
            )
            .map_batches(mask, batch_format="pyarrow", max_retries=MAX_RESTARTS)
            .write_parquet(
                records_path,
                filesystem=records_fs,
                min_rows_per_file=settings.rows_per_file,
                mode=ray.data.SaveMode.APPEND,
                compression=write.COMPRESSION,
                # As the step before it, or Ray would not join the two in one task.
                ray_remote_args={"max_retries": MAX_RESTARTS},
            )
        )
    return {"object_store_peak_mib": store_peak(), "object_store_limit_mib": store_bytes / 2**20}


@contextmanager
def _stopped_in_one_line() -> Iterator[None]:
    """Raise RunStoppedError with the last line of a worker's traceback, all of which is in Ray's log."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        raise RunStoppedError(str(error).strip().splitlines()[-1].strip()) from error


def seen_from_workers(weights: str) -> str:
    """Weights as a worker in another folder finds them."""
    return weights if weights == "demo" or "://" in weights else storage.normalise(weights)


def layout(device: str, replicas: int | None = None) -> Layout:
    """What a run gets of the cluster that is connected to.

    Args:
        device: "auto", "cpu" or "cuda", as settings have it.
        replicas: of the network; None for one per GPU that is up, or per 8 cores.
    """
    import ray

    gpus = _gpus()
    on_gpus = device == "cuda" or (device == "auto" and gpus > 0)
    cores = int(ray.cluster_resources().get("CPU", 1))
    replicas = replicas or (max(1, gpus) if on_gpus else max(1, cores // CORES_PER_REPLICA))
    return Layout(
        machines=sum(node["Alive"] for node in ray.nodes()),
        cores=cores,
        gpus=gpus if on_gpus else 0,
        on_gpus=on_gpus,
        replicas=replicas,
        threads=None if on_gpus else max(1, cores // replicas),
    )


def _gpus() -> int:
    """GPUs of the cluster's nodes that are up."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _complete_and_read(batch: pa.Table, max_side: int) -> pa.Table:
    return read(manifest.complete(batch), max_side=max_side)


class _CountingPredictor(Predictor):
    """Tells the progress of every batch; later steps wait for a whole file's rows."""

    def __init__(self, count: Callable[[int], None], **settings: Any) -> None:
        super().__init__(**settings)
        self.count = count

    def __call__(self, batch: pa.Table) -> pa.Table:
        predicted = super().__call__(batch)
        self.count(len(predicted))
        return predicted


def make_release(settings: ReleaseSettings) -> dict[str, Any]:
    """Write one immutable, validated version of a complete run; returns what its release.json holds.

    Raises:
        ReleaseError, StorageError, ClusterError: if the run is not complete, or the version exists or is no version.
    """
    if settings.version is not None:
        release.check_version(settings.version)
    run = write.Run(storage.normalise(settings.run))
    with cluster(settings.address):
        plan = on_worker(release.plan, run, settings)
        if not plan.is_settled:
            described = on_workers(release.describe_shard, [(run, plan, shard) for shard in plan.shards])
            plan = on_worker(release.settle, plan, settings, described)
        files = on_workers(release.write_shard, [(run, plan, shard) for shard in plan.shards])
        return on_worker(release.finish, plan, files)


def validate(settings: ValidateSettings) -> dict[str, Any]:
    """Check every file of a release against its release.json and its own promises, without Ray."""
    return release.validate(storage.normalise(settings.release))


@contextmanager
def cluster(address: str | None) -> Iterator[bool]:
    """Connect to the Ray cluster that is named or running; else start a local one on loopback and end it afterwards.

    Yields:
        Whether the cluster was started here.

    Raises:
        ClusterError: if a named cluster does not answer.
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
        raise ClusterError(f"Ray cluster {address}: does not answer; start it, or leave out --address and RAY_ADDRESS")
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
    except ConnectionError as error:
        raise ClusterError(f"Ray cluster {address}: cannot be joined; is RAY_AUTH_TOKEN the cluster's own?") from error
    if threading.current_thread() is threading.main_thread():
        # Ray takes the signal for itself, and would end the process with a stack of its own.
        signal.signal(signal.SIGTERM, on_sigterm)
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


@contextmanager
def progress(total: int, done: int, verb: str = "generate", unit: str = "image") -> Iterator[Callable[[int], None]]:
    """Show units done, units/s and the time left, every few seconds; yields what workers call with a count."""
    import ray
    from tqdm import tqdm

    @ray.remote(num_cpus=0)
    class Counter:
        def __init__(self) -> None:
            self.value = 0

        def add(self, count: int) -> None:
            self.value += count

        def get(self) -> int:
            return self.value

    counter = Counter.remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    # Into a log a bar would write a line a second.
    interval = 0.5 if sys.stderr.isatty() else PROGRESS_SECONDS
    bar = tqdm(total=total, initial=done, unit=unit, mininterval=0, miniters=1, desc=verb, file=sys.stderr)

    def update() -> None:
        # A retried block is counted twice here, so the bar is held at its end; the report counts records.
        bar.update(min(done + ray.get(counter.get.remote(), timeout=60), total) - bar.n)

    def watch() -> None:
        while not stop.wait(interval):
            try:
                update()
            except Exception:
                # The cluster is going away; the run itself says why.
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield partial(_add, counter)
        stop.set()
        thread.join()
        update()
    finally:
        stop.set()
        bar.close()


def _add(counter: Any, count: int) -> None:
    counter.add.remote(count)


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
