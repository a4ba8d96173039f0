"""Measure the whole pipeline: images a second once it flows, its start-up, and what its object store holds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from chexmask_u import pipeline, record, storage
from chexmask_u.bench.timing import Row
from chexmask_u.manifests import parquet
from chexmask_u.runs import cluster
from chexmask_u.settings import GenerateSettings
from chexmask_u.steps.predict import Predictor
from chexmask_u.steps.read import read

# For which the network alone is timed, at least: a GPU is done with a few batches before its clock is up.
LEAST_SECONDS = 3.0


@dataclass(frozen=True)
class TimedRun:
    """One run of `generate`: its images, the seconds of the whole call, and the most MiB its object store held."""

    images: int
    ok: int
    seconds: float
    store_mib: float
    store_limit_mib: float


@dataclass(frozen=True)
class Sustained:
    """What pairs of a short and a long run say.

    The images that the long run has more than the short one, over the seconds that it takes longer, are the images a
    second of a pipeline that flows: starting Ray's workers, loading weights and filling and draining the steps are in
    both. `start_seconds` is what the short run takes beyond its images at that speed.
    """

    images_per_second: float
    start_seconds: float
    short: tuple[TimedRun, ...]
    long: tuple[TimedRun, ...]

    @classmethod
    def of(cls, short: list[TimedRun], long: list[TimedRun]) -> Sustained:
        """Medians over the pairs."""
        more = long[0].images - short[0].images
        longer = statistics.median(b.seconds - a.seconds for a, b in zip(short, long, strict=True))
        # Where another program disturbed both, the long run can be the faster; then it alone bounds the speed.
        speed = more / longer if longer > 0 else long[0].images / statistics.median(run.seconds for run in long)
        start = statistics.median(run.seconds for run in short) - short[0].images / speed
        return cls(speed, max(0.0, start), tuple(short), tuple(long))


def repeated(rows: pa.Table, count: int) -> pa.Table:
    """`count` manifest rows: those given, again and again, each time under record ids of their own."""
    copies = -(-count // len(rows))
    tables = [
        rows.set_column(
            rows.column_names.index("record_id"),
            record.MANIFEST.field("record_id"),
            pc.binary_join_element_wise(rows["record_id"], f"#{copy}", ""),
        )
        for copy in range(copies)
    ]
    return pa.concat_tables(tables).slice(0, count)


def pair_images(images_per_second: float, flow_seconds: float, cores: int, block: int) -> tuple[int, int]:
    """Images of the short and of the long run of a pair, whose blocks have so many rows.

    Each core reads a block at a time, and with a last round that is not full the cores that wait would count as time
    that the pipeline takes. So the runs are of whole rounds: the short one of one, and at least of two blocks, the long
    one of as many more as flow in so many seconds.
    """
    a_round = cores * block
    short = max(a_round, 2 * block)
    return short, short + a_round * max(1, math.ceil(images_per_second * flow_seconds / a_round))


def timed_run(settings: GenerateSettings, rows: pa.Table, count: int, folder: str) -> TimedRun:
    """Time `generate` over `count` images, in a folder that is removed afterwards; the cluster is up before.

    Args:
        settings: of the run; manifest and output are put into the folder.
        rows: manifest rows, repeated as often as needed.
        count: images.
        folder: local path or URL that the cluster's machines see, which need not exist.
    """
    listed, output = storage.join(folder, "manifest.parquet"), storage.join(folder, "run")
    fs, path = storage.filesystem(folder)
    fs.makedirs(path, exist_ok=True)
    try:
        parquet.write([parquet.complete(repeated(rows, count))], listed)
        start = time.perf_counter()
        summary = pipeline.generate(replace(settings, manifest=listed, output=output))
        seconds = time.perf_counter() - start
    finally:
        fs.rm(path, recursive=True)
    return TimedRun(count, summary["ok"], seconds, summary["object_store_peak_mib"], summary["object_store_limit_mib"])


def predictor(settings: GenerateSettings, threads: int | None) -> Predictor:
    """The predictor that a run with these settings makes."""
    names = ("weights", "samples", "seed", "device", "precision")
    return Predictor(**{name: getattr(settings, name) for name in names}, threads=threads)


def read_seconds(rows: pa.Table, max_side: int, at_once: int) -> float:
    """Seconds an image that fetching, decoding and preparing take, in `at_once` tasks side by side on the cluster.

    Returns:
        The slowest task's seconds over the images of all.
    """
    calls = [(rows, max_side)] * at_once
    # Once without counting: workers start, import and open their connections.
    cluster.on_workers(_time_read, [(rows.slice(0, 1), max_side)] * at_once)
    return max(cluster.on_workers(_time_read, calls)) / (at_once * len(rows))


def predict_seconds(settings: GenerateSettings, rows: pa.Table) -> float:
    """Seconds an image that the network alone takes: as many warm replicas as a run has, images in memory.

    Returns:
        The slowest replica's seconds over the images of all.
    """
    share = cluster.layout(settings.device, settings.replicas, settings.batch_size)
    call = (settings, rows, share.threads, share.batch)
    seconds = cluster.on_workers(_time_predict, [call] * share.replicas, gpus=1 if share.on_gpus else 0)
    return max(seconds) / (share.replicas * len(rows))


def _time_read(rows: pa.Table, max_side: int) -> float:
    start = time.perf_counter()
    read(rows, max_side=max_side)
    return time.perf_counter() - start


def _time_predict(settings: GenerateSettings, rows: pa.Table, threads: int | None, batch: int) -> float:
    step = predictor(settings, threads)
    prepared = read(rows, max_side=settings.max_side)
    batches = [prepared.slice(first, batch) for first in range(0, len(prepared), batch)]
    step(batches[0])
    passes, seconds, start = 0, 0.0, time.perf_counter()
    while seconds < LEAST_SECONDS:
        for batch in batches:
            step(batch)
        passes, seconds = passes + 1, time.perf_counter() - start
    return seconds / passes


def measure(
    name: str,
    settings: GenerateSettings,
    rows: pa.Table,
    folder: str,
    *,
    flow_seconds: float,
    cores: int,
    repeats: int,
    bottleneck: Callable[[], float],
) -> Row:
    """Time pairs of runs in turn with the step that bounds them, alone.

    Args:
        name: of the row.
        settings, rows, folder: as `timed_run` takes them.
        flow_seconds: that the long run of a pair is to take beyond the short one, at least.
        cores: of the cluster.
        repeats: pairs.
        bottleneck: gives the seconds an image of the bounding step, measured anew.

    Returns:
        A row: seconds an image, those of the bounding step, the ratio of the two, and what
        else the runs say.
    """
    alone = [bottleneck()]
    block = pipeline.rows_per_block(cluster.layout(settings.device, settings.replicas, settings.batch_size).batch)
    short, long = pair_images(1 / alone[0], flow_seconds, cores, block)
    short_runs, long_runs = [], []
    for _ in range(repeats):
        short_runs.append(timed_run(settings, rows, short, folder))
        long_runs.append(timed_run(settings, rows, long, folder))
        alone.append(bottleneck())
    sustained = Sustained.of(short_runs, long_runs)
    reference = statistics.median(alone)
    return {
        "name": name,
        "seconds": 1 / sustained.images_per_second,
        "reference_seconds": reference,
        "ratio": 1 / (sustained.images_per_second * reference),
        "repeats": repeats,
        "start_seconds": sustained.start_seconds,
        "images": [short, long],
        "object_store_peak_mib": [max(run.store_mib for run in runs) for runs in (short_runs, long_runs)],
        "object_store_limit_mib": long_runs[0].store_limit_mib,
    }
