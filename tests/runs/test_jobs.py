"""`ray job submit` against a real head node: images on S3 in, a dataset version on S3 out, exit codes that are true."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from chexmask_u.cli import main
from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import ManifestFolderSettings
from chexmask_u.sources.synthetic import draw
from tests.support import hub
from tests.support.invented_runs import make_release
from tests.support.ray_cluster import RAY, RayCluster, ray_cluster
from tests.support.s3 import S3Server, own_bucket

# A cluster and a job start in the first test's setup: half a minute when idle, minutes when the machine is busy.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]

# Neither the installed code nor any released one says so.
SUBMITTED_VERSION = "0.0.0+submitted"

IMAGES = 12
DAMAGED = "images/damaged.png"


@dataclass(frozen=True)
class Job:
    """How a submitted job ended: for the submitter, for Ray, and for the script."""

    submit_code: int
    status: str
    script_code: int | None
    log: str


@pytest.fixture(scope="module")
def s3(s3: S3Server) -> Iterator[S3Server]:
    with own_bucket(s3, "jobs") as server:
        yield server


@pytest.fixture(scope="module")
def model_hub() -> Iterator[hub.Hub]:
    with hub.serve() as served:
        yield served


@pytest.fixture(scope="module")
def cluster(s3: S3Server, model_hub: hub.Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    # Jobs get their storage credentials from the nodes, as with an instance's role.
    with ray_cluster(s3.env | hub_env(model_hub, tmp_path_factory.mktemp("cache-of-the-nodes"))) as running:
        yield running


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree that differs from the installed package."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("jobs", "chexmask_u"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "chexmask_u" / "version.py").write_text(f'__version__ = "{SUBMITTED_VERSION}"\n')
    return folder


@pytest.fixture(scope="module")
def manifest(s3: S3Server) -> str:
    """Twelve drawings of all kinds and a damaged one in a bucket, listed by the command that users list with."""
    rng = np.random.default_rng(0)
    fs = s3.filesystem()
    for number in range(IMAGES):
        height, width = rng.integers(64, 300, 2)
        image = cv2.GaussianBlur(rng.integers(0, 256, (height, width), np.uint8), (0, 0), 5)
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
        _, encoded = cv2.imencode((".png", ".jpg")[number % 2], image)
        fs.pipe_file(f"{s3.bucket}/images/{number:02d}{('.png', '.jpg')[number % 2]}", encoded.tobytes())
    fs.pipe_file(f"{s3.bucket}/{DAMAGED}", encoded.tobytes()[:40])
    uri = f"{s3.url}/manifest.parquet"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        assert main(["manifest", "folder", f"{s3.url}/images", "--output", uri]) == 0
    return uri


@pytest.fixture(scope="module")
def generated(s3: S3Server, cluster: RayCluster, project: Path, manifest: str, tiny_weights: Path) -> Job:
    """The main job, submitted once for the tests that look at what it left."""
    return submit(
        cluster,
        project,
        *("jobs/generate.py", "--manifest", manifest, "--output", f"{s3.url}/run"),
        *("--weights", str(tiny_weights), "--samples", "5", "--json"),
    )


def test_job_makes_one_record_of_every_image_in_the_bucket(s3: S3Server, generated: Job, manifest: str) -> None:
    assert (generated.submit_code, generated.status, generated.script_code) == (0, "SUCCEEDED", 0), generated.log
    rows = records(s3, "run")
    listed = pq.read_table(manifest.removeprefix("s3://"), filesystem=s3.filesystem())
    assert sorted(rows["record_id"].to_pylist()) == sorted(listed["record_id"].to_pylist())
    status = dict(zip(rows["record_id"].to_pylist(), rows["status"].to_pylist(), strict=True))
    failed = [record_id for record_id, value in status.items() if value != "ok"]
    assert failed == ["folder/damaged.png"]
    report = json.loads(s3.filesystem().cat_file(f"{s3.bucket}/run/report.json"))
    assert (report["manifest_rows"], report["ok"], report["failed"]) == (IMAGES + 1, IMAGES, 1)
    # The last line of the log is for programs.
    assert last_json(generated.log)["ok"] == IMAGES


def test_prediction_is_scheduled_on_the_node_that_has_the_gpu(cluster: RayCluster, generated: Job) -> None:
    gpu_nodes = {node["node_id"] for node in cluster.state("nodes") if node["resources_total"].get("GPU")}
    predictors = [actor for actor in cluster.state("actors") if "Predictor" in actor["class_name"]]
    assert predictors, generated.log
    assert all(actor["required_resources"].get("GPU") == 1 for actor in predictors)
    assert {actor["node_id"] for actor in predictors} == gpu_nodes


def test_job_runs_the_code_that_was_submitted(s3: S3Server, generated: Job) -> None:
    run = json.loads(s3.filesystem().cat_file(f"{s3.bucket}/run/run.json"))
    assert run["versions"]["chexmask_u"] == SUBMITTED_VERSION, generated.log


@pytest.mark.slow
def test_job_again_redoes_nothing(
    s3: S3Server, cluster: RayCluster, project: Path, generated: Job, manifest: str, tiny_weights: Path
) -> None:
    before = s3.filesystem().find(f"{s3.bucket}/run/records", detail=True)
    again = submit(
        cluster,
        project,
        *("jobs/generate.py", "--manifest", manifest, "--output", f"{s3.url}/run"),
        *("--weights", str(tiny_weights), "--samples", "5", "--json"),
    )
    assert (again.submit_code, again.script_code) == (0, 0), again.log
    assert last_json(again.log)["already_done"] == IMAGES + 1
    assert s3.filesystem().find(f"{s3.bucket}/run/records", detail=True) == before


# A quarter of a minute: that Ray makes a release is in `test_release`, and that one lies on S3 in `test_loading`, too.
@pytest.mark.slow
def test_release_job_makes_a_dataset_version_of_the_run(
    s3: S3Server, cluster: RayCluster, project: Path, generated: Job
) -> None:
    released = submit(
        cluster,
        project,
        *("jobs/release.py", f"{s3.url}/run", "--output", f"{s3.url}/releases", "--version", "v1.0.0"),
    )
    assert (released.submit_code, released.status, released.script_code) == (0, "SUCCEEDED", 0), released.log
    fs = s3.filesystem()
    content = json.loads(fs.cat_file(f"{s3.bucket}/releases/v1.0.0/release.json"))
    parts = [file["path"] for file in content["files"] if file["config"] == "folder"]
    tables = [pq.read_table(f"{s3.bucket}/releases/v1.0.0/{part}", filesystem=fs) for part in parts]
    ids = pa.concat_tables(tables)["record_id"].to_pylist()
    assert len(ids) == IMAGES
    assert ids == sorted(set(ids))


# Ten seconds: that a script of jobs/ ends with the code of its verb is in `test_job`, too.
@pytest.mark.slow
def test_job_with_bad_input_fails_with_one_line_and_code_2(s3: S3Server, cluster: RayCluster, project: Path) -> None:
    missing = f"{s3.url}/nowhere.parquet"
    job = submit(cluster, project, "jobs/generate.py", "--manifest", missing, "--output", f"{s3.url}/never")
    assert (job.submit_code, job.status, job.script_code) == (1, "FAILED", 2), job.log
    assert f"chexmask-u: {missing}: no such manifest" in job.log
    assert "Traceback" not in job.log
    assert not s3.filesystem().exists(f"{s3.bucket}/never")


@pytest.mark.slow
def test_job_with_a_relative_output_is_refused_before_ray_keeps_it_in_its_own_folder(
    cluster: RayCluster, project: Path, manifest: str
) -> None:
    job = submit(cluster, project, "jobs/generate.py", "--manifest", manifest, "--output", "run")
    assert (job.submit_code, job.status, job.script_code) == (1, "FAILED", 2), job.log
    assert "chexmask-u: --output run: is relative" in job.log
    assert "give an absolute path that every machine sees, or a URL" in job.log
    assert "working_dir_files" not in job.log.split("chexmask-u: ")[1]


# Half a minute: that a commit is found again and frozen is in `test_weight_files`, too.
@pytest.mark.slow
def test_a_run_keeps_its_commit_of_the_hub_on_every_machine(
    cluster: RayCluster, model_hub: hub.Hub, tiny_weights: Path, drawings: str, tmp_path: Path
) -> None:
    source, file = "hf://org/CheXmask-U/v1_skip", "v1_skip/pytorch_model.bin"
    torch.save({f"model.{name}": value for name, value in load_file(tiny_weights).items()}, tmp_path / "weights.bin")
    content = (tmp_path / "weights.bin").read_bytes()
    weights = model_hub.model("org/CheXmask-U", {file: content, "v1_skip/config.json": b'{"use_skip": true}'})
    begun = weights.main

    def generate() -> subprocess.CompletedProcess[str]:
        return drive(cluster, model_hub, tmp_path, "--manifest", drawings, "--weights", source)

    ran = generate()
    assert ran.returncode == 0, ran.stderr
    # Once for the driver, and once for the node with the GPU: its replica finds it there.
    assert model_hub.downloads(file) == 2
    run = tmp_path / "run"
    frozen = (run / "run.json").read_text()
    kept = {"source": source, "commit": begun, "file": file, "sha256": hashlib.sha256(content).hexdigest()}
    assert json.loads(frozen)["weights"].items() >= kept.items()

    weights.commit({file: b"others"}, "others")
    for part in (run / "records").rglob("*.parquet"):
        part.unlink()
    again = generate()
    assert again.returncode == 0, again.stderr
    assert f"goes on with commit {begun}" in again.stderr
    assert (run / "run.json").read_text() == frozen
    assert model_hub.downloads(file) == 2

    released = make_release(str(run), str(tmp_path / "releases"))
    assert released["weights"].items() >= kept.items()
    assert begun in (tmp_path / "releases" / "v1.0.0" / "README.md").read_text()


def test_a_node_that_cannot_have_the_weights_says_so_before_an_image_is_read(
    cluster: RayCluster, tiny_weights: Path, drawings: str, tmp_path: Path
) -> None:
    with hub.serve() as elsewhere:
        elsewhere.model("org/known-to-the-driver", {"model.safetensors": tiny_weights.read_bytes()})
        source = "hf://org/known-to-the-driver"
        ran = drive(cluster, elsewhere, tmp_path, "--manifest", drawings, "--weights", source)
    assert ran.returncode == 2, ran.stderr
    *_, line = ran.stderr.splitlines()
    assert line.startswith(f"chexmask-u: {source}: there is no such repository on the Hub")
    assert f"on the node {platform.node()}" in line
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The manifest of three images in a folder that all nodes see."""
    folder = tmp_path_factory.mktemp("drawings")
    for number in range(3):
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", draw(number, side=80).image)[1].tobytes())
    listed = folder / "manifest.parquet"
    list_folder(ManifestFolderSettings(uri=str(folder), output=str(listed)))
    return str(listed)


def hub_env(served: hub.Hub, cache: Path) -> dict[str, str]:
    """What makes a process take a server for the Hub."""
    wanted = served.environment(cache)
    return {name: value for name, value in wanted.items() if name.startswith("HF_") or name == "NO_PROXY"}


def drive(cluster: RayCluster, served: hub.Hub, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `generate` beside the cluster, with a Hub and a cache that need not be those of the nodes."""
    command = [sys.executable, "-m", "chexmask_u.cli", "generate", "--address", cluster.gcs_address]
    return subprocess.run(
        [*command, *arguments, "--output", str(folder / "run"), "--samples", "2"],
        env=cluster.client_env() | hub_env(served, folder / "cache-of-the-driver"),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def submit(cluster: RayCluster, project: Path, *arguments: str) -> Job:
    """Submit `python ARGUMENTS` as a user does, from a working tree, and wait for its end."""
    name = f"job-{len(cluster.api('/api/jobs/'))}"
    options = ("--address", cluster.job_address, "--submission-id", name, "--working-dir", ".")
    submitted = subprocess.run(
        [RAY, "job", "submit", *options, "--", "python", *arguments],
        cwd=project,
        # Without the storage's credentials: whoever submits a job needs none.
        env=cluster.client_env(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    ended = cluster.api(f"/api/jobs/{name}")
    log = cluster.api(f"/api/jobs/{name}/logs")["logs"]
    return Job(submitted.returncode, ended["status"], ended["driver_exit_code"], f"{log}\n{submitted.stderr}")


def last_json(log: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads([line for line in log.splitlines() if line.startswith("{")][-1])
    return content


def records(s3: S3Server, run: str) -> pa.Table:
    """All Parquet parts of a run, committed or not."""
    fs = s3.filesystem()
    parts = [file for file in fs.find(f"{s3.bucket}/{run}/records") if file.endswith(".parquet")]
    return pa.concat_tables([pq.read_table(part, filesystem=fs, columns=["record_id", "status"]) for part in parts])
