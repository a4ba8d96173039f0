"""The graph: manifest -> read -> predict -> mask -> write, and the release after it."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections import Counter
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from chexmask_u import storage, weight_files
from chexmask_u.anatomy import FRAME
from chexmask_u.errors import CheckpointError, InputError
from chexmask_u.manifests import parquet
from chexmask_u.manifests.check import check_access, check_columns, inspect
from chexmask_u.releases import plan as release_plan
from chexmask_u.releases import shards
from chexmask_u.releases import validate as validation
from chexmask_u.runs import lock, write
from chexmask_u.runs.cluster import (
    CORES_PER_REPLICA,
    MAX_RESTARTS,
    connected,
    gpus,
    layout,
    object_store_peak,
    on_nodes_of_replicas,
    on_worker,
    on_workers,
    peak_memory_mib,
    stopped_in_one_line,
)
from chexmask_u.runs.progress import Tally, progress
from chexmask_u.settings import GenerateSettings, ReleaseSettings, ValidateSettings
from chexmask_u.steps.mask import mask
from chexmask_u.steps.predict import Predictor
from chexmask_u.steps.read import read
from chexmask_u.weight_files import WeightFile

# Rows per block: a block of prepared images is 32 MiB, and a kill redoes the blocks in flight.
ROWS_PER_BLOCK = 32

# Readers would run ahead of the network until Ray's store is full: gigabytes of images, which a kill undoes. Ray shares
# this out between its steps, and leaves reading about half of it: a block per core.
BLOCKS_IN_STORE_PER_CORE = 2
BLOCK_BYTES = ROWS_PER_BLOCK * FRAME**2

# How torch, Triton and NVIDIA's libraries tell of a fault of the device where it is no `AcceleratorError`.
_DEVICE_FAULTS = ("CUDA driver error", "Triton Error [CUDA]", "STATUS_EXECUTION_FAILED")

# Ray Data takes the rest of a path for a query, or drops it, and would do every image again.
_LOST_ON_RAY = re.compile(r"[?\t\r\n]")


def generate(settings: GenerateSettings) -> dict[str, Any]:
    """Make one record of every manifest row; an interrupted run goes on where it stopped.

    Returns:
        The summary that report.json holds.

    Raises:
        InputError: on bad input, before any image is read.
    """
    if settings.manifest is None or settings.output is None:
        raise InputError("--manifest and --output are needed")
    manifest_uri = storage.normalise(settings.manifest)
    if storage.redact(manifest_uri) != manifest_uri:
        raise InputError(
            f"--manifest {storage.redact(manifest_uri)}: its URL holds a secret; `release` reads the manifest again,"
            " and a run keeps no secrets; copy it to a place without"
        )
    run = write.Run(storage.normalise(settings.output))
    if lost := _LOST_ON_RAY.search(run.url):
        raise InputError(f"--output {run.url!r}: holds {lost[0]!r}, behind which Ray Data loses files; choose another")
    check_columns(manifest_uri)
    weights = weight_files.find_again(settings.weights, (run.read_json("run.json") or {}).get("weights"))
    model = weight_files.load_model(weights, sha256=settings.weights_sha256)
    weights = weights.known(str(model.sha256))
    about_weights = weights.facts() | {
        "sha256": model.sha256,
        "variant": model.variant,
        "input_size": model.input_size,
    }
    del model
    facts = inspect(manifest_uri)
    write.check_same(run, settings, about_weights, facts.sha256)
    with lock.held(run.url), connected(settings.address) as started_here, stopped_in_one_line():
        if settings.device == "cuda" and not gpus():
            if started_here:
                raise InputError("--device cuda: Ray sees no GPU on this machine; leave the flag out to use the CPU")
            print("Ray: the cluster has no GPU yet; waiting for a node that has one", file=sys.stderr)
        if settings.precision == "tf32" and not layout(settings.device).on_gpus:
            raise InputError("--precision tf32: only NVIDIA GPUs have it and Ray sees none; leave the flag out")
        on_worker(check_access, manifest_uri)
        if weights.source != weight_files.DEMO and not started_here:
            on_nodes_of_replicas(_have_weights, weights, layout(settings.device, settings.replicas))
        weight_files.say_if_demonstration(weights.source)
        write.freeze(run, settings, facts, about_weights)
        _redo_lost(run)
        if settings.retry:
            again = on_worker(write.Run.retry, run, settings.retried_reasons())
            print(f"{again} failed images are done again", file=sys.stderr)
        done = run.committed_rows()
        finished = run.read_json("report.json")
        if done == facts.rows and finished is not None and finished["complete"]:
            return finished | {"already_done": done}
        done = _rows_once(run, done)
        start = time.monotonic()
        seen: dict[str, float | None] = {}
        if done < facts.rows:
            # That of an earlier attempt would be believed if this one ended before its own.
            run.remove("report.json")
            seen = _run_graph(settings, manifest_uri, run, weights, facts.rows, done)
        seconds = time.monotonic() - start
        _redo_lost(run)
        stored = _rows_once(run, run.committed_rows())
        return on_worker(
            write.write_report,
            run,
            {
                "complete": stored == facts.rows,
                "manifest_rows": facts.rows,
                "already_done": done,
                "left": facts.rows - stored,
                "seconds": seconds,
                "images_per_second": (stored - done) / seconds if stored > done else 0.0,
                "driver_peak_mib": peak_memory_mib(),
                **seen,
            },
        )


def _have_weights(weights: WeightFile) -> None:
    """Fetch the weights to the machine that this runs on."""
    try:
        weights.fetch()
    except CheckpointError as error:
        raise CheckpointError(f"{error} (on the node {platform.node()})") from error


def _redo_lost(run: write.Run) -> None:
    if lost := on_worker(write.Run.redo_lost_parts, run):
        print(f"{lost} parts of the run were lost or damaged; their images are done again", file=sys.stderr)


def _rows_once(run: write.Run, rows: int) -> int:
    """Of so many committed rows those that are left once parts that repeat others' records are taken out."""
    if not rows or not (doubled := on_worker(write.Run.redo_doubled_parts, run)):
        return rows
    print(f"{doubled} parts of the run repeated records; what they alone held is done again", file=sys.stderr)
    return run.committed_rows()


def _run_graph(
    settings: GenerateSettings, manifest_uri: str, run: write.Run, weights: WeightFile, total: int, done: int
) -> dict[str, float | None]:
    """Run the steps over what is not done yet; returns what the report says of Ray's object stores and the network."""
    import ray
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray's newer reader starts 32 actors for each Parquet source, the manifest and a resume's checkpoint. They take a
    # small machine minutes, and Ray does not start them again should their machine be taken away.
    context.use_datasource_v2 = False
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
    with object_store_peak() as store_peak, progress(total, done) as tally:
        (
            # Whatever the file is called, and whatever its folders' names look like.
            ray.data.read_parquet(manifest_path, filesystem=manifest_fs, file_extensions=None, partitioning=None)
            # Straight after the read, or Ray fuses it with its neighbours and one task decodes the whole manifest.
            .repartition(target_num_rows_per_block=ROWS_PER_BLOCK)
            .map_batches(
                partial(_complete_and_read, max_side=settings.max_side, preparation=settings.preparation),
                batch_format="pyarrow",
                max_retries=MAX_RESTARTS,
            )
            .map_batches(
                _CountingPredictor,
                fn_constructor_kwargs={
                    "tally": tally,
                    "weights": weights,
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
                write_page_checksum=True,
                # As the step before it, or Ray would not join the two in one task.
                ray_remote_args={"max_retries": MAX_RESTARTS},
            )
        )
        idle_share = tally.totals().idle_share
    return {
        "network_idle_share": idle_share,
        "object_store_peak_mib": store_peak(),
        "object_store_limit_mib": store_bytes / 2**20,
    }


def _complete_and_read(batch: pa.Table, **settings: Any) -> pa.Table:
    return read(parquet.complete(batch), **settings)


class _CountingPredictor(Predictor):
    """Tells the progress of every batch; later steps wait for a whole file's rows."""

    def __init__(self, tally: Tally, **settings: Any) -> None:
        super().__init__(**settings)
        self.tally = tally
        self.end: float | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        try:
            predicted = super().__call__(batch)
        except RuntimeError as error:
            if not (isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _DEVICE_FAULTS)):
                raise
            # Of a fault of the device this process does not recover; Ray starts another, for so many times.
            print(
                f"chexmask_u: the GPU failed ({storage.explain(error)}); its process ends", file=sys.stderr, flush=True
            )
            os._exit(1)
        end = time.perf_counter()
        failures = Counter(reason for reason in predicted["reason"].to_pylist() if reason is not None)
        idle = 0.0 if self.end is None else start - self.end
        self.tally.add(len(predicted), failures, busy_seconds=end - start, idle_seconds=idle)
        self.end = end
        return predicted


def make_release(settings: ReleaseSettings) -> dict[str, Any]:
    """Write one immutable, validated version of a complete run, unless it was made before.

    Returns:
        What its release.json holds; its "folder", and whether it was "made_before".

    Raises:
        InputError: if the run is not complete, or the version exists with other content or is no version.
    """
    run = write.Run(storage.normalise(settings.run))
    release_plan.check(run, settings)
    with connected(settings.address), stopped_in_one_line():
        plan = on_worker(release_plan.plan, run, settings)
        if not plan.is_settled:
            described = on_workers(shards.describe_shard, release_plan.calls(run, plan))
            plan = on_worker(release_plan.settle, plan, settings, described)
        if plan.is_made:
            return dict(plan.before.made(before=True))
        files = on_workers(shards.write_shard, release_plan.calls(run, plan))
        return dict(on_worker(shards.finish, plan, files).made(before=False))


def validate(settings: ValidateSettings) -> dict[str, Any]:
    """Check every file of a release against its release.json and its own promises, without Ray."""
    return dict(validation.validate(storage.normalise(settings.release)).content)
