"""Measure the host work of a replica of the network: the pipeline's own, whose device is a wait as long as a GPU's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from chexmask_u import pipeline, record
from chexmask_u.anatomy import FRAME, LATENT_SIZE
from chexmask_u.bench.timing import Row
from chexmask_u.model.draws import KEPT, Draws
from chexmask_u.model.network import Network, TrainingDraws
from chexmask_u.runs import cluster
from chexmask_u.runs.cluster import Layout
from chexmask_u.runs.replica import CountingPredictor
from chexmask_u.steps.noise import draw_noise

# What an H100 takes for an image in batches of 64, at 1024 and N = 50 in float32.
SAMPLES = 50
DEVICE_SECONDS = 1.1e-3

# Blocks in the object store that the replica is given again and again, so that no reader takes a core from it.
BLOCKS = 4

# Of a run's batches that do not count: the process starts, and its memory is touched for the first time.
WARM_UP = 0.2


class Constants(Draws):
    """Draws that a device has made all of: what is kept of them is constant, and costs the host nothing."""

    def kept(self, with_draws: bool) -> Tensor:
        return torch.full((len(self.mean), sum(KEPT)), 0.5)


class Waiting(Network):
    """A network whose device takes its time without the interpreter, as a GPU does, and answers with constants."""

    noise_size = LATENT_SIZE
    has_posterior = True
    computes_batches = True

    def __init__(self, seconds: float) -> None:
        super().__init__(input_size=FRAME, variant="waiting")
        self.seconds = seconds
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def grey(self, images: Tensor) -> Tensor:
        return images

    def sample(self, images: Tensor, noise: Callable[[], Tensor]) -> Draws:
        end = time.perf_counter() + self.seconds * len(images)
        # Beside what the device computes.
        noise()
        time.sleep(max(0.0, end - time.perf_counter()))
        nothing = torch.empty(len(images), 0)
        return Constants(nothing, nothing, nothing)

    def centre(self, images: Tensor) -> Draws:
        raise NotImplementedError

    def training_draws(self, images: Tensor, noise: Tensor, precision: str = "float32") -> TrainingDraws:
        raise NotImplementedError


class WaitingReplica(CountingPredictor):
    """The replica of a run, but for its device; it adds to each row when it was done, by both clocks of its process."""

    def __init__(self, device_seconds: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.model = Waiting(device_seconds)

    def __call__(self, batch: pa.Table) -> pa.Table:
        predicted = super().__call__(batch)
        for name, clock in (("wall", time.perf_counter()), ("processor", time.process_time())):
            predicted = predicted.append_column(name, pa.array(np.full(len(predicted), clock)))
        return predicted


def measure(flow_seconds: float, repeats: int) -> list[Row]:
    """A row of the replica as it is on a GPU, on the cluster that is connected to.

    Args:
        flow_seconds: for which the wait alone would take a run's images.
        repeats: runs.

    Returns:
        Seconds an image beside the wait's own, and `host_seconds`, the processor time that the replica's process takes
        for an image, Ray's batching and serialization included, and the statistics of the draws too, which a GPU would
        compute; medians over the runs.
    """
    share = Layout(
        machines=1,
        cores=1,
        gpus=0,
        on_gpus=False,
        replicas=1,
        threads=1,
        batch=cluster.GPU_BATCH,
        calls=cluster.GPU_CALLS,
    )
    rows = pipeline.rows_per_block(share.batch)
    blocks = [_prepared(rows, seed) for seed in range(BLOCKS)]
    count = max(2 * BLOCKS, round(flow_seconds / (DEVICE_SECONDS * rows)))
    runs = [_run(blocks, count, share) for _ in range(repeats)]
    seconds, host_seconds = (statistics.median(values) for values in zip(*runs, strict=True))
    return [
        {
            "name": f"replica, a device of {1e3 * DEVICE_SECONDS:g} ms an image",
            "seconds": seconds,
            "reference_seconds": DEVICE_SECONDS,
            "ratio": seconds / DEVICE_SECONDS,
            "repeats": repeats,
            "host_seconds": host_seconds,
            "batch": share.batch,
            "images": count * rows,
        }
    ]


def _run(blocks: list[pa.Table], count: int, share: Layout) -> tuple[float, float]:
    """Seconds of the wall clock and of the replica's process that an image takes in a run that flows."""
    with cluster.progress(count * len(blocks[0]), 0, "bench") as tally:
        settings = {
            "tally": tally,
            "device_seconds": DEVICE_SECONDS,
            "device": "cpu",
            "samples": SAMPLES,
            "threads": share.threads,
        }
        found = pipeline.through_replica(blocks, count, WaitingReplica, settings, share)
        clocks = np.concatenate([np.stack([table["wall"], table["processor"]], axis=1) for table in found])
    clocks = clocks[clocks[:, 0].argsort()]
    first, last = clocks[int(len(clocks) * WARM_UP)], clocks[-1]
    images = int((clocks[:, 0] > first[0]).sum())
    wall, processor = (last - first) / images
    return float(wall), float(processor)


def _prepared(rows: int, seed: int) -> pa.Table:
    """A block of `record.READY` whose images are noise, too."""
    images = np.random.default_rng(seed).integers(0, 256, (rows, FRAME * FRAME), np.uint8)
    ids = [f"noise/{seed}-{row}" for row in range(rows)]
    columns: dict[str, list[Any]] = {name: [None] * rows for name in record.READ.names}
    columns |= {"record_id": ids, "uri": ids, "source": ["noise"] * rows, "image_id": ids, "status": [record.OK] * rows}
    columns["image"] = [image.tobytes() for image in images]
    read = pa.table([pa.array(columns[field.name], field.type) for field in record.READ], schema=record.READ)
    return draw_noise(read, samples=SAMPLES, seed=seed, size=Waiting.noise_size)
