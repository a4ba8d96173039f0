"""The driver's memory does not grow with the number of records. Slow: run with `pytest -m slow -s`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# Distinct files; rows beyond them name the same files again under ids of their own.
FILES = 500


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(FILES):
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(rng.integers(0, 256, (4, 4), dtype=np.uint8), (64, 64)))
    return folder


def driver_peak_mib(rows: int, images: Path, weights: Path, folder: Path) -> float:
    """Run a driver of its own over so many records; returns its peak resident memory."""
    folder.mkdir()
    ids = [f"folder/{row:07d}" for row in range(rows)]
    columns = {"record_id": ids, "uri": [str(images / f"{row % FILES}.png") for row in range(rows)]}
    columns |= {"source": ["folder"] * rows, "image_id": ids}
    pq.write_table(pa.table(columns), folder / "m.parquet")
    command = [sys.executable, "-m", "chexmask_u.cli", "generate", "--manifest", str(folder / "m.parquet")]
    command += ["--output", str(folder / "run"), "--weights", str(weights), "--samples", "1", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    summary = json.loads(finished.stdout.splitlines()[-1])
    assert summary["ok"] == summary["manifest_rows"] == rows
    peak, speed = float(summary["driver_peak_mib"]), summary["images_per_second"]
    print(f"{rows:,} records: driver peak {peak:.0f} MiB, {speed:.0f} images/s")
    return peak


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_driver_memory_is_flat_from_5_000_to_50_000_records(images, tiny_weights, tmp_path):
    small = driver_peak_mib(5_000, images, tiny_weights, tmp_path / "small")
    large = driver_peak_mib(50_000, images, tiny_weights, tmp_path / "large")
    # Ray's own bookkeeping of tasks may grow a little; a list of 50,000 rows with their results would be 100s of MiB.
    assert large - small < 60
