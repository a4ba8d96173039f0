"""A forecast from another machine's bench result: its arithmetic by hand, a real sample beside it, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chexmask_u import cli
from chexmask_u.bench import elsewhere, forecast, read, report
from chexmask_u.bench.elsewhere import BenchResult
from tests.bench.test_forecast import STEPS, draw_folder
from tests.support.invented_bench import h100

BENCH = BenchResult("invented.json", h100())


def test_one_gpu_and_eight_flow_as_their_bench_says_where_there_are_cores_enough() -> None:
    probe = BENCH.probe(STEPS)
    one = forecast.forecast(probe, 657_566, cores=128, gpus=1)
    assert one.images_per_second == pytest.approx(301)
    assert one.bottleneck == "prediction on the GPUs"
    assert one.hours == pytest.approx((34 + 657_566 / 301) / 3600)
    assert forecast.forecast(probe, 657_566, cores=1024, gpus=8).images_per_second == pytest.approx(8 * 301)


def test_cores_bound_a_run_by_what_the_pipeline_made_of_them_there() -> None:
    here = forecast.forecast(BENCH.probe(STEPS), 1000, cores=16, gpus=1)
    # 50 ms of a core, a tenth more where all read, and 5 ms for masks; the pipeline reached 86% of reading, and its
    # own masks of 1.8 ms beside 97.9 ms of reading.
    reached = 0.86 * (97.9 + 1.8) / 97.9
    assert here.images_per_second == pytest.approx(16 / 0.060 * reached)
    assert here.bottleneck == "reading on the cores (92% of their time)"


def test_draws_and_precision_cost_what_the_network_alone_took_with_them() -> None:
    for samples, precision, milliseconds in ((200, "float32", 1.41), (10, "float32", 1.06), (50, "bfloat16", 0.78)):
        probe = BENCH.probe(STEPS, BENCH.relative(samples, precision))
        # 776 images/s in a replica of the run, where the network's batches of 64 took 1.13 ms.
        assert probe.steps.predict_seconds == pytest.approx(milliseconds / 1.13 / 776)


def test_without_a_manifest_each_source_counts_by_its_images() -> None:
    steps = BENCH.with_reading(STEPS)
    images = {"chexpert": 187_825, "chestx-ray8": 112_120, "mimic-cxr-jpg": 243_334, "padchest": 96_287}
    milliseconds = {"chexpert": 22, "chestx-ray8": 5.6, "mimic-cxr-jpg": 23, "padchest": 89, "vindr-cxr": 918}
    images["vindr-cxr"] = 18_000
    core = sum(images[source] * milliseconds[source] for source in images) / sum(images.values())
    assert steps.read_seconds * 1e3 == pytest.approx(core, rel=1e-3)
    assert steps.mask_seconds == 0.0018


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "invented.json"
    path.write_text(json.dumps(h100()))
    return path


def test_a_manifest_is_read_here_and_the_gpu_is_taken_from_the_file(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = draw_folder(tmp_path, 12, side=64)
    (tmp_path / "images" / "00003.jpg").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["plan", "--manifest", manifest, "--bench", str(kept), "--cpus", "4096", "--json"]) == 0
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert told["probe"]["steps"]["failed"] == {"unsupported": 1}
    assert told["forecast"]["rows"] == told["manifest_rows"] == 12
    assert told["forecast"]["images_per_second"] == pytest.approx(301)
    assert told["probe"]["steps"]["file_bytes"] < 10_000
    assert "invented H100" in out
    assert "12 images of the manifest measured here, 1 of them not readable" in out
    assert sorted(tmp_path.rglob("*")) == before


def _of_a_cpu(result: dict[str, Any]) -> None:
    result["device"] |= {"kind": "cpu", "gpus": 0}


def _quick(result: dict[str, Any]) -> None:
    result["settings"]["quick"] = True


def _unfinished(result: dict[str, Any]) -> None:
    result["complete"] = False


def _without_count(result: dict[str, Any]) -> None:
    del result["device"]["gpus"]


def _of_another_format(result: dict[str, Any]) -> None:
    result["format"] = report.FORMAT + 1


def _without_pipeline(result: dict[str, Any]) -> None:
    result["rows"]["pipeline"] = result["rows"]["pipeline"][1:]


def _without_typical(result: dict[str, Any]) -> None:
    result["rows"]["read"] = [row for row in result["rows"]["read"] if row["name"] != read.TYPICAL][:1]


def _without_sizes(result: dict[str, Any]) -> None:
    for row in result["rows"]["read"]:
        del row["file_bytes"]


def _without_settings(result: dict[str, Any]) -> None:
    del result["settings"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_of_a_cpu, "is of a machine without a GPU (invented H100); take a result of chexmask-u bench --device cuda"),
        (_quick, "is of --quick"),
        (_unfinished, "is unfinished"),
        (_without_count, "does not say how many GPUs"),
        (_of_another_format, "is no result of chexmask-u bench in format"),
        (_without_pipeline, "has no row 'pipeline, bounded by prediction'"),
        (_without_sizes, "does not say 'file_bytes'"),
        (_without_settings, "does not say 'settings'"),
        (_without_typical, "has no row 'JPEG, 3000 x 2500'"),
    ],
)
def test_a_result_that_says_nothing_of_a_gpu_is_refused(
    kept: Path, damage: Callable[[dict[str, Any]], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = h100()
    damage(result)
    kept.write_text(json.dumps(result))
    refused([], kept, words, capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--samples", "20"], "the network was timed with --samples 50 --precision float32"),
        (["--weights", "w.safetensors"], "--weights goes without --bench"),
        (["--device", "cpu"], "--device goes without --bench"),
        (["--manifest", "no.parquet"], "no.parquet"),
    ],
)
def test_what_does_not_go_with_a_result_is_refused(
    kept: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(flags, kept, words, capsys)


@pytest.mark.parametrize("text", [None, "no JSON", "[1, 2]", '{"format": 1}'])
def test_what_is_no_result_is_refused(kept: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    kept.unlink()
    if text is not None:
        kept.write_text(text)
    refused([], kept, "no such file" if text is None else "chexmask-u bench", capsys)


def refused(flags: list[str], file: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--bench", str(file), *flags]) == cli.BAD_INPUT
    (message,) = capsys.readouterr().err.splitlines()
    assert words in message


def test_a_forecast_needs_one_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan"]) == cli.BAD_INPUT
    assert "--manifest is needed" in capsys.readouterr().err


def test_a_result_of_ones_own_images_is_forecast_from_too() -> None:
    result = h100()
    result["rows"]["pipeline"][1]["name"] = report.READING_GIVEN
    probe = BenchResult("invented.json", result).probe(replace(STEPS, read_seconds=0.02))
    assert probe.steps.read_seconds == 0.02
    assert probe.reached["cores"] == pytest.approx(0.86)
    assert isinstance(probe, elsewhere.There)
