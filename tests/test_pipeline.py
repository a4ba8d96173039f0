"""A run over a folder: in = ok + failed, the numbers of each image, and runs that go on where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

import chexmask_u as cu
from chexmask_u import cli, pipeline, record
from chexmask_u.errors import InputError
from chexmask_u.manifests.folder import list_folder
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings, ManifestFolderSettings
from tests.support import apart
from tests.support.hospitals import DAMAGED, HOSPITALS, FinishedRun, draw_images


@pytest.fixture(scope="module")
def settings(hospitals: FinishedRun) -> GenerateSettings:
    return hospitals.settings


def records(output: str | Path) -> dict[str, dict]:
    table = Run(str(output)).dataset().to_table()
    rows = table.to_pylist()
    assert len({row["record_id"] for row in rows}) == len(rows), "a record is there twice"
    return {row["record_id"]: row for row in rows}


def test_every_image_is_one_record_and_the_damaged_ones_say_why(hospitals, settings):
    rows = records(settings.output)
    manifest = pq.read_table(settings.manifest)
    assert rows.keys() == set(manifest["record_id"].to_pylist())
    failed = {row["record_id"]: row["reason"] for row in rows.values() if row["status"] == record.FAILED}
    assert failed == {f"{hospital}/{name}": reason for hospital in HOSPITALS for name, reason in DAMAGED.items()}
    assert all(rows[record_id]["error"] for record_id in failed)
    summary = hospitals.summary
    assert (summary["ok"], summary["failed"], summary["complete"]) == (37, 6, True)
    report = json.loads(Path(settings.output, "report.json").read_text())
    assert report["ok"] + report["failed"] == report["manifest_rows"] == 43
    assert "image-00" in Path(settings.output, "report.html").read_text()


def test_records_are_what_predict_gives_for_each_image_alone(hospitals, settings):
    """The steps, by hand, on one image at a time: other batches, other workers, same numbers, in original pixels."""
    model = cu.load_model(settings.weights)
    rows = records(settings.output)
    masks = []
    for record_id in ("hospital-a/image-0006.jpg", "hospital-a/image-0023.png", "hospital-b/image-0003.png"):
        path = str(hospitals.folder / record_id)
        read = cu.read_image(path)
        predicted = cu.predict(model, read.image[None], [record_id], n_samples=5)
        row = rows[record_id]
        assert (row["height"], row["width"]) == cv2.imread(path, 0).shape
        letterbox = cu.Letterbox.from_row(row["letterbox"])
        frame = letterbox.to_frame(np.array(row["landmarks_mean"]))
        np.testing.assert_allclose(frame, predicted.landmarks_mean[0], atol=0.01)
        np.testing.assert_allclose(
            np.array(row["landmarks_std"]) * letterbox.scale, predicted.landmarks_std[0], atol=0.01
        )
        for organ in cu.ORGANS:
            mask = cu.organ_mask(np.array(row["landmarks_mean"]), organ, row["height"], row["width"])
            assert row[organ] == cu.rle_encode(mask)
            masks.append(row[organ])
    assert sum(bool(mask) for mask in masks) > len(masks) / 2


def test_more_replicas_and_other_batches_give_the_same_records(settings, tmp_path):
    from dataclasses import replace

    other = replace(settings, output=str(tmp_path / "run"), replicas=2, batch_size=3, rows_per_file=7)
    pipeline.generate(other)
    first, second = records(settings.output), records(other.output)
    assert first.keys() == second.keys()
    for record_id, row in first.items():
        assert row["reason"] == second[record_id]["reason"]
        if row["status"] == record.OK:
            np.testing.assert_allclose(row["landmarks_mean"], second[record_id]["landmarks_mean"], atol=0.01)
            np.testing.assert_allclose(row["landmarks_std"], second[record_id]["landmarks_std"], atol=0.01)


def test_a_finished_run_says_so_without_ray_and_is_not_run_again(settings, tmp_path):
    before = sorted(Path(settings.output).rglob("*"))
    options = {"manifest": settings.manifest, "output": settings.output, "weights": settings.weights}
    again = [
        *("generate", "--samples", "5", "--rows-per-file", "8", "--json"),
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    plain, retried = apart.run([again, [*again, "--retry", "timeout,storage"]], tmp_path)
    for outcome in (plain, retried):
        assert (outcome.code, outcome.with_ray) == (0, False), outcome.stderr
        summary = json.loads(outcome.stdout.splitlines()[-1])
        assert (summary["already_done"], summary["complete"]) == (43, True)
        assert "is finished, and nothing is done again" in outcome.stderr
    assert "no image failed for a reason that --retry names (storage, timeout)" in retried.stderr
    assert sorted(Path(settings.output).rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 6}, "--samples was 5, now 6"),
        ({"seed": 1}, "--seed was 0, now 1"),
        ({"weights": "demo"}, "weights sha256 was"),
    ],
)
def test_a_run_with_other_settings_is_refused_and_left_alone(settings, change, words, capsys):
    options = settings.asdict() | change
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value not in (None, ())]
    before = sorted(Path(settings.output).rglob("*"))
    assert cli.main(["generate", *flags]) == cli.BAD_INPUT
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    assert words in message
    assert sorted(Path(settings.output).rglob("*")) == before


@pytest.mark.parametrize("name", ["what?", "two\nlines"])
def test_an_output_whose_files_ray_would_not_find_again_is_refused(settings, tmp_path, name, capsys):
    flags = ["--manifest", settings.manifest, "--output", str(tmp_path / name)]
    assert cli.main(["generate", *flags]) == cli.BAD_INPUT
    assert "choose another" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_manifest_in_the_same_output_is_refused(settings, tmp_path):
    from dataclasses import replace

    table = pq.read_table(settings.manifest)
    pq.write_table(table.slice(0, 5), tmp_path / "fewer.parquet")
    with pytest.raises(InputError, match="manifest sha256 was"):
        pipeline.generate(replace(settings, manifest=str(tmp_path / "fewer.parquet")))


# Each is a start of Ray, which a busy machine takes a minute for.
@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)])
def test_a_run_that_is_stopped_again_and_again_ends_with_each_record_once(signals, tiny_weights, tmp_path):
    """Drivers of their own, each stopped after it committed a part; the same command then finishes the run."""
    count = 60 * (len(signals) + 1)
    draw_images(tmp_path / "images", count, np.random.default_rng(1))
    list_folder(ManifestFolderSettings(uri=str(tmp_path / "images"), output=str(tmp_path / "m.parquet")))
    run = Run(str(tmp_path / "run"))
    command = [sys.executable, "-m", "chexmask_u.cli", "generate"]
    command += ["--manifest", str(tmp_path / "m.parquet"), "--output", run.url, "--weights", str(tiny_weights)]
    # Many draws make the run long enough to be stopped in the middle.
    command += ["--samples", "200", "--rows-per-file", "32", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = 0
    for number in signals:
        code = -number if number == signal.SIGKILL else 1
        driver = subprocess.Popen(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # A shell that started the tests in the background has them ignore it, and their children too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 120
        while run.committed_rows() == done:
            assert driver.poll() is None, driver.stderr.read().decode()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(number)
        stderr = driver.communicate(timeout=30)[1].decode()
        assert driver.returncode == code, stderr[-2000:]
        assert done < run.committed_rows() < count + len(DAMAGED)
        done = run.committed_rows()
        if code == 1:
            assert "the same command goes on where it stopped" in stderr
    last = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert last.returncode == 0, last.stderr[-2000:]
    summary = json.loads(last.stdout.splitlines()[-1])
    assert summary["already_done"] >= done
    assert (summary["ok"], summary["failed"]) == (count, len(DAMAGED))
    assert len(records(run.url)) == count + len(DAMAGED)


@pytest.mark.parametrize("lost", [False, True], ids=["one part more", "as many rows as there should be"])
def test_parts_that_a_cut_off_machine_wrote_again_are_not_counted_twice(settings, tmp_path, lost, capsys):
    from dataclasses import replace

    output = tmp_path / "run"
    shutil.copytree(settings.output, output)
    parts = {path.stem: pq.read_metadata(path).num_rows for path in (output / "checkpoint").glob("*.parquet")}
    small, *_, large = sorted(parts, key=parts.__getitem__)
    for folder in ("checkpoint", "records"):
        (file,) = (output / folder).glob(f"{large}*")
        again = pq.read_table(file).slice(0, parts[small])
        pq.write_table(again, file.with_name(file.name.replace(large, "written-again")))
        for other in (output / folder).glob(f"{small}*") if lost else ():
            other.unlink()
    (output / "report.json").unlink()
    summary = pipeline.generate(replace(settings, output=str(output)))
    assert (summary["complete"], summary["left"]) == (True, 0)
    assert records(output).keys() == records(settings.output).keys()
    already = summary["already_done"]
    if already < 43:
        told = capsys.readouterr().err
        assert f"{already} of 43 images are done already, {43 - already} are left" in told
        # Those of the attempt before this one, too.
        assert "6 failed" in told.splitlines()[-1]
        page = (output / "report.html").read_text()
        assert f"for the {43 - already} of the last attempt" in page
