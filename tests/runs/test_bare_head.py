"""A cluster whose head has no cores, as large ones have it: the network's replicas, which ask for none, stay off it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import ManifestFolderSettings
from tests.support.ray_cluster import ray_cluster


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_replicas_on_cpus_run_where_there_are_cpus(tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(40):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((50, 60), number, np.uint8))
    list_folder(ManifestFolderSettings(uri=str(tmp_path / "images"), output=str(tmp_path / "m.parquet")))
    command = ["generate", "--manifest", str(tmp_path / "m.parquet"), "--output", str(tmp_path / "run"), "--json"]
    with ray_cluster({}, head_cpus=0, worker_cpus=4, worker_gpus=0) as cluster:
        ended = subprocess.run(
            [sys.executable, "-m", "chexmask_u.cli", *command, "--weights", str(tiny_weights), "--replicas", "4"],
            env={**cluster.client_env(), "RAY_ADDRESS": cluster.gcs_address},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout.splitlines()[-1])["ok"] == 40
        bare = {node["node_id"] for node in cluster.state("nodes") if not node["resources_total"].get("CPU")}
        replicas = [actor for actor in cluster.state("actors") if "Predictor" in actor["class_name"]]
        assert len(bare) == 1
        assert len(replicas) == 4
        assert not bare & {actor["node_id"] for actor in replicas}
