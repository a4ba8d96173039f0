"""`--retry`: failed images of some reasons are done again; wherever that is killed, no record is lost or twice."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from ray.data.checkpoint.checkpoint_filter import _clean_pending_checkpoints_task

from chexmask_u import cli, pipeline, record, storage
from chexmask_u.columns import landmark_array, latent_array
from chexmask_u.errors import InputError
from chexmask_u.manifests.folder import list_folder
from chexmask_u.runs import repair
from chexmask_u.runs.run import PENDING, Run
from chexmask_u.settings import GenerateSettings, ManifestFolderSettings
from tests.support.invented_runs import flip_a_bit
from tests.support.s3 import S3Server, own_bucket

REASONS = ["damaged", "timeout", "storage"]


class KilledError(Exception):
    """Where a step of the storage would have been."""


class FlakyFileSystem(LocalFileSystem):
    """Local files that are renamed as in an object store, by a copy and a deletion; every change after the last
    one allowed fails, as if the process had been killed.
    """

    protocol = "flaky"
    allowed = 10**9

    @classmethod
    def change(cls) -> None:
        if cls.allowed <= 0:
            raise KilledError
        cls.allowed -= 1

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            self.change()
        return super()._open(path, mode, **options)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        self.change()
        shutil.copyfile(path1, path2)
        self.change()
        Path(path1).unlink()

    def rm(self, path: str, *_: Any, **__: Any) -> None:
        self.change()
        Path(path).unlink()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Three parts as Ray Data writes them: one with failures of all kinds, one of failures alone, one without."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.allowed = 10**9
    rng = np.random.default_rng(0)
    reasons: dict[str, list[str | None]] = {
        "0abc_000000": [None, "damaged", None, "timeout", "storage", None, "timeout"],
        "1abc_000001": ["timeout", "timeout"],
        "2abc_000002": [None, "damaged", None],
    }
    for folder in ("records", "checkpoint"):
        (tmp_path / folder).mkdir()
    for name, outcomes in reasons.items():
        ids = [f"folder/{name}-{index}" for index in range(len(outcomes))]
        part = tmp_path / "records" / f"{name}_000000-0.parquet"
        pq.write_table(rows(ids, outcomes, rng), part, write_page_checksum=True)
        pq.write_table(pa.table({"record_id": ids}), tmp_path / "checkpoint" / f"{name}.parquet")
    yield Run(f"flaky://{tmp_path}")
    FlakyFileSystem.allowed = 10**9


def rows(ids: list[str], reasons: list[str | None], rng: np.random.Generator) -> pa.Table:
    good = [reason is None for reason in reasons]
    points = landmark_array([rng.random((120, 2), np.float32) if fine else None for fine in good])
    latents = latent_array([rng.random(64, np.float32) if fine else None for fine in good])
    columns: dict[str, Any] = {name: [None] * len(ids) for name in record.RECORD.names}
    columns |= dict.fromkeys(("record_id", "uri", "image_id"), ids)
    columns |= {
        "source": ["folder"] * len(ids),
        "status": [record.OK if fine else record.FAILED for fine in good],
        "reason": reasons,
        "landmarks_mean": points,
        "landmarks_std": points,
        "latent_mean": latents,
        "latent_std": latents,
        "heart": ["1 2 3 4" if fine else None for fine in good],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in record.RECORD], schema=record.RECORD)


def resume(run: Run) -> None:
    """What a rerun does before it asks which records there are: this code's repairs, and then Ray's."""
    repair.redo_lost(run)
    checkpoint_fs, checkpoint = storage.arrow_filesystem(run.checkpoint)
    records_fs, records = storage.arrow_filesystem(run.records)
    _clean_pending_checkpoints_task._function(checkpoint, checkpoint_fs, records, records_fs)


def stored(run: Run) -> list[dict[str, Any]]:
    """The run's records; they are what its checkpoint says, each once."""
    found = sorted(run.dataset().to_table().to_pylist(), key=lambda row: row["record_id"])
    fs, path = storage.arrow_filesystem(run.checkpoint)
    files = [info.path for info in fs.get_file_info(pa.fs.FileSelector(path)) if not info.path.endswith(PENDING)]
    committed = Counter(pads.dataset(files, filesystem=fs).to_table()["record_id"].to_pylist())
    assert Counter(row["record_id"] for row in found) == committed
    assert set(committed.values()) <= {1}
    return found


def files(run: Run) -> list[str]:
    folder = Path(run.url.removeprefix("flaky://"))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def test_rows_of_the_reason_are_taken_out_and_all_others_stay_as_they_were(run: Run) -> None:
    before = stored(run)
    assert repair.redo_failed(run, {"timeout"}) == 4
    assert stored(run) == [row for row in before if row["reason"] != "timeout"]
    names = files(run)
    # Two parts with their checkpoints, one of them untouched; nothing else is left.
    assert len(names) == 4
    assert "records/2abc_000002_000000-0.parquet" in names
    assert repair.redo_failed(run, {"timeout"}) == 0
    assert files(run) == names


def test_several_reasons_are_taken_out_at_once(run: Run) -> None:
    before = stored(run)
    assert repair.redo_failed(run, {"damaged", "storage"}) == 3
    assert stored(run) == [row for row in before if row["reason"] in (None, "timeout")]


def test_wherever_a_retry_is_killed_a_rerun_finds_every_record_at_most_once_and_can_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One part after another, so that each count is one place.
    monkeypatch.setattr(repair, "_REWRITERS", 1)
    before = {row["record_id"]: row for row in stored(run)}
    to_do = {name for name, row in before.items() if row["reason"] == "timeout"}
    part = {name for name in before if "0abc" in name}
    start = Path(run.url.removeprefix("flaky://"))
    copy = start.with_name("copy")
    shutil.copytree(start, copy)
    killed = 0
    while True:
        shutil.rmtree(start)
        shutil.copytree(copy, start)
        FlakyFileSystem.allowed = killed
        try:
            repair.redo_failed(run, {"timeout"})
        except KilledError:
            FlakyFileSystem.allowed = 10**9
        else:
            break
        resume(run)
        found = {row["record_id"]: row for row in stored(run)}
        # At most one part is to be done again, besides the failures that are.
        assert before.keys() - found.keys() <= to_do | part
        assert all(before[name] == row for name, row in found.items())
        repair.redo_failed(run, {"timeout"})
        resume(run)
        found = {row["record_id"]: row for row in stored(run)}
        assert not to_do & found.keys()
        assert before.keys() - found.keys() <= to_do | part
        committed = {Path(name).stem for name in files(run) if name.startswith("checkpoint")}
        assert {Path(name).stem.split("_000000-0")[0] for name in files(run) if "records" in name} == committed
        killed += 1
    # The first part takes two files, two renames of two steps, and two deletions; the second a rename and those.
    assert killed == 8 + 4


def test_a_damaged_part_is_named_and_gets_no_new_checksum(run: Run) -> None:
    parts = Path(run.records.removeprefix("flaky://")).iterdir()
    part = max(parts, key=lambda path: path.stat().st_size)
    flip_a_bit(part)
    content = part.read_bytes()
    with pytest.raises(InputError, match=rf"{part.name}: a part of the run's records is damaged.*delete it"):
        repair.redo_failed(run, {"damaged", "timeout"})
    assert part.read_bytes() == content


def test_a_checkpoint_that_a_power_cut_left_empty_is_a_lost_part(run: Run) -> None:
    rows = run.committed_rows()
    checkpoint = sorted(Path(run.checkpoint.removeprefix("flaky://")).iterdir())[0]
    left = rows - pq.read_metadata(checkpoint).num_rows
    checkpoint.write_bytes(b"")
    assert repair.redo_lost(run) == 1
    assert (run.committed_rows(), run.dataset().count_rows()) == (left, left)
    assert not checkpoint.exists()


def test_a_part_that_is_gone_or_cut_is_done_again(run: Run) -> None:
    before = stored(run)
    gone, cut = sorted(Path(run.records.removeprefix("flaky://")).iterdir())[:2]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-100])
    assert repair.redo_lost(run) == 2
    assert stored(run) == [row for row in before if "2abc" in row["record_id"]]


@pytest.mark.parametrize("foreign", [False, True], ids=["of the same run", "of another run"])
def test_a_part_that_another_one_was_written_over_is_done_again(run: Run, foreign: bool) -> None:
    before = stored(run)
    folder = Path(run.records.removeprefix("flaky://"))
    over, other = (folder / f"{name}_000000-0.parquet" for name in ("2abc_000002", "0abc_000000"))
    again = pq.read_table(other).slice(0, 3)
    if foreign:
        ids = pa.array([f"other/{number}" for number in range(3)])
        again = again.set_column(0, again.schema.field(0), ids)
    pq.write_table(again, over, write_page_checksum=True)
    assert repair.redo_lost(run) == 1
    assert stored(run) == [row for row in before if "2abc" not in row["record_id"]]


def test_a_commit_that_was_killed_between_copy_and_deletion_keeps_its_records(run: Run) -> None:
    before = stored(run)
    folder = Path(run.url.removeprefix("flaky://")) / "checkpoint"
    shutil.copy(folder / "0abc_000000.parquet", folder / "0abc_000000.pending.parquet")
    resume(run)
    assert stored(run) == before


@pytest.mark.parametrize("value", ["dammaged", "timeout,nonsense", "", "OK"])
def test_an_unknown_reason_is_refused_with_those_there_are(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--manifest", "m", "--output", "o", "--retry", value]) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--retry" in line
    assert all(reason in line for reason in ("all", *record.REASONS))


def test_reasons_are_repeated_or_listed() -> None:
    settings = GenerateSettings(retry=("timeout, damaged", "storage"))
    assert settings.retried_reasons() == {"timeout", "damaged", "storage"}
    assert GenerateSettings(retry=("all",)).retried_reasons() == set(record.REASONS)
    assert GenerateSettings().retried_reasons() == set()
    with pytest.raises(InputError):
        GenerateSettings(retry=("every",))


def picture(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (200, 240), np.uint8)
    return cv2.imencode(".png", cv2.blur(image, (9, 9)))[1].tobytes()


def test_a_run_on_an_object_store_is_retried_alike(run: Run, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_bucket(s3, "retry") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        there = Run(f"{server.url}/run")
        server.filesystem().put(run.url.removeprefix("flaky://"), there.url.removeprefix("s3://"), recursive=True)
        before = stored(there)
        assert len(before) == 12
        assert repair.redo_failed(there, {"timeout"}) == 4
        assert stored(there) == [row for row in before if row["reason"] != "timeout"]
        assert len([name for name in server.filesystem().find(there.url) if not name.endswith("/")]) == 4


def test_images_that_were_repaired_are_ok_after_a_retry(
    tmp_path: Path, tiny_weights: Path, local_ray: object, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(30):
        (images / f"{index:02}.png").write_bytes(picture(index))
    for index in (3, 17):
        (images / f"{index:02}.png").write_bytes(picture(index)[:-40])
    (images / "11.png").write_bytes(b"")
    (images / "12.png").write_bytes(b"text")
    manifest = str(tmp_path / "m.parquet")
    list_folder(ManifestFolderSettings(uri=str(images), output=manifest))
    weights = tmp_path / "training" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(tiny_weights.read_bytes())
    weights.with_name("calibration.json").write_text("{}")
    settings = GenerateSettings(
        manifest=manifest, output=str(tmp_path / "run"), weights=str(weights), samples=3, rows_per_file=10
    )
    first = pipeline.generate(settings)
    # The report is a worker's, whose stderr nobody sees.
    assert capsys.readouterr().err.count("calibration.json beside the weights is not used: ") == 1
    assert {reason: found["images"] for reason, found in first["failures"].items()} == {
        "damaged": 2,
        "empty": 1,
        "unsupported": 1,
    }
    before = by_id(settings)
    for index in (3, 12):
        (images / f"{index:02}.png").write_bytes(picture(index))
    again = pipeline.generate(replace(settings, retry=("damaged",)))
    assert (again["ok"], again["failed"], again["complete"], again["already_done"]) == (27, 3, True, 28)
    after = by_id(settings)
    assert after["folder/03.png"]["status"] == "ok"
    assert after["folder/17.png"]["reason"] == "damaged"
    # It was not asked for, though it is an image by now.
    assert after["folder/12.png"]["reason"] == "unsupported"
    assert {name: row for name, row in after.items() if before[name]["reason"] != "damaged"} == {
        name: row for name, row in before.items() if row["reason"] != "damaged"
    }


def by_id(settings: GenerateSettings) -> dict[str, dict[str, Any]]:
    table = Run(str(settings.output)).dataset().to_table().to_pylist()
    assert len({row["record_id"] for row in table}) == len(table) == 30
    return {row["record_id"]: row for row in table}
