"""The graph: manifest -> read -> predict -> mask -> write, and the release after it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from chexmask_u import storage
from chexmask_u.anatomy import FRAME
from chexmask_u.manifests import parquet
from chexmask_u.releases import loading, shards
from chexmask_u.releases import plan as release_plan
from chexmask_u.result import Result
from chexmask_u.runs import attempt as attempts
from chexmask_u.runs.attempt import Attempt, Before
from chexmask_u.runs.cluster import (
    CORES_PER_REPLICA,
    MAX_RESTARTS,
    Layout,
    bounded,
    connected,
    layout,
    object_store_peak,
    off_bare_nodes,
    on_worker,
    on_workers,
    progress,
    set_up_data,
    stopped_in_one_line,
    without_extras,
)
from chexmask_u.runs.job import check_places
from chexmask_u.runs.replica import CountingPredictor
from chexmask_u.runs.report import calibration_of
from chexmask_u.runs.run import COMPRESSION, Run
from chexmask_u.settings import GenerateSettings, ReleaseSettings
from chexmask_u.steps.mask import mask
from chexmask_u.steps.noise import draw_noise
from chexmask_u.steps.read import read

# Rows per block, at least: a block of prepared images is 32 MiB, and a kill redoes the blocks in flight.
ROWS_PER_BLOCK = 32

# Readers would run ahead of the network until Ray's store is full: gigabytes of images, which a kill undoes. Ray shares
# this out between its steps, and leaves reading about half of it: a block per core.
BLOCKS_IN_STORE_PER_CORE = 2


def generate(settings: GenerateSettings) -> dict[str, Any]:
    """Make one record of every manifest row; an interrupted run goes on where it stopped.

    Returns:
        The summary that report.json holds.

    Raises:
        InputError: on bad input, before any image is read.
    """
    attempt = attempts.check(settings)
    if (summary := attempts.finished(attempt)) is not None:
        return summary
    with attempts.under_way(attempt):
        before = attempts.begin(attempt)
        start = time.monotonic()
        seen = _run_graph(attempt, before) if before.done < attempt.manifest.rows else {}
        return attempts.conclude(attempt, before, time.monotonic() - start, seen)


def _run_graph(attempt: Attempt, before: Before) -> dict[str, float | None]:
    """Run the steps over what is not done yet; returns what the report says of Ray's object stores and the network."""
    import ray

    settings, run = attempt.settings, attempt.run
    share = layout(settings.device, settings.replicas, settings.batch_size)
    block = rows_per_block(share.batch)
    # A cluster that is to grow has fewer cores now than it will have.
    cores = max(share.cores, CORES_PER_REPLICA * share.replicas)
    image_bytes = FRAME**2 + settings.samples * attempt.noise_size * np.dtype(np.float32).itemsize
    store_bytes = BLOCKS_IN_STORE_PER_CORE * cores * block * image_bytes
    set_up_data(run.checkpoint, store_bytes)
    manifest_fs, manifest_path = storage.arrow_filesystem(attempt.manifest.uri)
    records_fs, records_path = storage.arrow_filesystem(run.records)
    rows = ray.data.read_parquet(
        manifest_path,
        filesystem=manifest_fs,
        # Whatever the file is called, and whatever its folders' names look like.
        file_extensions=None,
        partitioning=None,
        ray_remote_args={"max_retries": MAX_RESTARTS},
    )
    with object_store_peak() as store_peak, progress(attempt.manifest.rows, before.done, failed=before.failed) as tally:
        # Straight after the read, or Ray fuses it with its neighbours and one task decodes the whole manifest.
        blocks = bounded(rows.repartition(target_num_rows_per_block=block))
        images = blocks.map_batches(
            partial(
                _complete_and_read,
                noise={"samples": settings.samples, "seed": settings.seed, "size": attempt.noise_size},
                max_side=settings.max_side,
                preparation=settings.preparation,
            ),
            batch_format="pyarrow",
            max_retries=MAX_RESTARTS,
        )
        network = {
            "tally": tally,
            "weights": attempt.weights,
            "samples": settings.samples,
            "seed": settings.seed,
            "device": settings.device,
            "precision": settings.precision,
            "threads": share.threads,
        }
        (
            predicted(images, CountingPredictor, network, share)
            .map_batches(mask, batch_format="pyarrow", max_retries=MAX_RESTARTS)
            .write_parquet(
                records_path,
                filesystem=records_fs,
                min_rows_per_file=settings.rows_per_file,
                mode=ray.data.SaveMode.APPEND,
                compression=COMPRESSION,
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


def rows_per_block(batch: int) -> int:
    """Rows of a block where a replica takes so many images at once: whole batches, so that no two blocks are joined."""
    return batch * -(-ROWS_PER_BLOCK // batch)


def predicted(images: Any, replica: type, settings: dict[str, Any], share: Layout) -> Any:
    """A dataset of prepared images, through replicas of the network.

    Args:
        images: blocks of `rows_per_block(share.batch)` rows of `record.READY`.
        replica: class of the step.
        settings: of its constructor.
        share: what the run gets of the cluster.
    """
    import ray

    return images.map_batches(
        replica,
        fn_constructor_kwargs=settings,
        batch_format="pyarrow",
        batch_size=share.batch,
        compute=ray.data.ActorPoolStrategy(
            size=share.replicas, max_concurrent_calls_per_actor=share.calls, enable_true_multi_threading=share.calls > 1
        ),
        # A replica waits for its device, so it takes no CPU: readers and a resume's filter need them all.
        num_cpus=0,
        num_gpus=1 if share.on_gpus else 0,
        label_selector=None if share.on_gpus else off_bare_nodes(),
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
        scheduling_strategy="SPREAD",
    )


def through_replica(
    blocks: Sequence[pa.Table], count: int, replica: type, settings: dict[str, Any], share: Layout
) -> Iterator[pa.Table]:
    """Prepared images that wait in the object store, through replicas of the network, with no other step beside them.

    Args:
        blocks: as `predicted` takes them; they have their turns.
        count: of blocks in all.
        replica, settings, share: as `predicted` takes them.

    Yields:
        What the replicas give, block by block.
    """
    import ray

    # A run's checkpoint and limits are nothing to it.
    with ray.data.DataContext.current(without_extras(ray.data.DataContext())):
        stored: list[Any] = [ray.put(block) for block in blocks]
        images = ray.data.from_arrow_refs([stored[index % len(stored)] for index in range(count)])
        yield from predicted(images, replica, settings, share).iter_batches(batch_size=None, batch_format="pyarrow")


def _complete_and_read(batch: pa.Table, noise: dict[str, int], **settings: Any) -> pa.Table:
    return draw_noise(read(parquet.complete(batch), **settings), **noise)


def make_release(settings: ReleaseSettings) -> dict[str, Any]:
    """Write one immutable, validated version of a complete run, unless it was made before.

    Returns:
        What its release.json holds; its "folder", and whether it was "made_before".

    Raises:
        InputError: if the run is not complete, or the version exists with other content or is no version.
    """
    check_places({"the run": settings.run, "--output": settings.output})
    run = Run(storage.normalise(settings.run))
    release_plan.check(run, settings)
    calibration = calibration_of(run, settings.calibration)
    with connected(settings.address), stopped_in_one_line():
        plan = on_worker(release_plan.plan, run, settings, calibration)
        if not plan.is_settled:
            described = on_workers(shards.describe_shard, release_plan.calls(run, plan))
            plan = on_worker(release_plan.settle, plan, settings, described)
        if plan.is_made:
            return dict(plan.before.made(before=True))
        files = on_workers(shards.write_shard, release_plan.calls(run, plan))
        return dict(on_worker(shards.finish, plan, files).made(before=False))


def release_verb(settings: ReleaseSettings) -> Result:
    """`chexmask-u release`."""
    return loading.told(make_release(settings))
