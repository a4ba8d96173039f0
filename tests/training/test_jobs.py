"""`ray job submit` of training: annotated images on S3 in, weights, metrics and card on S3 out."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import chexmask_u as cu
from tests.support.annotated import write_folder
from tests.support.ray_cluster import RAY, ray_cluster
from tests.support.s3 import s3_server
from tests.training.test_distributed import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]


def test_job_trains_from_a_bucket_into_a_bucket(tmp_path: Path) -> None:
    write_folder(tmp_path / "people", count=8, side=64)
    project = tmp_path / "project"
    for part in ("jobs", "chexmask_u"):
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "board").mkdir()
    with s3_server() as s3, ray_cluster(s3.env) as cluster:
        fs = s3.filesystem()
        fs.put(str(tmp_path / "people"), f"{s3.bucket}/people", recursive=True)
        submitted = subprocess.run(
            [
                *(str(RAY), "job", "submit", "--address", cluster.job_address, "--working-dir", ".", "--"),
                *("python", "jobs/train.py", "--data", f"{s3.url}/people", "--output", f"{s3.url}/run"),
                # The node that says it has a GPU has none.
                *(*SMALL, "--workers", "2", "--device", "cpu"),
            ],
            cwd=project,
            env={**cluster.client_env(), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        fs.invalidate_cache()
        table = list(csv.DictReader(io.StringIO(fs.cat_file(f"{s3.bucket}/run/metrics.csv").decode())))
        fs.get_file(f"{s3.bucket}/run/model.safetensors", str(tmp_path / "model.safetensors"))
        for events in fs.glob(f"{s3.bucket}/run/tensorboard/events*"):
            fs.get_file(events, str(tmp_path / "board" / Path(events).name))
    assert [int(row["epoch"]) for row in table] == [1, 2, 3, 4, 5, 6]
    assert cu.load_model(str(tmp_path / "model.safetensors")).input_size == 64
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [event.step for event in board.Scalars("train/landmarks")] == [1, 2, 3, 4, 5, 6]
