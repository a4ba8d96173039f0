"""A forecast from a short probe: its arithmetic by hand, a real probe, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from chexmask_u import cli
from chexmask_u.bench import forecast
from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import ManifestFolderSettings, PlanSettings
from chexmask_u.sources.synthetic import draw

STEPS = forecast.Steps(
    images=100,
    failed={},
    fetch_seconds=0.002,
    read_seconds=0.050,
    predict_seconds=0.010,
    mask_seconds=0.005,
    device="a GPU",
    file_bytes=2**20,
    record_bytes=2**12,
    release_bytes=2**11,
)

# On 4 cores, reading and masks allow 4 / 0.055 = 72.7 images/s; the probe's own run reached 80% of that.
GPU_PROBE = forecast.Probe(STEPS, cores=4, gpus=1, threads=1, images_per_second=0.8 * 4 / 0.055, start_seconds=36.0)

# On 2 cores an image takes 50 + 5 + 2 * 22.5 = 100 ms of a core, so 20 images/s at most.
CPU_PROBE = forecast.Probe(
    replace(STEPS, predict_seconds=0.0225), cores=2, gpus=0, threads=2, images_per_second=18.0, start_seconds=10.0
)


def test_a_gpu_that_waits_for_cores_gets_more_of_them():
    here = forecast.forecast(GPU_PROBE, 1000, cores=4, gpus=1)
    assert here.images_per_second == pytest.approx(GPU_PROBE.images_per_second)
    assert here.bottleneck == "reading on the cores (91% of their time)"
    # 0.055 / 0.010 = 5.5 cores, and a quarter more since 80% was reached.
    assert GPU_PROBE.cores_per_gpu() == pytest.approx(5.5 / 0.8)
    fed = forecast.forecast(GPU_PROBE, 1000, cores=8, gpus=1)
    assert fed.images_per_second == pytest.approx(0.8 * 100)
    assert fed.bottleneck == "prediction on the GPUs"


def test_hours_cost_and_storage_of_the_whole_data_set():
    fleet = forecast.forecast(GPU_PROBE, 657_566, cores=128, gpus=16, price_per_hour=30.0)
    assert fleet.images_per_second == pytest.approx(1280)
    # 36 s to start, and 514 s that it flows.
    assert fleet.hours == pytest.approx(0.1527, abs=1e-4)
    assert fleet.cost == pytest.approx(4.58, abs=0.01)
    # A mebibyte, four kibibytes and two of each image.
    assert (fleet.read_gib, fleet.records_gib, fleet.release_gib) == pytest.approx((642.2, 2.51, 1.25), abs=0.05)


def test_on_a_cpu_the_steps_share_the_cores_and_their_times_add_up():
    here = forecast.forecast(CPU_PROBE, 2000, cores=2, gpus=0)
    assert here.images_per_second == pytest.approx(18)
    assert here.hours == pytest.approx((10 + 2000 / 18) / 3600)
    assert here.bottleneck == "reading on the cores (50% of their time)"
    assert forecast.forecast(CPU_PROBE, 2000, cores=8, gpus=0).images_per_second == pytest.approx(72)
    assert CPU_PROBE.cores_per_gpu() is None


def test_a_storage_that_is_slow_to_answer_is_named():
    slow = replace(GPU_PROBE, steps=replace(STEPS, fetch_seconds=0.3))
    assert slow.bottleneck(cores=4, gpus=1).startswith("fetching on the cores")


def draw_folder(folder: Path, count: int, side: int) -> str:
    """JPEG files of drawn radiographs, the second half twice as large, and their manifest."""
    (folder / "images").mkdir()
    drawings = [draw(index, side=side).image for index in range(min(count, 8))]
    for index in range(count):
        image = np.roll(drawings[index % len(drawings)], index % side, axis=1)
        if index >= count // 2:
            image = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{index:05d}.jpg"), image)
    manifest = str(folder / "m.parquet")
    list_folder(ManifestFolderSettings(uri=str(folder / "images"), output=manifest))
    return manifest


@pytest.mark.slow
def test_a_probe_goes_through_the_real_steps_and_forecasts_its_own_run(local_ray, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = draw_folder(tmp_path, 80, side=128)
    (tmp_path / "images" / "00003.jpg").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    settings = PlanSettings(
        manifest=manifest, weights=str(tiny_weights), samples=5, device="cpu", probe=70, rows=5000, price_per_hour=2.0
    )
    result = forecast.run(settings, flow_seconds=2.0)
    assert result["manifest_rows"] == 80
    probe, expected = result["probe"], result["forecast"]
    assert probe["steps"]["images"] == 70
    assert probe["steps"]["failed"] in ({}, {"unsupported": 1})
    sizes = [path.stat().st_size for path in (tmp_path / "images").iterdir()]
    # As the manifest's on average, though the small ones come first.
    assert probe["steps"]["file_bytes"] == pytest.approx(np.mean(sizes), rel=0.2)
    # Two landmark arrays and two latents are 2.4 kB before compression, and masks come on top.
    assert 1000 < probe["steps"]["record_bytes"] < 20_000
    assert expected["images_per_second"] == pytest.approx(probe["images_per_second"])
    assert expected["hours"] * 3600 == pytest.approx(probe["start_seconds"] + 5000 / probe["images_per_second"])
    assert expected["cost"] == pytest.approx(2 * expected["hours"])
    assert "5,000 images" in forecast.render(result)
    assert expected["bottleneck"] in forecast.render(result)
    assert sorted(tmp_path.rglob("*")) == before, "the probe leaves nothing behind"


def test_too_few_images_are_refused(local_ray, tmp_path, capsys):
    manifest = draw_folder(tmp_path, 3, side=64)
    assert_one_line(["--manifest", manifest], "holds 3 images; a probe needs at least 8", capsys)


def test_a_manifest_whose_images_cannot_be_read_is_refused_with_the_reason(local_ray, tmp_path, capsys):
    manifest = draw_folder(tmp_path, 12, side=64)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    assert_one_line(["--manifest", manifest], "12 of 12 sampled images cannot be read (most often missing", capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("flags", [["--device", "cuda"], ["--gpus", "4"], ["--precision", "tf32"]])
def test_gpus_are_not_forecast_where_none_is_probed(flags, local_ray, tmp_path, capsys):
    manifest = draw_folder(tmp_path, 8, side=64)
    assert_one_line(["--manifest", manifest, *flags], "GPU", capsys)


def assert_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *flags]) == cli.BAD_INPUT
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_forecast_of_2000_images_is_within_20_percent_of_their_run(tmp_path):
    """By the commands that a user types. On a machine that does other work meanwhile it can fail for that reason."""
    manifest = draw_folder(tmp_path, 2000, side=1024)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def command(*arguments: str) -> dict:
        words = [sys.executable, "-m", "chexmask_u.cli", *arguments, "--manifest", manifest, "--json"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    told = command("plan")["forecast"]["hours"] * 3600
    start = time.perf_counter()
    command("generate", "--output", str(tmp_path / "run"))
    seconds = time.perf_counter() - start
    print(f"forecast {told:.0f} s, measured {seconds:.0f} s, load {os.getloadavg()}")
    assert len(pq.read_table(manifest)) == 2000
    assert told == pytest.approx(seconds, rel=0.2)
