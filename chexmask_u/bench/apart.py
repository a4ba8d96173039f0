"""The published algorithm in a process of its own, whose memory is as it would be without the predictor beside it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from chexmask_u.bench.reference import Reference
from chexmask_u.model.predict import latent_noise
from chexmask_u.weight_files import load_model


class Task:
    """The published algorithm on one image, whole and by halves; each method returns when the device is done."""

    def __init__(self, weights: str, device: str, image: NDArray[np.uint8], samples: int) -> None:
        self.reference = Reference(load_model(weights), device)
        self.image, self.noise = image, latent_noise("0", samples, 0)
        with torch.inference_mode():
            self.grey = self.reference.grey(image)
            self.encoded = self.reference.encode(self.grey)
            self.z = self.reference.sample(self.encoded, self.noise)

    def predict(self) -> None:
        self.reference.predict(self.image[None], [self.noise])

    def encode(self) -> None:
        with torch.inference_mode():
            self.reference.encode(self.grey)
        self._wait()

    def decode(self) -> None:
        with torch.inference_mode():
            self.reference.decode(self.z, self.encoded)
        self._wait()

    def _wait(self) -> None:
        if self.reference.device.type == "cuda":
            torch.cuda.synchronize(self.reference.device)


@dataclass(frozen=True)
class Apart:
    """A `Task` in another process; each method returns when it is done there."""

    pool: ProcessPoolExecutor

    def predict(self) -> None:
        self.pool.submit(_do, "predict").result()

    def encode(self) -> None:
        self.pool.submit(_do, "encode").result()

    def decode(self) -> None:
        self.pool.submit(_do, "decode").result()


@contextmanager
def apart(weights: str, device: str, image: NDArray[np.uint8], samples: int) -> Iterator[Apart]:
    """Run the published algorithm in a process of its own.

    The predictor's process keeps the memory that it frees (`memory.keep_freed`), which would make the published
    algorithm faster there than it is for its users.

    Args:
        weights: as `load_model` takes them.
        device: "cpu" or "cuda".
        image: uint8 [1024, 1024].
        samples: draws N.
    """
    # A fork would begin with the predictor's memory, and have no GPU.
    spawn = get_context("spawn")
    begin_with = (torch.get_num_threads(), weights, device, image, samples)
    with ProcessPoolExecutor(1, spawn, _begin, begin_with) as pool:
        yield Apart(pool)


# In the other process: its only task.
_tasks: list[Task] = []


def _begin(threads: int, weights: str, device: str, image: NDArray[np.uint8], samples: int) -> None:
    torch.set_num_threads(threads)
    _tasks.append(Task(weights, device, image, samples))


def _do(name: str) -> None:
    getattr(_tasks[0], name)()
