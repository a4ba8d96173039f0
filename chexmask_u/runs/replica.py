"""The network's replica as a run has it: it counts what it does, and its process ends where the GPU fails."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from threading import Lock
from typing import Any

import pyarrow as pa
import torch

from chexmask_u import storage
from chexmask_u.runs.cluster import Tally
from chexmask_u.steps.predict import Predictor

# How torch, Triton and NVIDIA's libraries tell of a fault of the device where it is no `AcceleratorError`.
_DEVICE_FAULTS = ("CUDA driver error", "Triton Error [CUDA]", "STATUS_EXECUTION_FAILED")


class CountingPredictor(Predictor):
    """Tells the progress of every batch; later steps wait for a whole file's rows."""

    def __init__(self, tally: Tally, **settings: Any) -> None:
        super().__init__(**settings)
        self.tally = tally
        self.use = _Use()

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.use.begin()
        try:
            predicted = super().__call__(batch)
        except RuntimeError as error:
            if not (isinstance(error, torch.AcceleratorError) or any(words in str(error) for words in _DEVICE_FAULTS)):
                raise
            # The process does not recover from a fault of the device; Ray starts another, for so many times.
            print(
                f"chexmask_u: the GPU failed ({storage.explain(error)}); its process ends", file=sys.stderr, flush=True
            )
            os._exit(1)
        failures = Counter(reason for reason in predicted["reason"].to_pylist() if reason is not None)
        busy, idle = self.use.end()
        self.tally.add(len(predicted), failures, busy_seconds=busy, idle_seconds=idle)
        return predicted


class _Use:
    """Seconds in which a replica had a batch or more, and in which it waited for one, since they were last told."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._batches = 0
        self._since: float | None = None
        self._idle = 0.0

    def begin(self) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._batches == 0:
                # Until its first batch a replica waits for readers that start, too.
                self._idle += 0.0 if self._since is None else now - self._since
                self._since = now
            self._batches += 1

    def end(self) -> tuple[float, float]:
        """A batch is done; returns busy and idle seconds."""
        with self._lock:
            now = time.perf_counter()
            assert self._since is not None
            told = now - self._since, self._idle
            self._batches -= 1
            self._since, self._idle = now, 0.0
            return told
