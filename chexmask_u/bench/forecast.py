"""Forecast a run from a short probe: images a second, the bottleneck, cores per GPU, hours, storage and cost."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexmask_u import pipeline, record, storage, weight_files
from chexmask_u.bench import pipeline as measured
from chexmask_u.errors import InputError
from chexmask_u.images.fetch import fetch
from chexmask_u.manifests import parquet
from chexmask_u.manifests.check import check_access, check_columns, inspect
from chexmask_u.model.device import choose
from chexmask_u.record import ReadError
from chexmask_u.runs import cluster
from chexmask_u.runs.run import COMPRESSION
from chexmask_u.settings import GenerateSettings, PlanSettings
from chexmask_u.steps.mask import mask
from chexmask_u.steps.read import FETCHERS, read

# Fewer images say nothing of the next ones.
LEAST_IMAGES = 8

# Seconds that the long run of the probe takes beyond the short one, so that noise of a second is a few percent.
FLOW_SECONDS = 24.0

# Objects fetched one after the other, for their latency.
FETCHED = 32

# Prepared images that are kept for prediction, 1 MiB each.
KEPT_IMAGES = 64

GIB = 2**30

_NO_GPU_PROBED = "--gpus: no GPU was probed, so nothing is known of one; run plan on a machine that has one"


@dataclass(frozen=True)
class Steps:
    """What the steps alone were measured to take, on a worker as a run uses it; seconds and bytes are an image's.

    Attributes:
        images: how many were sampled.
        failed: how many of them could not be read, by reason.
        fetch_seconds: to get an object, one after the other, for the first time.
        read_seconds: of one reading task, which takes a core: fetching several at once, decoding and preparing.
        predict_seconds: of one replica of the network, on a GPU or on its share of the cores.
        mask_seconds: on one core.
        device: where the network ran: "cpu" or a GPU's name.
        file_bytes, record_bytes, release_bytes: of an image file, of its record in a run, and of its rows in a release.
    """

    images: int
    failed: dict[str, int]
    fetch_seconds: float
    read_seconds: float
    predict_seconds: float
    mask_seconds: float
    device: str
    file_bytes: float
    record_bytes: float
    release_bytes: float


@dataclass(frozen=True)
class Probe:
    """What was measured: the steps alone, and a run of all of them.

    Attributes:
        steps: alone.
        cores, gpus: that the probe's own run had; no GPU where the network ran on cores.
        threads: cores that one replica of the network has where it runs on cores.
        images_per_second: of that run, once it flowed.
        start_seconds: that Ray, its workers, loading weights, filling and draining the steps took.
    """

    steps: Steps
    cores: int
    gpus: int
    threads: int
    images_per_second: float
    start_seconds: float

    @property
    def efficiency(self) -> float:
        """Speed of the probe's own run over that of its slowest part alone."""
        return self.images_per_second / min(self.capacities(self.cores, self.gpus).values())

    def reaches(self, part: str) -> float:
        """Speed of a run that a part bounds, over what that part alone can do."""
        return self.efficiency

    def core_seconds(self) -> dict[str, float]:
        """Seconds of a core that an image takes, by what they are spent on."""
        waits = self.steps.fetch_seconds / FETCHERS > self.steps.read_seconds / 2
        seconds = {"fetching" if waits else "reading": self.steps.read_seconds, "masks": self.steps.mask_seconds}
        return seconds if self.gpus else seconds | {"prediction": self.steps.predict_seconds * self.threads}

    def capacities(self, cores: int, gpus: int) -> dict[str, float]:
        """Images a second that each part of a fleet can do at most."""
        on_cores = {"cores": cores / sum(self.core_seconds().values())}
        return on_cores | {"GPUs": gpus / self.steps.predict_seconds} if self.gpus else on_cores

    def speeds(self, cores: int, gpus: int) -> dict[str, float]:
        """Images a second of a run that each part of a fleet bounds."""
        return {part: rate * self.reaches(part) for part, rate in self.capacities(cores, gpus).items()}

    def bottleneck(self, cores: int, gpus: int) -> str:
        """What bounds a fleet, in words."""
        speeds = self.speeds(cores, gpus)
        if min(speeds, key=lambda name: speeds[name]) == "GPUs":
            return "prediction on the GPUs"
        seconds = self.core_seconds()
        largest = max(seconds, key=lambda name: seconds[name])
        return f"{largest} on the cores ({seconds[largest] / sum(seconds.values()):.0%} of their time)"

    def cores_per_gpu(self) -> float | None:
        """Cores that keep one GPU busy, at the efficiency that was seen; None where no GPU was."""
        if not self.gpus:
            return None
        return sum(self.core_seconds().values()) / self.steps.predict_seconds / min(1.0, self.reaches("cores"))


@dataclass(frozen=True)
class Forecast:
    """What a run over `rows` images takes on a fleet."""

    rows: int
    cores: int
    gpus: int
    images_per_second: float
    bottleneck: str
    hours: float
    cost: float | None
    read_gib: float
    records_gib: float
    release_gib: float


def forecast(probe: Probe, rows: int, cores: int, gpus: int, price_per_hour: float | None = None) -> Forecast:
    """What a run takes, by this model.

    A run takes the probe's start-up, which does not depend on the rows, and then flows at the speed of

        least of the fleet's parts' capacity x efficiency,

    where efficiency is what the probe's own run reached of the least capacity of this machine's parts: it holds what
    the steps alone do not show (moving images between processes, scheduling, writing, contention for memory). So on
    this machine the forecast speed is the one that was seen, and other fleets are scaled from it. Capacities are:

    - with GPUs, where steps overlap: gpus / predict seconds, and cores / (read + mask seconds);
    - without, where all steps share the cores and their times add up: cores / (read + mask + predict seconds x threads
      of a replica).

    It assumes that the sampled images are like the others, that all machines of a fleet are like this one and as near
    to the storage, that the storage serves a larger fleet as fast per core, and that none is preempted. Images of the
    probe's own run are read several times, so a local disk answers from memory then; `fetch_seconds` is of the first
    time.

    Args:
        probe: what was measured.
        rows: images of the run.
        cores, gpus: of all machines together.
        price_per_hour: of all machines together.
    """
    speed = min(probe.speeds(cores, gpus).values())
    hours = (probe.start_seconds + rows / speed) / 3600
    return Forecast(
        rows=rows,
        cores=cores,
        gpus=gpus,
        images_per_second=speed,
        bottleneck=probe.bottleneck(cores, gpus),
        hours=hours,
        cost=None if price_per_hour is None else hours * price_per_hour,
        read_gib=rows * probe.steps.file_bytes / GIB,
        records_gib=rows * probe.steps.record_bytes / GIB,
        release_gib=rows * probe.steps.release_bytes / GIB,
    )


def run(settings: PlanSettings, flow_seconds: float = FLOW_SECONDS) -> dict[str, Any]:
    """Probe this hardware with a sample of a manifest and forecast its run.

    Args:
        settings: of the verb.
        flow_seconds: for which the probe's own run flows; prediction and masks alone are timed for an eighth of it.

    Returns:
        `probe` and `forecast` as dicts, with `efficiency` and `cores_per_gpu`.

    Raises:
        InputError: on bad input; or if the probe can say nothing, or is asked for GPUs where none was probed.
    """
    assert settings.manifest is not None
    manifest_uri = storage.normalise(settings.manifest)
    # A bad manifest and bad weights are to be known now, not after a minute.
    total = checked_rows(manifest_uri, settings.probe)
    weights = weight_files.find(settings.weights)
    weight_files.load_model(weights)
    cluster.check_here(settings.device, settings.precision, settings.address)
    if settings.gpus is not None and cluster.starts_here(settings.address) and choose(settings.device) == "cpu":
        raise InputError(_NO_GPU_PROBED)
    run_settings = GenerateSettings(
        weights=weights.uri,
        samples=settings.samples,
        precision=settings.precision,
        device=settings.device,
    )
    start = time.perf_counter()
    with cluster.connected(settings.address) as started_here:
        ray_seconds = time.perf_counter() - start if started_here else 0.0
        share = cluster.layout(settings.device)
        if settings.device == "cuda" and not share.gpus:
            raise InputError("--device cuda: Ray sees no GPU; probe on a machine that has one, or leave the flag out")
        if settings.gpus is not None and not share.gpus:
            raise InputError(_NO_GPU_PROBED)
        if settings.precision == "tf32" and not share.on_gpus:
            raise InputError(cluster.NO_TF32)
        if share.machines > 1 and settings.scratch is None:
            raise InputError("--scratch is needed on a cluster: a folder or URL that every machine sees")
        rows = cluster.on_worker(sample, manifest_uri, total, settings.probe, settings.seed)
        cores = share.cores - cluster.WAITING_TASKS if started_here else share.cores
        call = (rows, run_settings, share.threads, share.batch, flow_seconds / 8)
        steps = cluster.on_workers(measure_steps, [call], gpus=1 if share.on_gpus else 0)[0]
        threads = min(share.threads or 1, cores)
        alone = Probe(steps, cores, share.gpus, threads, images_per_second=math.nan, start_seconds=math.nan)
        speed = min(alone.capacities(cores, share.gpus).values())
        print(
            "plan: the steps are measured; now a short and a long run of the whole pipeline over the sample, repeated",
            file=sys.stderr,
        )
        images = measured.pair_images(speed, flow_seconds, cores, pipeline.rows_per_block(share.batch))
        runs = _runs(run_settings, rows, images, settings.scratch)
    probe = Probe(steps, cores, share.gpus, threads, runs.images_per_second, ray_seconds + runs.start_seconds)
    fleet = settings.cpus or cores, settings.gpus or share.gpus
    expected = forecast(probe, settings.rows or total, *fleet, settings.price_per_hour)
    return facts(probe, expected, total)


def facts(probe: Probe, expected: Forecast, manifest_rows: int | None) -> dict[str, Any]:
    """What `run` returns of a forecast."""
    return {
        "probe": asdict(probe),
        "efficiency": probe.efficiency,
        "cores_per_gpu": probe.cores_per_gpu(),
        "manifest_rows": manifest_rows,
        "forecast": asdict(expected),
    }


def checked_rows(manifest_uri: str, count: int) -> int:
    """Rows of a manifest of which so many are to be sampled.

    Raises:
        InputError: if it is no manifest, or there are too few to say anything.
    """
    check_columns(manifest_uri)
    total = inspect(manifest_uri).rows
    if count < LEAST_IMAGES:
        raise InputError(f"--probe {count}: a probe needs at least {LEAST_IMAGES} images")
    if total < LEAST_IMAGES:
        raise InputError(f"{manifest_uri}: holds {total} images; a probe needs at least {LEAST_IMAGES}")
    return total


def render(result: dict[str, Any]) -> str:
    """The result of `run` as lines for a person."""
    probe, steps, expected = result["probe"], result["probe"]["steps"], result["forecast"]
    on_gpu = probe["gpus"] > 0
    lines = [
        *(_probed(steps) if "bench" not in result else _measured_elsewhere(result)),
        f"  read       {1 / steps['read_seconds']:8,.1f} images/s per core (fetched, decoded, prepared)",
        f"  predict    {1 / steps['predict_seconds']:8,.1f} images/s per "
        + ("GPU" if on_gpu else f"replica of {probe['threads']} cores"),
        f"  masks      {1 / steps['mask_seconds']:8,.1f} images/s per core",
        f"  all steps  {probe['images_per_second']:8,.1f} images/s on {probe['cores']} cores"
        + (f" and {_gpus(probe['gpus'])}" if on_gpu else "")
        + f", {result['efficiency']:.0%} of the slowest part alone; start-up {probe['start_seconds']:.0f} s",
    ]
    if result["cores_per_gpu"] is not None:
        lines.append(f"  one GPU is kept busy by {math.ceil(result['cores_per_gpu'])} cores")
    fleet = f"{expected['cores']} cores" + (f" and {_gpus(expected['gpus'])}" if on_gpu else "")
    lines += [
        f"Forecast: {expected['rows']:,} images on {fleet}",
        f"  speed      {expected['images_per_second']:,.1f} images/s",
        f"  bottleneck {expected['bottleneck']}",
        f"  time       {_duration(expected['hours'])}",
        f"  storage    {_size(expected['read_gib'])} read, {_size(expected['records_gib'])} of records,"
        f" {_size(expected['release_gib'])} of release",
    ]
    if expected["cost"] is not None:
        lines.append(f"  cost       {expected['cost']:,.2f}")
    return "\n".join(lines)


def _probed(steps: dict[str, Any]) -> list[str]:
    return [
        f"Probe: {steps['images']} images, {sum(steps['failed'].values())} of them not readable;"
        f" network on {steps['device']}",
        f"  fetch      {steps['fetch_seconds'] * 1e3:8,.1f} ms an image, one after the other",
    ]


def _measured_elsewhere(result: dict[str, Any]) -> list[str]:
    """Where the figures of a forecast from a bench result come from."""
    bench, steps, slower = result["bench"], result["probe"]["steps"], result["bench"]["core_seconds_there_over_here"]
    lines = [
        f"Measured on {bench['device']}, {bench['gpus']} of them, and {bench['cores']} cores: {bench['file']} of"
        f" {bench['date'][:10]}, input {bench['input_size']}, {bench['variant']}",
    ]
    if slower is None:
        return [*lines, "Reading and masks: as drawn files of each published source took there, by the sources' sizes"]
    failed = sum(steps["failed"].values())
    return [
        *lines,
        f"Reading and masks: {steps['images']} images of the manifest measured here, {failed} of them not readable;"
        f" a core there takes {slower:.2f} times as long",
    ]


def sample(manifest_uri: str, total: int, count: int, seed: int) -> pa.Table:
    """So many of a manifest's `total` rows, completed; in random order, since parts of them are measured, too."""
    check_access(manifest_uri)
    fs, path = storage.arrow_filesystem(manifest_uri)
    chosen = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    return parquet.complete(pq.read_table(path, filesystem=fs).take(chosen))


def measure_steps(
    rows: pa.Table, settings: GenerateSettings, threads: int | None, batch: int, step_seconds: float
) -> Steps:
    """Run the steps one after the other on one worker and time each."""
    fetch_seconds, file_bytes = _fetch(rows.slice(0, FETCHED), max_bytes=2 * settings.max_side**2)
    # Once without counting, as a worker of a run that flows has done.
    read(rows.slice(0, 1), max_side=settings.max_side)
    start = time.perf_counter()
    blocks = [
        read(rows.slice(first, pipeline.ROWS_PER_BLOCK), max_side=settings.max_side).drop_columns(["image"])
        for first in range(0, len(rows), pipeline.ROWS_PER_BLOCK)
    ]
    read_seconds = (time.perf_counter() - start) / len(rows)
    prepared = pa.concat_tables(blocks)
    failed = Counter(reason for reason in prepared["reason"].to_pylist() if reason is not None)
    if len(rows) - failed.total() < LEAST_IMAGES:
        reason, count = failed.most_common(1)[0]
        message = next(row["error"] for row in prepared.to_pylist() if row["reason"] == reason)
        raise InputError(
            f"--manifest: {failed.total()} of {len(rows)} sampled images cannot be read"
            f" (most often {reason}, {count} times: {message}); a probe needs {LEAST_IMAGES} that can"
        )
    good = [row for row, status in enumerate(prepared["status"].to_pylist()) if status == record.OK]
    kept = read(rows.take(good[:KEPT_IMAGES]), max_side=settings.max_side)
    predictor = measured.predictor(settings, threads)
    batches = [kept.slice(first, batch) for first in range(0, len(kept), batch)]
    predicted = pa.concat_tables([predictor(batch) for batch in batches])
    predict_seconds = _seconds_per_image(predictor, batches, step_seconds)
    mask(predicted.slice(0, 1))
    mask_seconds = _seconds_per_image(mask, [predicted], step_seconds)
    records = mask(predicted)
    return Steps(
        images=len(rows),
        failed=dict(failed),
        fetch_seconds=fetch_seconds,
        read_seconds=read_seconds,
        predict_seconds=predict_seconds,
        mask_seconds=mask_seconds,
        device=predictor.device_name,
        file_bytes=file_bytes,
        record_bytes=_stored_bytes(records),
        release_bytes=_stored_bytes(records.select(record.LANDMARK_RELEASE.names))
        + _stored_bytes(records.select(record.MASK_RELEASE.names)),
    )


def _fetch(rows: pa.Table, max_bytes: int) -> tuple[float, float]:
    """Median seconds and mean bytes of the objects that can be had, one after the other."""
    seconds, sizes = [0.0], [0]
    for uri in rows["uri"].to_pylist():
        start = time.perf_counter()
        try:
            data = fetch(uri, max_bytes=max_bytes)
        except ReadError:
            continue
        seconds.append(time.perf_counter() - start)
        sizes.append(len(data))
    return statistics.median(seconds[1:] or [0.0]), statistics.fmean(sizes[1:] or [0])


def _seconds_per_image(step: Callable[[pa.Table], pa.Table], batches: list[pa.Table], at_least: float) -> float:
    """Seconds an image of a step over its batches, again and again for at least so many seconds."""
    start = time.perf_counter()
    images = 0
    while (seconds := time.perf_counter() - start) < at_least:
        for batch in batches:
            step(batch)
            images += len(batch)
    return seconds / images


def _stored_bytes(records: pa.Table) -> float:
    """Bytes a row that a table takes as Parquet, without the file's footer."""
    sink = pa.BufferOutputStream()
    pq.write_table(records, sink, compression=COMPRESSION)
    group = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns)) / len(records)


def _runs(
    settings: GenerateSettings, rows: pa.Table, images: tuple[int, int], scratch: str | None
) -> measured.Sustained:
    """A short and a long run of the pipeline over the sample."""
    with tempfile.TemporaryDirectory(prefix="chexmask-u-plan-") as local:
        folder = storage.join(scratch or local, f"plan-{uuid.uuid4().hex}")
        short, long = (measured.timed_run(settings, rows, count, folder) for count in images)
    return measured.Sustained.of([short], [long])


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours * 60 >= 1 else f"{hours * 3600:.0f} seconds"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' * (count != 1)}"


def _size(gib: float) -> str:
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{gib * 1024:,.1f} MiB"
