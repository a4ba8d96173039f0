"""What changed between two releases is found: in which records, by how many pixels, and what to call it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexmask_u import cli
from chexmask_u.anatomy import LANDMARKS, ORGANS
from chexmask_u.errors import InputError
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.releases import diff
from chexmask_u.releases.diff import compare as comparing
from chexmask_u.releases.diff import picture
from chexmask_u.releases.release import MARKER
from chexmask_u.settings import DiffSettings
from tests.support import hub, invented_runs
from tests.support.invented_runs import Records, record_id


def release_of(folder: Path, seed: int = 0, **sources: Records) -> str:
    named = {name.replace("_", "-"): kind for name, kind in sources.items()}
    run = invented_runs.make_run(folder / "run", named, seed=seed)
    invented_runs.make_release(run, str(folder), rows_per_shard=10)
    return str(folder / "v1.0.0")


A = Records(range(25), {25: "damaged", 26: "empty", 27: "blank"})
B = Records(range(6), size=(700, 500))


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> str:
    return release_of(tmp_path_factory.mktemp("before"), a=A, b=B)


def compare(before: str, after: str, **settings) -> dict:
    return diff.diff(DiffSettings(before=before, after=after, **settings))


def test_the_same_numbers_differ_in_nothing(before, tmp_path):
    report = compare(before, release_of(tmp_path / "again", a=A, b=B), output=str(tmp_path / "out"))
    assert report["change"] is None
    for source, count in (("a", 25), ("b", 6)):
        facts = report["sources"][source]
        assert (facts["in_both"], facts["changed"], facts["added"], facts["removed"]) == (count, 0, 0, 0)
        assert facts["movement"]["heart"] == {"50%": 0, "90%": 0, "99%": 0, "max": 0}
        assert not facts["masks_differ"]
    assert report["movers"] == []
    assert "No record changed." in (tmp_path / "out" / "CHANGELOG.md").read_text()


def test_a_moved_heart_is_found_and_measured_in_the_1024_frame(before, tmp_path):
    # In original pixels, of which a frame pixel is half of one or 700/1024, it is 40 and 20.5.
    after = release_of(tmp_path, a=replace(A, moved={7: 80.0, 9: 3.0}), b=replace(B, moved={2: 30.0}))
    report = compare(before, after, movers=2)
    a, b = report["sources"]["a"], report["sources"]["b"]
    assert (a["changed"], b["changed"]) == (2, 1)
    assert a["columns"] == {"landmarks_mean": 2}
    assert a["movement"]["heart"]["max"] == pytest.approx(80, abs=1e-3)
    assert b["movement"]["heart"]["max"] == pytest.approx(30, abs=1e-3)
    assert a["movement"]["heart"]["50%"] == a["movement"]["right_lung"]["max"] == 0
    assert a["std_change"]["heart"]["max"] == a["uncertainty_change"]["max"] == 0
    assert [(mover["record_id"], mover["organ"]) for mover in report["movers"]] == [
        (record_id("a", 7), "heart"),
        (record_id("b", 2), "heart"),
    ]
    assert report["change"] == "minor"
    assert a["masks_differ"]


def test_records_that_came_went_failed_or_recovered_are_told_apart(before, tmp_path):
    a = Records([*range(2, 25), 26, 40, 41], {0: "crashed", 25: "timeout", 42: "blank"})
    report = compare(before, release_of(tmp_path, a=a, c=Records(range(3))))
    facts = report["sources"]["a"]
    assert (facts["before"], facts["after"], facts["in_both"]) == (25, 26, 23)
    assert (facts["added"], facts["failed_to_ok"]) == (2, {"empty": 1})
    assert (facts["removed"], facts["ok_to_failed"]) == (1, {"crashed": 1})
    assert facts["masks_differ"] is False
    assert report["sources"]["b"]["masks_differ"] is None
    assert report["sources"]["b"]["removed"] == 6
    assert report["sources"]["c"]["added"] == 3
    assert report["failures"] == {
        "before": 3,
        "after": 3,
        "added": 1,
        "removed": 1,
        "other_reason": {"damaged -> timeout": 1},
    }
    assert report["examples"]["removed"][0] == record_id("a", 1)
    assert report["examples"]["ok_to_failed"] == [record_id("a", 0)]
    assert report["examples"]["failed_to_ok"] == [record_id("a", 26)]


def read(folder: str, source: str) -> dict[str, dict]:
    return {
        row["record_id"]: row
        for file in sorted(Path(folder, source).glob("landmarks-*.parquet"))
        for row in pq.read_table(file).to_pylist()
    }


def test_two_seeds_differ_by_what_a_slow_comparison_says(before, tmp_path):
    after = release_of(tmp_path, seed=1, a=A, b=B)
    report = compare(before, after)
    for source in ("a", "b"):
        old, new = read(before, source), read(after, source)
        assert old.keys() == new.keys()
        pairs = []
        for key in old:
            frames = [
                Letterbox.from_row(row["letterbox"]).to_frame(np.array(row["landmarks_mean"], np.float32))
                for row in (old[key], new[key])
            ]
            pairs.append(np.linalg.norm(frames[1] - frames[0], axis=1))
        distances = np.array(pairs)
        facts = report["sources"][source]
        for organ in ORGANS:
            part = distances[:, LANDMARKS[organ]]
            for name, q in (("50%", 0.5), ("90%", 0.9), ("99%", 0.99), ("max", 1)):
                assert facts["movement"][organ][name] == pytest.approx(np.quantile(part.mean(axis=1), q), rel=1e-5)
                assert facts["farthest"][organ][name] == pytest.approx(np.quantile(part.max(axis=1), q), rel=1e-5)
        shift = [abs(new[key]["uncertainty"] - old[key]["uncertainty"]) for key in old]
        assert facts["uncertainty_change"]["90%"] == pytest.approx(np.quantile(shift, 0.9), rel=1e-4)
        heart = [
            [
                Letterbox.from_row(row["letterbox"]).spread_to_frame(row["landmarks_std"])[LANDMARKS["heart"]].mean()
                for row in (old[key], new[key])
            ]
            for key in old
        ]
        assert facts["std_change"]["heart"]["max"] == pytest.approx(np.abs(np.diff(heart)).max(), rel=1e-4)
    assert report["settings"].keys() == {"seed"}


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_where_batches_and_files_end_changes_nothing(before, tmp_path, monkeypatch, rows):
    a = Records([*range(2, 25), 26, 40], {0: "crashed"}, moved={3: 5.0})
    after = release_of(tmp_path, seed=1, a=a, b=B)
    whole = compare(before, after)
    monkeypatch.setattr(comparing, "BATCH_ROWS", rows)
    assert compare(before, after) == whole


def rewrite(folder: str, file: str, change) -> None:
    """Change a release's table behind its checksums, which `diff` does not look at."""
    path = Path(folder, file)
    pq.write_table(change(pq.read_table(path)), path)


def boxes(table: pa.Table, **values: float) -> pa.Table:
    index = table.schema.get_field_index("letterbox")
    rows = [row | values for row in table["letterbox"].to_pylist()]
    return table.set_column(index, table.schema.field(index), pa.array(rows, table.schema.field(index).type))


def test_another_crop_of_the_same_image_is_no_movement(before, tmp_path):
    after = shutil.copytree(before, tmp_path / "v1.0.0")
    rewrite(after, "b/landmarks-00000-of-00001.parquet", lambda table: boxes(table, crop_left=20, scale=1.7))
    facts = compare(before, str(after))["sources"]["b"]
    assert facts["columns"] == {"letterbox": 6}
    assert facts["movement"]["heart"]["max"] == 0


def test_another_size_of_the_image_is_compared_in_the_frame(before, tmp_path):
    """The same radiograph at twice the resolution: every coordinate doubles, and nothing moves."""
    facts = compare(before, release_of(tmp_path, a=A, b=replace(B, size=(1400, 1000))))["sources"]["b"]
    assert facts["resized"] == 6
    assert facts["movement"]["left_lung"]["max"] < 0.01
    assert facts["std_change"]["left_lung"]["max"] < 0.001


def test_another_schema_is_major_and_compared_in_what_is_common(before, tmp_path):
    after = Path(shutil.copytree(before, tmp_path / "v1.0.0"))
    for file in (after / "a").glob("landmarks-*.parquet"):
        table = pq.read_table(file)
        extra = pa.array(np.zeros(len(table)))
        pq.write_table(table.drop_columns(["latent_uncertainty"]).append_column("new", extra), file)
    marker = json.loads((after / MARKER).read_text())
    (after / MARKER).write_text(json.dumps(marker | {"schema_version": "9.0"}))
    report = compare(before, str(after))
    assert (report["change"], report["follows"]) == ("major", "v2.0.0")
    assert report["sources"]["a"]["changed"] == 0


def test_the_folder_holds_a_report_a_picture_and_a_draft_of_the_changelog(before, tmp_path, capsys):
    after = release_of(tmp_path, seed=1, a=Records([*range(1, 25), 26, 50], {25: "damaged"}), b=B)
    out = tmp_path / "diff"
    assert cli.main(["diff", before, after, "--output", str(out), "--json"]) == cli.DONE
    *text, line = capsys.readouterr().out.strip().splitlines()
    report = json.loads((out / "diff.json").read_text())
    assert json.loads(line) == report
    assert len(report["movers"]) == 12
    assert all(mover["record_id"] in "\n".join(text) for mover in report["movers"])
    picture = cv2.imread(str(out / "diff.png"))
    assert min(picture.shape[:2]) > 1000
    entry = (out / "CHANGELOG.md").read_text()
    # Both are called v1.0.0, and an entry of that name is there already.
    assert entry.startswith("## [v1.1.0] - 20")
    for words in (
        "Compared with v1.0.0. Version: v1.1.0 would follow",
        "this is v1.0.0 too",
        "- 1 record of a\n",
        "images had failed: empty 1",
        "24 of 24 records of a",
        "| heart moved |",
        "seed: 0 -> 1",
    ):
        assert words in entry, words


def test_versions_of_one_place_get_entries_of_their_names(tmp_path):
    releases = tmp_path / "releases"
    for seed in range(2):
        run = invented_runs.make_run(tmp_path / f"run-{seed}", {"a": A}, seed=seed)
        invented_runs.make_release(run, str(releases))
    compare(str(releases / "v1.0.0"), str(releases / "v1.1.0"), output=str(tmp_path / "out"))
    entry = (tmp_path / "out" / "CHANGELOG.md").read_text()
    assert entry.startswith("## [v1.1.0] - 20")
    assert "Version: v1.1.0 follows v1.0.0, since its records or their numbers differ (minor)." in entry


def test_a_changelog_of_ones_own_is_not_written_over(before, tmp_path, capsys):
    (tmp_path / "CHANGELOG.md").write_text("# Ours, of ten years\n")
    assert cli.main(["diff", before, before, "--output", str(tmp_path)]) == cli.BAD_INPUT
    assert "holds no comparison (there is 'CHANGELOG.md'); choose another --output" in capsys.readouterr().err
    assert (tmp_path / "CHANGELOG.md").read_text() == "# Ours, of ten years\n"
    for _ in range(2):
        assert cli.main(["diff", before, before, "--output", str(tmp_path / "changes")]) == cli.DONE


def test_a_dollar_in_an_id_is_no_formula():
    points = np.zeros((120, 2))
    assert (
        picture.draw([comparing.Mover("a/$x_1$^{.png", "a", "heart", 1.0, points, points + 1500)], "x")[:4]
        == b"\x89PNG"
    )


def test_masks_that_are_cut_into_other_files_do_not_differ(before, tmp_path):
    """Added records, and another number of rows in a file, change every digest and no mask."""
    run = invented_runs.make_run(tmp_path / "run", {"a": replace(A, ok=[*range(25), 30]), "b": B})
    invented_runs.make_release(run, str(tmp_path), rows_per_shard=7)
    report = compare(before, str(tmp_path / "v1.0.0"))
    assert report["sources"]["a"]["added"] == 1
    assert not report["sources"]["a"]["masks_differ"]
    assert not report["sources"]["b"]["masks_differ"]
    assert "masks differ" not in diff.text(report)


def test_another_mask_of_the_same_landmarks_is_told_also_where_records_were_added(before, tmp_path):
    """As when another OpenCV draws them."""
    run = invented_runs.make_run(tmp_path / "run", {"a": replace(A, ok=[*range(25), 30]), "b": B})
    part = Path(run, "records", "part_000000-0.parquet")
    table = pq.read_table(part)
    hearts = ["1 2", *table["heart"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("heart"), table.schema.field("heart"), [hearts]), part)
    invented_runs.make_release(run, str(tmp_path), rows_per_shard=7)
    report = compare(before, str(tmp_path / "v1.0.0"))
    assert report["sources"]["a"]["masks_differ"]
    assert not report["sources"]["b"]["masks_differ"]
    assert "the masks differ" in diff.text(report)


def test_a_comparison_that_is_stopped_leaves_no_report_and_is_made_again(before, tmp_path):
    """Whoever finds diff.json finds the others whole, and of the same comparison."""
    out = tmp_path / "out"
    compare(before, release_of(tmp_path / "after", seed=1, a=A, b=B), output=str(out))
    assert sorted(file.name for file in out.iterdir()) == ["CHANGELOG.md", "diff.json", "diff.png"]
    (out / "CHANGELOG.md").unlink()
    # In the way of the file, as a disk that is full would be.
    (out / "CHANGELOG.md").mkdir()
    with pytest.raises(InputError, match="out: cannot be written"):
        compare(before, before, output=str(out))
    assert not (out / "diff.json").exists()
    (out / "CHANGELOG.md").rmdir()
    compare(before, before, output=str(out))
    # There is nothing to be drawn now.
    assert sorted(file.name for file in out.iterdir()) == ["CHANGELOG.md", "diff.json"]


def test_versions_on_the_hub_are_compared_like_folders(before, tmp_path, monkeypatch):
    after = release_of(tmp_path / "after", seed=1, a=A, b=B)
    with hub.for_this_process(monkeypatch, tmp_path) as served:
        dataset = served.create("org/masks")
        for tag, folder in (("v1.0.0", before), ("v1.1.0", after)):
            files = {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*.*")}
            dataset.tags[tag] = dataset.commit(files, tag)
        local = compare(before, after)
        for ours in ("org/masks@v1.0.0", "hf://datasets/org/masks@v1.0.0"):
            published = compare(ours, "org/masks@v1.1.0")
            assert published["before"]["where"] == "hf://datasets/org/masks@v1.0.0"
            assert published["sources"] == local["sources"]
            assert published["movers"] == local["movers"]
        with pytest.raises(InputError, match=r"org/masks@v9.9.9: is no release"):
            compare("org/masks@v1.0.0", "org/masks@v9.9.9")


def test_what_is_no_release_is_told_in_one_line(before, tmp_path, capsys):
    assert cli.main(["diff", before, str(tmp_path)]) == cli.BAD_INPUT
    assert "is no release" in capsys.readouterr().err
    copy = shutil.copytree(before, tmp_path / "v1.0.0")
    (copy / "a" / "landmarks-00000-of-00003.parquet").unlink()
    assert cli.main(["diff", before, str(copy)]) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "landmarks-00000-of-00003.parquet: cannot be read" in error
    assert len(error.strip().splitlines()) == 1
