"""The network's replica as a run has it: it counts what it does, and its process ends where the GPU fails."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
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
        self.end: float | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
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
        end = time.perf_counter()
        failures = Counter(reason for reason in predicted["reason"].to_pylist() if reason is not None)
        idle = 0.0 if self.end is None else start - self.end
        self.tally.add(len(predicted), failures, busy_seconds=end - start, idle_seconds=idle)
        self.end = end
        return predicted
