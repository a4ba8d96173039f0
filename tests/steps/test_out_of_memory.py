"""Batches that do not fit: under a real limit on a process's memory, what fits by itself is predicted, unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel elsewhere does not limit address space")

IMAGES = 16

# As on a GPU the images of a batch are computed at once, 4 MiB each: all do not fit, a few do. Later nothing does.
PREDICT = """
import ctypes, json, resource, sys
import numpy as np, pyarrow as pa
from pathlib import Path
from chexmask_u import record
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.steps.noise import draw_noise
from chexmask_u.steps.predict import Predictor

weights, count = sys.argv[1], int(sys.argv[2])
class AtOnce(HybridGNet):
    computes_batches = True

predictor = Predictor(weights, device="cpu", samples=2, threads=1)
predictor.model.__class__ = AtOnce
images = np.random.default_rng(0).integers(0, 256, (count, 1024, 1024), np.uint8)
ids = [f"folder/{index}" for index in range(count)]
columns = {name: [None] * count for name in record.READ.names}
columns |= {"record_id": ids, "uri": ids, "source": ["folder"] * count, "image_id": ids}
columns |= {"status": ["ok"] * count, "image": [image.tobytes() for image in images]}
columns["status"][4], columns["reason"][4], columns["image"][4] = "failed", "damaged", None
batch = pa.table([pa.array(columns[f.name], f.type) for f in record.READ], schema=record.READ)
del images, columns
hard = resource.getrlimit(resource.RLIMIT_AS)[1]

def answer():
    columns = ["status", "reason", "error", "landmarks_mean", "landmarks_std"]
    return predictor(batch).select(columns).to_pylist()

answers = {"whole": answer()}
# As readers leave it, with each image's noise beside it.
batch = draw_noise(batch, samples=2, seed=0, size=AtOnce.noise_size)
# Freed memory goes back to the kernel from here on, so that the limit means the same each time.
libc = ctypes.CDLL(None)
libc.mallopt(-3, 65536)
libc.mallopt(-1, 65536)
answer()
libc.malloc_trim(0)
base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for room_mib in (count * 3 // 4, *range(8, -80, -8)):
    resource.setrlimit(resource.RLIMIT_AS, (base + room_mib * 2**20, hard))
    rows = answer()
    answers.setdefault("halved", rows)
    if "ok" not in {row["status"] for row in rows}:
        answers["none"] = rows
        break
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
answers["later"] = answer()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tiny_weights: Path) -> dict[str, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(tiny_weights), str(IMAGES)],
        capture_output=True,
        text=True,
        check=False,
        # An arena has address space in reserve, beyond what the limit sees.
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["halved", "later"])
def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_numbers(
    answers: dict[str, list[dict[str, Any]]], name: str
) -> None:
    assert [row["status"] for row in answers[name]].count("ok") == IMAGES - 1
    for row, expected in zip(answers[name], answers["whole"], strict=True):
        assert (row["status"], row["reason"], row["error"]) == (expected["status"], expected["reason"], None)
        if row["status"] == "ok":
            np.testing.assert_allclose(row["landmarks_mean"], expected["landmarks_mean"], atol=0.01)
            np.testing.assert_allclose(row["landmarks_std"], expected["landmarks_std"], atol=0.01)


def test_images_that_do_not_fit_even_alone_fail_and_the_step_goes_on(answers: dict[str, list[dict[str, Any]]]) -> None:
    rows = answers["none"]
    assert [row["reason"] for row in rows] == ["out_of_memory"] * 4 + ["damaged"] + ["out_of_memory"] * (IMAGES - 5)
    assert all("alloc" in row["error"] for row in rows if row["reason"] == "out_of_memory")
    assert all(row["landmarks_mean"] is None for row in rows)
