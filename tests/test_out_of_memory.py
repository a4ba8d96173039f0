"""Batches that do not fit: under a real limit on a process's memory, what fits by itself is predicted, unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.hybridgnet import HybridGNet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel elsewhere does not limit address space")

# The room beyond what the process has is made smaller until the batch does not fit as a whole; then there is none.
PREDICT = """
import ctypes, json, resource, sys
import numpy as np, pyarrow as pa
from pathlib import Path
from chexmask_u import predict, record
from chexmask_u.predictor import Predictor

predictor = Predictor(sys.argv[1], device="cpu", samples=5, threads=2)
images = np.random.default_rng(0).integers(0, 256, (6, 1024, 1024), np.uint8)
ids = [f"folder/{index}" for index in range(6)]
columns = {name: [None] * 6 for name in record.READ.names}
columns |= {"record_id": ids, "uri": ids, "source": ["folder"] * 6, "image_id": ids}
columns |= {"status": ["ok"] * 6, "image": [image.tobytes() for image in images]}
columns["status"][4], columns["reason"][4], columns["image"][4] = "failed", "damaged", None
batch = pa.table([pa.array(columns[f.name], f.type) for f in record.READ], schema=record.READ)
hard = resource.getrlimit(resource.RLIMIT_AS)[1]

def limit(room_mib):
    resource.setrlimit(resource.RLIMIT_AS, (base + room_mib * 2**20, hard))

def answer():
    columns = ["status", "reason", "error", "landmarks_mean", "landmarks_std"]
    return predictor(batch).select(columns).to_pylist()

def fits():
    try:
        predict(predictor.model, images[[0, 1, 2, 3, 5]], ids[:5], 5)
    except (RuntimeError, MemoryError):
        return False
    return True

answers = {"whole": answer()}
# Freed memory goes back to the kernel from here on, so that the limit means the same each time.
libc = ctypes.CDLL(None)
libc.mallopt(-3, 65536)
libc.mallopt(-1, 65536)
libc.malloc_trim(0)
base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for room in range(70, -80, -4):
    limit(room)
    if fits():
        continue
    rows = answer()
    failed = [row["reason"] for row in rows].count("out_of_memory")
    if failed == 5:
        answers["none"] = rows
        break
    answers["halved"] = rows
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
answers["later"] = answer()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    torch.manual_seed(0)
    # Full size: what a small network needs fits into what a thread has set aside.
    weights = tmp_path_factory.mktemp("weights") / "large.safetensors"
    save_model(HybridGNet(input_size=1024, variant="noskip"), weights)
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(weights)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["halved", "later"])
def test_of_a_batch_that_does_not_fit_what_fits_by_itself_has_the_same_numbers(
    answers: dict[str, list[dict[str, Any]]], name: str
) -> None:
    assert any(row["status"] == "ok" for row in answers[name])
    for row, expected in zip(answers[name], answers["whole"], strict=True):
        assert row["reason"] in (expected["reason"], *(["out_of_memory"] if name == "halved" else []))
        if row["status"] == "ok":
            np.testing.assert_allclose(row["landmarks_mean"], expected["landmarks_mean"], atol=0.01)
            np.testing.assert_allclose(row["landmarks_std"], expected["landmarks_std"], atol=0.01)


def test_images_that_do_not_fit_even_alone_fail_and_the_step_goes_on(answers: dict[str, list[dict[str, Any]]]) -> None:
    rows = answers["none"]
    assert [row["reason"] for row in rows] == ["out_of_memory"] * 4 + ["damaged", "out_of_memory"]
    assert all("alloc" in row["error"] for row in rows if row["reason"] == "out_of_memory")
    assert all(row["landmarks_mean"] is None for row in rows)
