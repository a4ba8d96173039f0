"""A replica of the network whose GPU fails: its process ends, and Ray's next one does the batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chexmask_u import record
from chexmask_u.anatomy import FRAME
from chexmask_u.runs.replica import CountingPredictor

ROWS = 3


@pytest.fixture
def batch() -> pa.Table:
    """Prepared images, as `read` gives them."""
    columns: dict[str, list[Any]] = {name: [None] * ROWS for name in record.READ.names}
    columns |= {
        "record_id": [f"folder/{number}" for number in range(ROWS)],
        "status": [record.OK] * ROWS,
        "image": [np.full((FRAME, FRAME), 50 * number, np.uint8).tobytes() for number in range(ROWS)],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in record.READ], schema=record.READ)


class Faulty:
    """An actor whose network raises what it is told to, in the first of its processes; tells which process it is."""

    def __init__(self, weights: str, mark: Path, message: str) -> None:
        class Nobody:
            def add(self, *_: Any, **__: Any) -> None:
                pass

        self.step = CountingPredictor(Nobody(), weights=weights, samples=2, device="cpu")  # type: ignore[arg-type]
        if not mark.exists():
            mark.touch()

            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError(message)

            # As a kernel on the device does.
            self.step.model.sample = fail  # type: ignore[method-assign]

    def predict(self, batch: pa.Table) -> tuple[int, list[str]]:
        return os.getpid(), self.step(batch)["status"].to_pylist()

    def pid(self) -> int:
        return os.getpid()


def test_after_a_fault_of_the_gpu_another_process_predicts_the_batch(local_ray, tiny_weights, batch, tmp_path):
    actor = local_ray.remote(Faulty).options(num_cpus=0, max_restarts=1, max_task_retries=1)
    faulty = actor.remote(str(tiny_weights), tmp_path / "mark", "CUDA driver error: unspecified launch failure")
    first = local_ray.get(faulty.pid.remote())
    second, status = local_ray.get(faulty.predict.remote(batch), timeout=120)
    assert second != first
    assert status == [record.OK] * ROWS


def test_another_error_of_the_network_ends_no_process(local_ray, tiny_weights, batch, tmp_path):
    actor = local_ray.remote(Faulty).options(num_cpus=0)
    faulty = actor.remote(str(tiny_weights), tmp_path / "mark", "shapes do not match")
    first = local_ray.get(faulty.pid.remote())
    with pytest.raises(RuntimeError, match="shapes do not match"):
        local_ray.get(faulty.predict.remote(batch), timeout=120)
    assert local_ray.get(faulty.pid.remote()) == first
