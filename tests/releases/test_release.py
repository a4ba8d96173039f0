"""A release is one immutable, checked version of a complete run, and `datasets` opens it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

import chexmask_u as cu
from chexmask_u import pipeline
from chexmask_u.errors import InputError
from chexmask_u.releases import plan, shards
from chexmask_u.releases.release import ATTEMPT, MARKER
from chexmask_u.releases.validate import validate
from chexmask_u.runs import repair
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings, ReleaseSettings
from tests.support import invented_runs
from tests.support.hospitals import FinishedRun


@pytest.fixture(scope="module")
def run(hospitals: FinishedRun) -> str:
    """A finished run over two sources, three images of each damaged."""
    return str(hospitals.settings.output)


@pytest.fixture(scope="module")
def released(run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("versions")
    pipeline.make_release(ReleaseSettings(run=run, output=str(output), version="v1.0.0", rows_per_shard=12))
    return output / "v1.0.0"


@pytest.fixture
def copy(released, tmp_path) -> Path:
    return Path(shutil.copytree(released, tmp_path / "v1.0.0"))


def test_datasets_opens_it_by_config_streaming_or_not(released, run, tmp_path):
    rows = {row["record_id"]: row for row in Run(run).dataset().to_table().to_pylist()}
    for source, count in (("hospital-a", 30), ("hospital-b", 7)):
        eager = datasets.load_dataset(str(released), source, split="train", cache_dir=str(tmp_path)).with_format(
            "numpy"
        )
        streamed = list(datasets.load_dataset(str(released), source, split="train", streaming=True))
        assert len(eager) == len(streamed) == count
        names = sorted(record_id for record_id in rows if record_id.startswith(f"{source}/image"))
        assert list(eager["record_id"][:]) == names
        assert eager[:]["landmarks_mean"].shape == (count, 120, 2)
        for record, stream in zip(eager, streamed, strict=True):
            expected = rows[record["record_id"]]
            assert record["landmarks_mean"].shape == np.array(stream["landmarks_mean"]).shape == (120, 2)
            np.testing.assert_array_equal(record["landmarks_mean"], np.array(expected["landmarks_mean"], np.float32))
            np.testing.assert_array_equal(stream["landmarks_std"], expected["landmarks_std"])
            assert stream["letterbox"] == expected["letterbox"]


def test_masks_are_joined_by_record_id_and_decode(released, tmp_path):
    landmarks = datasets.load_dataset(str(released), "hospital-a", split="train", cache_dir=str(tmp_path))
    masks = datasets.load_dataset(str(released), "hospital-a-masks", split="train", cache_dir=str(tmp_path))
    assert landmarks["record_id"][:] == masks["record_id"][:]
    for record, mask in zip(landmarks, masks, strict=True):
        size = (record["height"], record["width"])
        for organ in cu.ORGANS:
            expected = cu.organ_mask(np.array(record["landmarks_mean"]), organ, *size)
            np.testing.assert_array_equal(cu.rle_decode(mask[organ], *size), expected)


def test_failures_are_listed_with_their_reason_and_nothing_of_the_storage(released, run, tmp_path):
    failures = datasets.load_dataset(str(released), "failures", split="train", cache_dir=str(tmp_path))
    assert sorted(failures["reason"]) == ["damaged", "damaged", "empty", "empty", "unsupported", "unsupported"]
    folder = str(Path(run).parent)
    assert not [file for file in released.rglob("*") if file.is_file() and folder.encode() in file.read_bytes()]


def test_the_same_run_gives_the_same_bytes(released, run, tmp_path):
    pipeline.make_release(ReleaseSettings(run=run, output=str(tmp_path), version="v1.0.0", rows_per_shard=12))
    files = sorted(file.relative_to(released) for file in released.rglob("*") if file.is_file())
    assert len(files) == 14
    for file in files:
        assert (released / file).read_bytes() == (tmp_path / "v1.0.0" / file).read_bytes(), file


def test_masks_are_written_group_by_group_from_the_files_that_hold_them(tmp_path, monkeypatch):
    run = Path(invented_runs.make_run(tmp_path / "run", {"a": invented_runs.Records(ok=range(23))}))
    whole = pq.read_table(run / "records" / "part_000000-0.parquet")
    # Parts whose ids lie between each other's, and one that a shard has nothing of.
    order = np.random.default_rng(0).permutation(20)
    for index, rows in enumerate((order[:9], order[9:], [20, 21, 22])):
        part = whole.take(pa.array(rows))
        pq.write_table(part, run / "records" / f"part_{index:06d}-0.parquet")
        pq.write_table(part.select(["record_id"]), run / "checkpoint" / f"part_{index:06d}.parquet")
    monkeypatch.setattr(shards, "MASK_ROWS_PER_GROUP", 4)
    invented_runs.make_release(str(run), str(tmp_path / "out"), rows_per_shard=10)
    released = tmp_path / "out" / "v1.0.0"
    validate(str(released))
    files = [pq.ParquetFile(path) for path in sorted((released / "a").glob("masks-*"))]
    groups = [[file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] for file in files]
    assert groups == [[4, 4, 2], [4, 4, 2], [3]]
    columns = ["record_id", "height", "width", *cu.ORGANS]
    expected = whole.filter(pc.equal(whole["status"], "ok")).select(columns).sort_by("record_id")
    assert pa.concat_tables([file.read() for file in files]).to_pylist() == expected.to_pylist()


def test_counts_add_up_and_validate_agrees(released):
    content = validate(str(released)).content
    assert content["counts"] == {"hospital-a": {"ok": 30, "failed": 3}, "hospital-b": {"ok": 7, "failed": 3}}
    assert content["failures"] == {"damaged": 2, "empty": 2, "unsupported": 2}
    assert content["manifest"]["rows"] == 43


def test_a_version_never_changes(released, run):
    settings = ReleaseSettings(run=run, output=str(released.parent), version="v1.0.0")
    with pytest.raises(InputError, match="exists with other content, and a release never changes"):
        pipeline.make_release(settings)
    with pytest.raises(InputError, match=r"vX\.Y\.Z"):
        pipeline.make_release(replace(settings, version="1.0"))


def test_failed_images_can_be_made_to_stop_a_release(run, tmp_path):
    settings = ReleaseSettings(run=run, output=str(tmp_path), allow_failed=5)
    with pytest.raises(InputError, match="6 images failed, more than --allow-failed 5"):
        pipeline.make_release(settings)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_run_is_not_released(run, tmp_path):
    half = Path(shutil.copytree(run, tmp_path / "run"))
    part = sorted((half / "checkpoint").glob("*.parquet"))[0]
    lost = pq.read_metadata(part).num_rows
    part.unlink()
    with pytest.raises(InputError, match=f"{lost} of 43 images have no record yet"):
        pipeline.make_release(ReleaseSettings(run=str(half), output=str(tmp_path / "out")))


def test_a_part_that_a_killed_writer_left_behind_is_not_released(run, tmp_path):
    stray = Path(shutil.copytree(run, tmp_path / "run"))
    part = sorted((stray / "records").glob("*.parquet"))[0]
    shutil.copy(part, part.with_name("0000killed_000000-0.parquet"))
    content = pipeline.make_release(ReleaseSettings(run=str(stray), output=str(tmp_path / "out")))
    assert sum(counts["ok"] + counts["failed"] for counts in content["counts"].values()) == 43


def test_a_part_that_is_damaged_or_lost_is_named_and_made_again(run, tmp_path):
    """A disk or a person can change or take a file that was committed: nothing calls it done; `generate` heals it."""
    hurt = Path(shutil.copytree(run, tmp_path / "run"))
    part = max((hurt / "records").iterdir(), key=lambda path: path.stat().st_size)
    rows = pq.read_metadata(part).num_rows
    to_release = ReleaseSettings(run=str(hurt), output=str(tmp_path / "out"))
    invented_runs.flip_a_bit(part)
    with pytest.raises(InputError, match=f"{part.name}: a part of the run's records is damaged"):
        pipeline.make_release(to_release)
    aside = part.rename(tmp_path / "aside")
    for damage in (lambda: None, lambda: truncate(aside.rename(part))):
        damage()
        with pytest.raises(InputError, match=r"lost or damaged.*same `generate` command"):
            pipeline.make_release(to_release)
    assert not list((tmp_path / "out").rglob("release.json"))
    settings = json.loads((hurt / "run.json").read_text())["settings"] | {"output": str(hurt), "retry": ()}
    summary = pipeline.generate(GenerateSettings(**settings))
    assert summary["complete"]
    assert rows <= 43 - summary["already_done"] < 43
    content = pipeline.make_release(to_release)
    assert sum(counts["ok"] + counts["failed"] for counts in content["counts"].values()) == 43


def test_a_part_that_another_was_copied_over_is_a_lost_one(run, tmp_path):
    hurt = Path(shutil.copytree(run, tmp_path / "run"))
    parts = (hurt / "records").glob("*.parquet")
    other, *_, original = sorted(parts, key=lambda part: pq.read_metadata(part).num_rows)
    # As many rows as were there.
    pq.write_table(pq.read_table(original).slice(0, pq.read_metadata(other).num_rows), other)
    with pytest.raises(InputError, match=r"1 parts of its records are lost .*run the same `generate` command again"):
        pipeline.make_release(ReleaseSettings(run=str(hurt), output=str(tmp_path / "out")))


class FailingStorage(LocalFileSystem):
    """A disk that refuses to open files so many times, as a busy object store does."""

    failures = 0

    def _open(self, *args, **kwargs):
        if self.failures:
            self.failures -= 1
            raise OSError("503 slow down")
        return super()._open(*args, **kwargs)


def test_a_storage_that_fails_is_not_taken_for_a_lost_part(run):
    """What is lost is deleted and made again: an outage must not do that to good parts."""
    part = str(sorted(Path(run, "records").glob("*.parquet"))[0])
    failing = FailingStorage(skip_instance_cache=True)
    fs = pafs.PyFileSystem(pafs.FSSpecHandler(failing))
    failing.failures = 1
    assert repair._told(fs, part).rows == pq.read_metadata(part).num_rows
    failing.failures = 2
    with pytest.raises(OSError, match="503"):
        repair._told(fs, part)


def test_other_peoples_files_are_left_alone(run, tmp_path):
    (tmp_path / "v1.0.0" / "deep").mkdir(parents=True)
    precious = [tmp_path / "v1.0.0" / "precious.parquet", tmp_path / "v1.0.0" / "deep" / "masks-00000-of-00001.parquet"]
    for file in precious:
        file.write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        pipeline.make_release(ReleaseSettings(run=run, output=str(tmp_path)))
    assert [file.read_text() for file in precious] == ["mine", "mine"]


def test_an_unfinished_attempt_is_written_over(run, tmp_path):
    settings = ReleaseSettings(run=run, output=str(tmp_path))
    pipeline.make_release(settings)
    (tmp_path / "v1.0.0" / MARKER).unlink()
    (tmp_path / "v1.0.0" / ATTEMPT).write_text("killed")
    pipeline.make_release(settings)
    validate(str(tmp_path / "v1.0.0"))


def test_of_two_releases_of_one_version_one_stops(run, tmp_path):
    settings = ReleaseSettings(run=run, output=str(tmp_path))
    first = plan.plan(Run(run), settings)
    second = plan.plan(Run(run), settings)
    with pytest.raises(InputError, match="another release of this version is under way"):
        shards.write_shard(Run(run), first, first.shards[0])
    shards.finish(second, [shards.write_shard(Run(run), second, shard) for shard in second.shards])
    validate(str(tmp_path / "v1.0.0"))


def test_an_output_that_cannot_be_written_is_named(run):
    with pytest.raises(InputError, match="cannot be written"):
        pipeline.make_release(ReleaseSettings(run=run, output="/proc/releases"))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["hospital-a/landmarks-00001-of-00003.parquet", "hospital-b/masks-00000-of-00001.parquet"]
)
@pytest.mark.parametrize(
    ("damage", "words"),
    [(Path.unlink, "is missing"), (truncate, "truncated or edited"), (flip, "sha256")],
)
def test_a_lost_cut_or_edited_file_is_named(copy, name, damage, words):
    damage(copy / name)
    with pytest.raises(InputError, match=words) as caught:
        validate(str(copy))
    assert name in str(caught.value)
    assert str(caught.value).endswith("copy the release anew, or make it again from its run")


def test_a_folder_of_versions_is_told_from_one(copy):
    with pytest.raises(InputError, match=r"holds the versions v1\.0\.0; name one of them"):
        validate(str(copy.parent))


def test_a_release_without_its_marker_is_none(copy):
    (copy / MARKER).unlink()
    with pytest.raises(InputError, match="never finished"):
        validate(str(copy))


def test_a_file_that_does_not_belong_is_named(copy):
    (copy / "hospital-a" / "patients.csv").write_text("name\n")
    with pytest.raises(InputError, match=r"patients\.csv"):
        validate(str(copy))


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("record_id", lambda values: [values[0], *values[:-1]], "not sorted, or occur twice"),
        ("landmarks_std", lambda values: [[[-1.0, 1.0]] * 120, *values[1:]], "negative"),
        ("landmarks_across", lambda values: [[-1.0] * 120, *values[1:]], "negative"),
        ("landmarks_across", lambda values: [None, *values[1:]], r"landmarks_across of .* is null, .* before; make it"),
        ("landmarks_mean", lambda values: [[[float("nan"), 1.0]] * 120, *values[1:]], "not finite"),
    ],
)
def test_wrong_content_is_found_even_behind_right_checksums(copy, column, change, words):
    """As if the release had been written wrongly, and not damaged later."""
    import hashlib

    import pyarrow as pa

    name = "hospital-b/landmarks-00000-of-00001.parquet"
    table = pq.read_table(copy / name)
    field = table.schema.field(column)
    values = pa.array(change(table[column].to_pylist()), field.type)
    pq.write_table(table.set_column(table.schema.get_field_index(column), field, values), copy / name)
    marker = json.loads((copy / MARKER).read_text())
    for file in marker["files"]:
        if file["path"] == name:
            file["bytes"] = (copy / name).stat().st_size
            file["sha256"] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    (copy / MARKER).write_text(json.dumps(marker))
    with pytest.raises(InputError, match=words):
        validate(str(copy))
