"""The next version follows from what changed, whoever names it; sources can be left out of a release."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexmask_u import record
from chexmask_u.errors import InputError
from chexmask_u.releases import plan, versions
from chexmask_u.releases.release import MARKER
from chexmask_u.releases.validate import validate
from chexmask_u.runs.run import Run
from chexmask_u.settings import ReleaseSettings
from tests.support import invented_runs
from tests.support.invented_runs import Records

KINDS = {"a": Records(range(12), {12: "damaged"}), "b": Records(range(3))}


@pytest.fixture
def run(tmp_path) -> str:
    return invented_runs.make_run(tmp_path / "run", KINDS)


@pytest.fixture
def output(tmp_path, run) -> Path:
    """Holds v1.0.0 of the run."""
    invented_runs.make_release(run, str(tmp_path / "releases"), rows_per_shard=5)
    return tmp_path / "releases"


def release_again(run: str, output: Path, **settings) -> str:
    return invented_runs.make_release(run, str(output), **({"rows_per_shard": 5} | settings))["version"]


def other_run(folder: Path, seed: int = 0, **kinds: Records) -> str:
    return invented_runs.make_run(folder / "other", KINDS | kinds, seed=seed)


def test_the_first_version_is_v1_0_0_or_what_one_says(run, tmp_path):
    assert release_again(run, tmp_path / "x") == "v1.0.0"
    assert release_again(run, tmp_path / "y", version="v0.3.0") == "v0.3.0"
    assert release_again(other_run(tmp_path, seed=1), tmp_path / "y") == "v0.4.0"


def test_new_numbers_are_a_minor_version(output, tmp_path):
    assert release_again(other_run(tmp_path, seed=1), output) == "v1.1.0"


def test_one_landmark_of_one_record_is_a_new_number(output, tmp_path):
    """Weights, seed, manifest rows and counts are as they were: only the bytes tell."""
    moved = Records(range(12), {12: "damaged"}, moved={11: 0.001})
    assert release_again(other_run(tmp_path, a=moved), output) == "v1.1.0"


def test_another_mask_of_the_same_landmarks_is_a_new_number(output, tmp_path):
    """As when another OpenCV draws them."""
    run = other_run(tmp_path)
    part = Path(run, "records", "part_000000-0.parquet")
    table = pq.read_table(part)
    hearts = ["1 2", *table["heart"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("heart"), table.schema.field("heart"), [hearts]), part)
    assert release_again(run, output) == "v1.1.0"


def test_a_record_more_is_a_minor_version(output, tmp_path):
    assert release_again(other_run(tmp_path, b=Records(range(4))), output) == "v1.1.0"


def test_other_words_about_the_same_numbers_are_a_patch(output, tmp_path):
    assert release_again(other_run(tmp_path, a=Records(range(12), {12: "timeout"})), output) == "v1.0.1"


def test_another_schema_is_a_major_version(output, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SCHEMA_VERSION", "2.0")
    assert release_again(other_run(tmp_path, seed=1), output) == "v2.0.0"


def test_the_newest_version_counts_and_unfinished_ones_do_not(output, tmp_path):
    assert release_again(other_run(tmp_path / "1", seed=1), output) == "v1.1.0"
    for minor in range(2, 11):
        shutil.copytree(output / "v1.1.0", output / f"v1.{minor}.0")
        marker = output / f"v1.{minor}.0" / MARKER
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": f"v1.{minor}.0"}))
    (output / "v3.0.0").mkdir()
    (output / "notes").mkdir()
    assert release_again(other_run(tmp_path / "2", seed=2), output) == "v1.11.0"


def test_what_lies_where_the_next_version_goes_is_left_alone(output, tmp_path):
    (output / "v1.1.0").mkdir()
    (output / "v1.1.0" / "precious.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"v1\.1\.0: holds other files"):
        release_again(other_run(tmp_path, seed=1), output)
    assert (output / "v1.1.0" / "precious.parquet").read_text() == "mine"


@pytest.mark.parametrize("wrong", ["v1.0.1", "v1.2.0", "v2.0.0", "v0.9.0"])
def test_a_version_that_does_not_follow_is_refused_with_the_one_that_does(output, tmp_path, wrong):
    run = other_run(tmp_path, seed=1)
    with pytest.raises(InputError, match=r"after v1\.0\.0 comes v1\.1\.0, since its records or their numbers"):
        release_again(run, output, version=wrong)
    assert sorted(folder.name for folder in output.iterdir()) == ["v1.0.0"]
    assert release_again(run, output, version="v1.1.0") == "v1.1.0"


def test_a_patch_may_not_be_called_minor(output, tmp_path):
    run = other_run(tmp_path, a=Records(range(12), {12: "timeout"}))
    with pytest.raises(InputError, match=r"comes v1\.0\.1, since its records are the same"):
        release_again(run, output, version="v1.1.0")


@pytest.mark.parametrize("version", [None, "v1.0.0"])
def test_a_run_that_is_released_already_was_made_before(output, run, tmp_path, version):
    """The same command again is no error, whether it names the version or not, and whatever came after it."""
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*")}
    again = invented_runs.make_release(run, str(output), rows_per_shard=5, version=version)
    assert (again["version"], again["made_before"], again["folder"]) == ("v1.0.0", True, str(output / "v1.0.0"))
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*")} == before
    if version is not None:
        assert release_again(other_run(tmp_path, seed=1), output) == "v1.1.0"
        assert release_again(run, output, version=version) == "v1.0.0"


def test_a_version_that_is_there_with_other_content_is_refused(output, run, tmp_path):
    for other, settings in (
        (other_run(tmp_path, seed=1), {}),
        (run, {"rows_per_shard": 4}),
        (run, {"exclude": ("a",)}),
    ):
        with pytest.raises(InputError, match=r"v1\.0\.0: this version exists with other content, and a release never"):
            release_again(other, output, version="v1.0.0", **settings)


def test_what_needs_no_records_is_refused_before_any_is_read(output, run, tmp_path):
    """On a cluster it takes minutes until a worker reads."""
    report = {"complete": True, "sources": {"a": {"ok": 12, "failed": 1}, "b": {"ok": 3, "failed": 0}}}
    (Path(run) / "report.json").write_text(json.dumps(report))

    def check(folder: str = run, output: Path = output, **settings) -> None:
        plan.check(Run(folder), ReleaseSettings(run=folder, output=str(output), **settings))

    check()
    check(version="v1.0.0")
    check(version="v1.0.1", exclude=("b",), allow_failed=1)
    for words, settings in {
        "holds no run": {"folder": str(tmp_path / "nowhere")},
        r"must be vX\.Y\.Z": {"version": "1.0"},
        "v1.0.0: this version exists with other content": {"folder": other_run(tmp_path, seed=1), "version": "v1.0.0"},
        "holds no source c, which --exclude names; there are a, b": {"exclude": ("c",)},
        "1 images failed, more than --allow-failed 0": {"allow_failed": 0},
        "is a file; give the folder that holds the versions": {"output": Path(run) / "report.json"},
    }.items():
        with pytest.raises(InputError, match=words):
            check(**settings)
    (Path(run) / "report.json").write_text(json.dumps(report | {"complete": False, "left": 3, "manifest_rows": 16}))
    with pytest.raises(InputError, match="the run is incomplete, 3 of 16 images"):
        check()


def test_sources_can_be_left_out(run, tmp_path):
    content = invented_runs.make_release(run, str(tmp_path / "x"), exclude=("a",))
    assert content["counts"] == {"b": {"ok": 3, "failed": 0}}
    assert content["excluded_rows"] == 13
    assert content["failures"] == {}
    assert validate(str(tmp_path / "x" / "v1.0.0")).manifest_rows == 16
    everything = b"".join(file.read_bytes() for file in (tmp_path / "x").rglob("*.*") if file.is_file())
    assert b"a/image-" not in everything
    assert release_again(run, tmp_path / "x") == "v1.1.0"


def test_failures_of_a_source_left_out_stay_out_wherever_they_are_listed(tmp_path):
    """Failures of all sources share a file, in the order of their ids; the one left out is in the middle."""
    kinds = {source: Records(range(2), {2: "damaged", 3: "empty"}) for source in "abc"}
    run = invented_runs.make_run(tmp_path / "run", kinds)
    content = invented_runs.make_release(run, str(tmp_path / "x"), exclude=("b",))
    assert content["failures"] == {"damaged": 2, "empty": 2}
    listed = pq.read_table(tmp_path / "x" / "v1.0.0" / "failures")["record_id"].to_pylist()
    assert listed == [invented_runs.record_id(source, number) for source in "ac" for number in (2, 3)]
    assert content["excluded_rows"] == 4


def test_a_release_asks_nothing_of_the_images(run, tmp_path):
    """Whoever releases a run may have no access to them: only the manifest is read."""
    folder = Path(run)
    listed = pq.read_table(folder / "manifest.parquet")
    index = listed.schema.get_field_index("uri")
    nowhere = pa.array([f"vault://{number}" for number in range(len(listed))])
    pq.write_table(listed.set_column(index, "uri", nowhere), folder / "manifest.parquet")
    frozen = json.loads((folder / "run.json").read_text())
    frozen["manifest"]["sha256"] = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
    (folder / "run.json").write_text(json.dumps(frozen))
    assert release_again(run, tmp_path / "x") == "v1.0.0"


def test_a_source_left_out_must_be_there_and_not_be_the_last(run, tmp_path):
    with pytest.raises(InputError, match="holds no source c, which --exclude names"):
        invented_runs.make_release(run, str(tmp_path / "x"), exclude=("c",))
    with pytest.raises(InputError, match="nothing to release"):
        invented_runs.make_release(run, str(tmp_path / "x"), exclude=("a", "b"))
    assert not (tmp_path / "x").exists()


def test_rows_that_are_missing_are_not_taken_for_left_out_ones(run, tmp_path):
    invented_runs.make_release(run, str(tmp_path / "x"), exclude=("a",))
    marker = tmp_path / "x" / "v1.0.0" / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"excluded_rows": 12}))
    with pytest.raises(InputError, match="not as many as the manifest's rows"):
        validate(str(tmp_path / "x" / "v1.0.0"))


def test_numbers_behind_the_one_that_is_raised_begin_again():
    following = [versions.after("v1.2.3", change) for change in ("patch", "minor", "major")]
    assert following == ["v1.2.4", "v1.3.0", "v2.0.0"]


@pytest.mark.parametrize("text", ["1.0.0", "v1.0", "v01.0.0", "v1.0.0-rc1", "v1.0.0\n", ""])
def test_what_is_no_version(text):
    assert not versions.is_version(text)
    with pytest.raises(ValueError, match=r"must be vX\.Y\.Z"):
        versions.parse(text)
