"""Manifests of the five sources from trees like the official ones: what matches, what does not, and what is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import random
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import chexmask_u as cu
from chexmask_u import cli, record, sources, storage
from chexmask_u.errors import InputError
from chexmask_u.images.fetch import fetch
from chexmask_u.manifests import join, parquet, reach
from chexmask_u.manifests.check import check_columns, inspect
from chexmask_u.manifests.folder import list_folder
from chexmask_u.manifests.join import build
from chexmask_u.manifests.merge import merge
from chexmask_u.manifests.problems import PROBLEMS
from chexmask_u.settings import ManifestFolderSettings, ManifestMergeSettings, ManifestSourceSettings
from tests.support.official_layouts import PUBLISHED_FILES, Layout, write_layouts
from tests.support.s3 import S3Server, own_bucket

SOURCES = tuple(sources.PUBLISHED)
ROWS = 6


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("official")


@pytest.fixture(scope="module")
def layouts(tree) -> dict[str, Layout]:
    return write_layouts(tree, ROWS)


@pytest.fixture(scope="module")
def server(s3: S3Server):
    with pytest.MonkeyPatch.context() as patch, own_bucket(s3, "datasets") as started:
        for name, value in started.env.items():
            patch.setenv(name, value)
        yield started


def settings_of(layout: Layout, folder: Path, **changes: Any) -> ManifestSourceSettings:
    settings = ManifestSourceSettings(
        source=layout.source,
        images=str(layout.root),
        chexmask=str(layout.chexmask),
        output=str(folder / f"{layout.source}.parquet"),
    )
    return replace(settings, **changes)


def rows_of(uri: str | Path) -> list[dict[str, Any]]:
    return pq.read_table(str(uri)).to_pylist()


def nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in counts.items() if count}


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def write_csv(path: Path, header: list[str], rows: list[list[str]], **dialect: Any) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file, **dialect).writerows([header, *rows])
    return str(path)


@pytest.mark.parametrize("name", SOURCES)
def test_each_layout_gives_its_rows_and_every_problem_by_kind(name, layouts, tmp_path):
    layout = layouts[name]
    report = build(settings_of(layout, tmp_path))
    assert nonzero(report.counts) == layout.counts
    assert set(report.counts) == set(PROBLEMS)
    assert (report.rows, report.csv_rows) == (ROWS, ROWS + 2)
    assert (report.images, report.other_views) == (layout.images, layout.other_views)
    assert report.expected_rows == sources.get(name).expected_rows

    table = pq.read_table(report.manifest)
    assert table.schema.remove_metadata() == record.MANIFEST
    rows = table.to_pylist()
    assert [row["record_id"] for row in rows] == sorted(f"{name}/{image_id}" for image_id in layout.sizes)
    unsized = list(layout.sizes)[1]
    for row in rows:
        image_id = row["image_id"]
        assert Path(row["uri"]).is_file()
        assert sources.get(name).image_id(str(Path(row["uri"]).relative_to(layout.root))) == image_id
        scores = layout.scores.get(image_id, (None, None))
        assert (row["dice_rca_mean"], row["dice_rca_max"]) == (
            pytest.approx(scores[0]) if scores[0] else None,
            pytest.approx(scores[1]) if scores[1] else None,
        )
        known = image_id != unsized or name in ("chestx-ray8", "mimic-cxr-jpg")
        assert (row["height"], row["width"]) == (layout.sizes[image_id] if known else (None, None))


@pytest.mark.parametrize("name", SOURCES)
def test_the_problems_file_names_each_image_and_nothing_else_of_it(name, layouts, tmp_path):
    layout = layouts[name]
    report = build(settings_of(layout, tmp_path))
    assert report.problems == str(tmp_path / f"{name}.problems.csv")
    text_ids = pacsv.ConvertOptions(column_types={"image_id": pa.string()})
    problems = pacsv.read_csv(report.problems, convert_options=text_ids).to_pylist()
    assert len(problems) == sum(layout.counts.values())
    first, second, third, fourth = list(layout.sizes)[:4]
    by_kind = {problem["problem"]: problem for problem in problems}
    named = {"max_below_mean": first, "no_size": second, "no_scores": third, "duplicate_row": fourth}
    assert {kind: by_kind[kind]["image_id"] for kind in named} == named
    kept = {row["image_id"] for row in rows_of(report.manifest)}
    for problem in problems:
        assert problem["in_manifest"] == (problem["image_id"] in kept)
    text = Path(report.problems).read_text()
    assert str(layout.root) not in text
    assert "files/" not in text


@pytest.mark.parametrize("name", SOURCES)
def test_the_order_of_the_csv_does_not_matter(name, layouts, tmp_path):
    layout = layouts[name]
    straight = build(settings_of(layout, tmp_path))
    header, rows = read_csv(layout.chexmask)
    random.Random(1).shuffle(rows)
    columns = list(range(len(header)))
    random.Random(2).shuffle(columns)
    shuffled = [[row[column] for column in columns] for row in rows]
    path = write_csv(tmp_path / "shuffled.csv", [header[column] for column in columns], shuffled)
    again = build(settings_of(layout, tmp_path, chexmask=path, output=str(tmp_path / "again.parquet")))
    assert pq.read_table(again.manifest).equals(pq.read_table(straight.manifest))
    assert Path(again.problems).read_text() == Path(straight.problems).read_text()


@pytest.mark.parametrize("name", SOURCES)
def test_without_a_csv_every_frontal_image_is_a_row_without_scores(name, layouts, tmp_path):
    layout = layouts[name]
    report = build(settings_of(layout, tmp_path, chexmask=None))
    assert report.rows == ROWS + 1
    assert report.csv_rows is None
    assert nonzero(report.counts) == {}
    rows = rows_of(report.manifest)
    assert {row["image_id"] for row in rows} > set(layout.sizes)
    assert {row["dice_rca_mean"] for row in rows} == {None}


@pytest.fixture
def second_views(tmp_path) -> Layout:
    """CheXpert, where every patient has a second frontal view too."""
    layout = write_layouts(tmp_path / "official", ROWS, dirty=False)["chexpert"]
    for first in layout.root.rglob("view1_frontal.jpg"):
        first.with_name("view2_frontal.jpg").write_bytes(first.read_bytes())
    return layout


def test_without_a_csv_chexpert_has_the_views_that_the_published_data_set_took(second_views, tmp_path, capsys):
    flags = ["manifest", "chexpert", "--images", str(second_views.root), "--output", str(tmp_path / "m.parquet")]
    assert cli.main(flags) == 0
    assert {Path(row["uri"]).name for row in rows_of(tmp_path / "m.parquet")} == {"view1_frontal.jpg"}
    assert f"passed over: {ROWS} (frontal views that the CheXmask data set left out" in capsys.readouterr().out
    assert cli.main([*flags, "--all-frontal", "--overwrite"]) == 0
    assert len(rows_of(tmp_path / "m.parquet")) == 2 * ROWS
    assert "frontal views" not in capsys.readouterr().out


def test_the_rows_of_a_csv_decide_which_second_views_are_taken(second_views, tmp_path):
    header, rows = read_csv(second_views.chexmask)
    at = header.index("Path")
    second = [value.replace("view1_", "view2_") if column == at else value for column, value in enumerate(rows[0])]
    path = write_csv(tmp_path / "second.csv", header, [*rows, second])
    report = build(settings_of(second_views, tmp_path, chexmask=path))
    assert (report.rows, report.other_frontal, report.counts["missing_row"]) == (ROWS + 1, ROWS - 1, 0)
    with pytest.raises(InputError, match="--all-frontal goes without --chexmask"):
        settings_of(second_views, tmp_path, all_frontal=True)


def test_a_folder_of_second_views_alone_is_told_how_to_list_them(second_views, tmp_path):
    for first in second_views.root.rglob("view1_frontal.jpg"):
        first.unlink()
    with pytest.raises(InputError, match=f"CheXmask took none of its {ROWS} views; --all-frontal lists them"):
        build(settings_of(second_views, tmp_path, chexmask=None))
    with pytest.raises(InputError, match="no row of --chexmask names one"):
        build(settings_of(second_views, tmp_path))


def test_the_real_published_rows_are_read(shared, tmp_path):
    for name, file in PUBLISHED_FILES.items():
        path = shared / "data" / "chexmask_published" / file
        source = sources.get(name)
        header, rows = read_published(path)
        images = tmp_path / name
        ids = [row[header.index(source.id_column)] for row in rows]
        for image_id in ids:
            suffix = {"mimic-cxr-jpg": ".jpg", "vindr-cxr": ".dicom"}.get(name, "")
            (images / f"{image_id}{suffix}").parent.mkdir(parents=True, exist_ok=True)
            (images / f"{image_id}{suffix}").write_bytes(b"image")
        layout = Layout(name, images, path, path, {}, {}, len(ids))
        report = build(settings_of(layout, tmp_path, preprocessed=True))
        assert report.rows == len(ids)
        means = {row["image_id"]: row["dice_rca_mean"] for row in rows_of(report.manifest)}
        for image_id, row in zip(ids, rows, strict=True):
            assert means[image_id] == pytest.approx(float(row[header.index("Dice RCA (Mean)")]))
        below = sum(
            float(row[header.index("Dice RCA (Max)")]) < float(row[header.index("Dice RCA (Mean)")]) for row in rows
        )
        assert report.counts["max_below_mean"] == below


def read_published(path: Path) -> tuple[list[str], list[list[str]]]:
    csv.field_size_limit(1 << 24)
    return read_csv(path)


# --- what disagrees ---------------------------------------------------------------------------------------------------


def test_a_row_of_another_view_is_left_out(layouts, tmp_path):
    layout = layouts["mimic-cxr-jpg"]
    header, rows = read_csv(layout.chexmask)
    lateral = f"{ROWS + 1:08x}-00000000-11111111-22222222-33333333"
    path = write_csv(tmp_path / "lateral.csv", header, [*rows, [lateral, *rows[3][1:]]])
    report = build(settings_of(layout, tmp_path, chexmask=path))
    assert report.counts["other_view"] == 1
    assert report.rows == ROWS


def test_without_the_table_lateral_views_are_no_rows_but_look_as_if_they_lacked_one(layouts, tmp_path):
    layout = layouts["mimic-cxr-jpg"]
    report = build(settings_of(layout, tmp_path, images=str(layout.root / "files")))
    assert (report.rows, report.table) == (ROWS, None)
    assert report.counts["missing_row"] == 1 + layout.other_views
    assert "perhaps another view" in Path(report.problems).read_text()
    with pytest.raises(InputError, match=r"no table mimic-cxr-2\.N\.N-metadata\.csv\[\.gz\] below.*give --table or"):
        build(settings_of(layout, tmp_path, images=str(layout.root / "files"), chexmask=None))
    table = str(layout.root / "mimic-cxr-2.0.0-metadata.csv.gz")
    report = build(settings_of(layout, tmp_path, images=str(layout.root / "files"), table=table, overwrite=True))
    assert nonzero(report.counts) == layout.counts


def test_an_id_of_two_files_is_left_out_and_told(tmp_path):
    layout = write_layouts(tmp_path / "tree", ROWS, dirty=False)["chexpert"]
    copy = layout.root / "CheXpert-v1.0-small" / next(iter(layout.sizes))
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"image")
    report = build(settings_of(layout, tmp_path))
    assert report.rows == ROWS - 1
    assert nonzero(report.counts) == {"two_files": 1}
    assert "2 files below CheXpert-v1.0, CheXpert-v1.0-small" in Path(report.problems).read_text()


def test_a_distribution_that_is_there_twice_is_refused(tmp_path):
    layout = write_layouts(tmp_path / "tree", ROWS, dirty=False)["vindr-cxr"]
    for image in list(layout.root.rglob("*.dicom")):
        (layout.root / "copy").mkdir(exist_ok=True)
        (layout.root / "copy" / image.name).write_bytes(b"image")
    with pytest.raises(InputError, match=r"6 image ids have several files each.*point --images at one copy"):
        build(settings_of(layout, tmp_path))


def test_rows_of_one_id_that_differ_are_left_out(layouts, tmp_path):
    layout = layouts["vindr-cxr"]
    header, rows = read_csv(layout.chexmask)
    other = list(rows[4])
    other[header.index("Dice RCA (Mean)")] = "0.5"
    path = write_csv(tmp_path / "twice.csv", header, [other, *rows])
    report = build(settings_of(layout, tmp_path, chexmask=path))
    assert report.rows == ROWS - 1
    assert nonzero(report.counts) == {**layout.counts, "conflicting_rows": 1}
    assert rows[4][0] not in {row["image_id"] for row in rows_of(report.manifest)}


def test_a_size_that_contradicts_the_sources_table_is_told_and_not_used(layouts, tmp_path):
    layout = layouts["mimic-cxr-jpg"]
    header, rows = read_csv(layout.chexmask)
    height, width = header.index("Height"), header.index("Width")
    rows[4][height], rows[4][width] = rows[4][width], rows[4][height]
    report = build(settings_of(layout, tmp_path, chexmask=write_csv(tmp_path / "swapped.csv", header, rows)))
    assert report.counts["size_mismatch"] == 1
    row = next(row for row in rows_of(report.manifest) if row["image_id"] == rows[4][0])
    assert (row["height"], row["width"]) == layout.sizes[rows[4][0]]


def test_a_row_without_an_id_is_counted(layouts, tmp_path):
    layout = layouts["padchest"]
    header, rows = read_csv(layout.chexmask)
    path = write_csv(tmp_path / "nameless.csv", header, [*rows, ["", *rows[0][1:]]])
    assert build(settings_of(layout, tmp_path, chexmask=path)).counts["no_id"] == 1


def test_images_that_the_sources_table_does_not_list_need_a_row(tmp_path):
    layout = write_layouts(tmp_path / "tree", ROWS, dirty=False)["padchest"]
    table = next(layout.root.glob("PADCHEST*"))
    header, rows = read_csv(table)
    write_csv(table, header, rows[1:])
    assert nonzero(build(settings_of(layout, tmp_path)).counts) == {}
    report = build(settings_of(layout, tmp_path, chexmask=None, output=str(tmp_path / "unscored.parquet")))
    assert nonzero(report.counts) == {"not_in_table": 1}
    assert report.rows == ROWS - 1


# --- what was not downloaded, and what is linked from elsewhere -------------------------------------------------------


TABLES = ("chestx-ray8", "mimic-cxr-jpg", "padchest")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scored", [True, False])
def test_images_that_the_sources_table_lists_and_nobody_has_are_told(name, scored, tmp_path, capsys):
    layout = write_layouts(tmp_path / "tree", ROWS, dirty=False)[name]
    files = {sources.get(name).image_id(path.as_posix()): path for path in layout.root.rglob("*.??g")}
    gone, shouted, cut, halved = list(layout.sizes)[:4]
    files[gone].unlink()
    files[shouted].rename(files[shouted].with_suffix(files[shouted].suffix.upper()))
    files[cut].rename(files[cut].with_name(f"{files[cut].name}.part"))
    files[halved].rename(files[halved].with_name(f"{files[halved].name}_.gstmp"))
    output = tmp_path / "m.parquet"
    flags = ["--chexmask", str(layout.chexmask)] if scored else []
    assert cli.main(["manifest", name, "--images", str(layout.root), "--output", str(output), *flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["rows"] == ROWS - 4
    assert nonzero(report["counts"]) == {"missing_image" if scored else "no_file": 4}
    kind = files[shouted].suffix.upper()
    assert (report["passed_over"], report["passed_over_kinds"]) == (3, {kind: 1, ".part": 1, ".gstmp": 1})
    problems = {row["image_id"]: row["detail"] for row in pacsv.read_csv(report["problems"]).to_pylist()}
    assert problems[gone] == "no file of this id below --images"
    assert f"one has the suffix {kind}: rename it to {kind.lower()}" in problems[shouted]
    assert "one ends in .part behind its name" in problems[cut]
    assert "one ends in .gstmp behind its name" in problems[halved]


def test_what_the_table_lists_beside_the_rows_of_the_csv_is_told_once(tmp_path):
    layout = write_layouts(tmp_path / "tree", ROWS, dirty=False)["mimic-cxr-jpg"]
    first, second = list(layout.sizes)[:2]
    for path in layout.root.rglob("*.jpg"):
        if path.stem in (first, second):
            path.unlink()
    header, rows = read_csv(layout.chexmask)
    fewer = write_csv(tmp_path / "fewer.csv", header, [row for row in rows if row[0] != second])
    report = build(settings_of(layout, tmp_path, chexmask=fewer))
    assert nonzero(report.counts) == {"missing_image": 1, "no_file": 1}
    assert report.rows == ROWS - 2


def test_other_files_are_told_as_a_folders_listing_tells_them(layouts, tmp_path, capsys):
    layout = layouts["vindr-cxr"]
    flags = ["--images", str(layout.root), "--output", str(tmp_path / "m.parquet")]
    assert cli.main(["manifest", "vindr-cxr", *flags]) == 0
    assert "other files, passed over (no image of the source, by their paths): 1 (1 .csv)" in capsys.readouterr().out


@pytest.mark.parametrize("name", SOURCES)
def test_folders_that_are_linked_from_another_disk_belong_to_every_source(name, tmp_path):
    layout = write_layouts(tmp_path / "tree", ROWS, dirty=False)[name]
    straight = build(settings_of(layout, tmp_path))
    disk = tmp_path / "disk"
    disk.mkdir()
    for folder in [path for path in layout.root.iterdir() if path.is_dir()]:
        folder.rename(disk / folder.name)
        folder.symlink_to(disk / folder.name)
    (disk / "round").symlink_to(layout.root)
    (layout.root / "unplugged").symlink_to(tmp_path / "gone")
    linked = build(settings_of(layout, tmp_path, output=str(tmp_path / "linked.parquet"), check=True))
    assert pq.read_table(linked.manifest).equals(pq.read_table(straight.manifest))
    assert nonzero(linked.counts) == {"not_followed": 1}
    assert "unplugged: a link that leads nowhere" in Path(linked.problems).read_text()
    records = [{**row, "source": name} for row in rows_of(linked.manifest)]
    pairs = cu.pair_images(records, str(layout.root))
    assert (len(pairs.paths), pairs.without_image) == (ROWS, [])
    assert pairs.lost == {"unplugged": "a link that leads nowhere"}
    assert "1 links or folders that could not be followed" in str(pairs)


# --- what is refused --------------------------------------------------------------------------------------------------


def refusal(settings: ManifestSourceSettings) -> str:
    with pytest.raises(InputError) as caught:
        build(settings)
    assert not Path(settings.output).exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_csv_of_another_source_is_refused(layouts, tmp_path):
    message = refusal(settings_of(layouts["chexpert"], tmp_path, chexmask=str(layouts["padchest"].chexmask)))
    assert str(layouts["padchest"].chexmask) in message
    assert "has the id column of PadChest, not 'Path'" in message
    assert "give the CSV of the same source" in message


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_wrong_separator_is_named(separator, layouts, tmp_path):
    layout = layouts["vindr-cxr"]
    path = write_csv(tmp_path / "separated.csv", *read_csv(layout.chexmask), delimiter=separator)
    assert f"its columns are separated by {separator!r}" in refusal(settings_of(layout, tmp_path, chexmask=path))


def test_ids_that_another_system_wrote_are_those_of_the_images(layouts, tmp_path):
    for name, source in (("backslashes", "chexpert"), ("spaces", "padchest")):
        layout = layouts[source]
        header, rows = read_csv(layout.chexmask)
        written = [[row[0].replace("/", "\\") if name == "backslashes" else f" {row[0]}  ", *row[1:]] for row in rows]
        path = write_csv(tmp_path / f"{name}.csv", header, written, quoting=csv.QUOTE_ALL)
        report = build(settings_of(layout, tmp_path, chexmask=path, output=str(tmp_path / f"{name}.parquet")))
        assert (report.rows, nonzero(report.counts)) == (ROWS, layout.counts)


def test_names_of_columns_with_spaces_are_named(layouts, tmp_path):
    header, rows = read_csv(layouts["vindr-cxr"].chexmask)
    path = write_csv(tmp_path / "spaces.csv", [header[0], *(f" {name}" for name in header[1:])], rows)
    message = refusal(settings_of(layouts["vindr-cxr"], tmp_path, chexmask=path))
    assert "has spaces around the name of its column 'Dice RCA (Mean)'" in message


def test_a_table_that_lists_none_of_the_images_is_refused(layouts, tmp_path):
    layout = layouts["padchest"]
    header, rows = read_csv(next(layout.root.glob("PADCHEST*")))
    table = write_csv(tmp_path / "other.csv", header, [[row[0], f"x{row[1]}", *row[2:]] for row in rows])
    for chexmask in (None, str(layout.chexmask)):
        message = refusal(settings_of(layout, tmp_path, chexmask=chexmask, table=table))
        assert f"{table}: lists none of the" in message
        assert "give the table of the same distribution" in message


def test_other_columns_are_named_with_what_was_expected(layouts, tmp_path):
    layout = layouts["chexpert"]
    header, rows = read_csv(layout.chexmask)
    renamed = ["RCA" if name == "Dice RCA (Max)" else name for name in header]
    message = refusal(settings_of(layout, tmp_path, chexmask=write_csv(tmp_path / "renamed.csv", renamed, rows)))
    assert "has no column 'Dice RCA (Max)'; found 'Path', 'Dice RCA (Mean)', 'RCA'" in message
    assert "expected a CheXmask CSV of CheXpert" in message


@pytest.mark.parametrize("name", ["chexpert", "mimic-cxr-jpg", "padchest", "vindr-cxr"])
def test_the_preprocessed_csv_is_refused_unless_it_is_called_so(name, layouts, tmp_path):
    layout = layouts[name]
    settings = settings_of(layout, tmp_path, chexmask=str(layout.preprocessed))
    message = refusal(settings)
    assert "Height and Width are 1024 in all" in message
    assert "OriginalResolution" in message
    report = build(replace(settings, preprocessed=True))
    assert report.rows == ROWS
    sizes = {row["image_id"]: (row["height"], row["width"]) for row in rows_of(report.manifest)}
    assert sizes == (layout.sizes if name == "mimic-cxr-jpg" else dict.fromkeys(layout.sizes, (None, None)))


def test_the_original_csv_is_not_taken_for_a_preprocessed_one(layouts, tmp_path):
    assert "leave --preprocessed out" in refusal(settings_of(layouts["chexpert"], tmp_path, preprocessed=True))


def test_both_resolutions_of_chestx_ray8_are_alike(layouts, tmp_path):
    layout = layouts["chestx-ray8"]
    original = build(settings_of(layout, tmp_path))
    settings = settings_of(layout, tmp_path, chexmask=str(layout.preprocessed), output=str(tmp_path / "p.parquet"))
    assert pq.read_table(build(settings).manifest).equals(pq.read_table(original.manifest))


def test_bytes_that_are_no_such_csv_are_refused(layouts, tmp_path):
    layout = layouts["vindr-cxr"]
    header, rows = read_csv(layout.chexmask)
    cases = {
        "short": (
            write_csv(tmp_path / "a.csv", header, [rows[0], rows[1][:3]]),
            "a row has 3 columns where the header",
        ),
        "text": (write_csv(tmp_path / "b.csv", header, [[rows[0][0], "good", *rows[0][2:]]]), "is not a number"),
        "absent": (str(tmp_path / "absent.csv"), "no such file; expected a CheXmask CSV of VinDr-CXR"),
        "headerless": (write_csv(tmp_path / "c.csv", rows[0], rows), "has no column 'image_id'"),
    }
    (tmp_path / "empty.csv").write_bytes(b"")
    cases["empty"] = (str(tmp_path / "empty.csv"), "is empty")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 100)
    cases["binary"] = (str(tmp_path / "binary.csv"), "is no text; expected a CheXmask CSV of VinDr-CXR")
    (tmp_path / "utf16.csv").write_bytes(layout.chexmask.read_text().encode("utf-16"))
    cases["utf-16"] = (str(tmp_path / "utf16.csv"), "is UTF-16 text")
    with zipfile.ZipFile(tmp_path / "csv.xlsx", "w") as archive:
        archive.write(layout.chexmask, "VinDr-CXR.csv")
    cases["archive"] = (str(tmp_path / "csv.xlsx"), "unpack it, or save it as CSV")
    (tmp_path / "cut.csv").write_bytes(gzip.compress(layout.chexmask.read_bytes())[:-20])
    cases["cut"] = (str(tmp_path / "cut.csv"), "cannot be read as a CheXmask CSV of VinDr-CXR (")
    cases["folder"] = (str(tmp_path), "is a folder; expected a CheXmask CSV of VinDr-CXR")
    latin = layout.chexmask.read_text().replace(rows[0][0], "Señor").encode("latin-1")
    (tmp_path / "latin.csv").write_bytes(latin)
    cases["latin"] = (str(tmp_path / "latin.csv"), "is not UTF-8 text")
    for path, expected in cases.values():
        message = refusal(settings_of(layout, tmp_path, chexmask=path))
        assert expected in message
        assert path in message
        assert "good" not in message


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: b"\r\n\n" + text + b"\n\n",
        gzip.compress,
        bz2.compress,
    ],
    ids=["byte order mark", "Windows", "old Macintosh", "empty lines", "gzip", "bzip2"],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_tables_that_were_saved_by_other_programs_are_read(changed, suffix, layouts, tmp_path):
    layout = layouts["padchest"]
    csv_path, table = tmp_path / f"chexmask{suffix}", tmp_path / f"table{suffix}"
    csv_path.write_bytes(changed(layout.chexmask.read_bytes()))
    table.write_bytes(changed(next(layout.root.glob("PADCHEST*")).read_bytes()))
    report = build(settings_of(layout, tmp_path, chexmask=str(csv_path), table=str(table)))
    assert (report.rows, nonzero(report.counts)) == (ROWS, layout.counts)


def test_reports_in_another_encoding_do_no_harm_to_the_columns_that_are_needed(layouts, tmp_path):
    layout = layouts["padchest"]
    text = next(layout.root.glob("PADCHEST*")).read_text().replace("salto de linea", "salto de línea")
    (tmp_path / "latin.csv").write_bytes(text.encode("latin-1"))
    report = build(settings_of(layout, tmp_path, table=str(tmp_path / "latin.csv")))
    assert nonzero(report.counts) == layout.counts


def test_a_wrong_root_is_refused_without_naming_a_strangers_files(layouts, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "DOE^JANE.png").write_bytes(b"image")
    message = refusal(settings_of(layouts["vindr-cxr"], tmp_path, images=str(tmp_path / "other")))
    assert "holds no VinDr-CXR image; found 1 .png files, expected train|test/IMAGE_ID.dicom" in message
    assert "DOE" not in message
    assert "no such folder" in refusal(settings_of(layouts["vindr-cxr"], tmp_path, images=str(tmp_path / "absent")))


def test_images_that_match_no_row_are_refused_with_an_example_of_each(layouts, tmp_path):
    layout = layouts["chexpert"]
    header, rows = read_csv(layout.chexmask)
    far = [[row[0].replace("patient0", "patient8"), *row[1:]] for row in rows]
    message = refusal(settings_of(layout, tmp_path, chexmask=write_csv(tmp_path / "far.csv", header, far)))
    assert "none of the 7 images below" in message
    assert "'train/patient80001/study1/view1_frontal.jpg'" in message


def test_an_unknown_source_is_refused(layouts, tmp_path):
    assert "is not one of chestx-ray8, chexpert" in refusal(settings_of(layouts["chexpert"], tmp_path, source="jsrt"))
    told = refusal(settings_of(layouts["chexpert"], tmp_path, source="MIMIC-CXR"))
    assert "did you mean 'mimic-cxr-jpg'?" in told


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="--images is needed"):
        ManifestSourceSettings(source="chexpert")
    with pytest.raises(InputError, match="--preprocessed says what --chexmask is"):
        ManifestSourceSettings(source="chexpert", images="x", preprocessed=True)
    with pytest.raises(InputError, match="SOURCE=N"):
        ManifestMergeSettings(manifests=("m.parquet",), accept_rows=("chexpert",))


# --- --check, and S3 --------------------------------------------------------------------------------------------------


def test_check_leaves_out_what_is_gone_or_empty(tmp_path, monkeypatch):
    layout = write_layouts(tmp_path / "tree", ROWS, dirty=False)["vindr-cxr"]
    images = sorted(layout.root.rglob("*.dicom"))
    images[0].write_bytes(b"")
    listed = join.list_distribution
    # Another process removes an image between the listing and the check.
    monkeypatch.setattr(join, "list_distribution", lambda *a: (listed(*a), images[1].unlink())[0])
    report = build(settings_of(layout, tmp_path, check=True))
    assert report.rows == ROWS - 2
    assert nonzero(report.counts) == {"unreachable": 1, "empty_file": 1}


def test_a_manifest_of_all_five_layouts_on_s3(server: S3Server, tree, layouts, tmp_path):
    server.filesystem().put(str(tree), f"{server.bucket}/official", recursive=True)
    uris = []
    for name, layout in layouts.items():
        remote = f"{server.url}/official"
        settings = ManifestSourceSettings(
            source=name,
            images=f"{remote}/{name}",
            chexmask=f"{remote}/CheXmask/OriginalResolution/{layout.chexmask.name}",
            output=f"{server.url}/manifests/{name}.parquet",
            check=True,
        )
        report = build(settings)
        assert nonzero(report.counts) == layout.counts
        local = pq.read_table(build(settings_of(layout, tmp_path)).manifest)
        fs, path = storage.arrow_filesystem(report.manifest)
        table = pq.read_table(path, filesystem=fs)
        assert table.drop_columns(["uri"]).equals(local.drop_columns(["uri"]))
        assert [uri.removeprefix(f"{remote}/{name}/") for uri in table["uri"].to_pylist()] == [
            uri.removeprefix(f"{layout.root}/") for uri in local["uri"].to_pylist()
        ]
        uris.append(report.manifest)
    output = f"{server.url}/manifests/all.parquet"
    merged = merge(ManifestMergeSettings(manifests=tuple(uris), output=output, accept_less=True))
    assert merged.sources == dict.fromkeys(SOURCES, ROWS)
    assert inspect(output).rows == ROWS * len(SOURCES)


def test_a_bucket_as_other_programs_filled_it(server: S3Server, tmp_path, monkeypatch):
    keys = ["a.png", "two words.png", "a+b.png", "100%.png", "a%20b.png", "h#1.png", "q?x=1.png", "süd/胸.png"]
    keys += ["/double.png", "back\\slash.png", "a::b.png", "same.png", "same.png/in.png"]
    # Consoles, MinIO and mounts mark folders so.
    marks = ["", "sub/", "empty.png/"]
    fs = server.filesystem()
    for key in [*keys, *marks]:
        fs.call_s3("put_object", Bucket=server.bucket, Key=f"filled/{key}", Body=key.encode())
    # A store of one's own has a name, and no bucket of it is a host.
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint.replace("127.0.0.1", "localhost"))
    settings = ManifestFolderSettings(uri=f"{server.url}/filled/", output=f"{server.url}/lists/m 1+2.parquet")
    listing = list_folder(settings)
    assert (listing.rows, listing.passed_over) == (len(keys), 0)
    assert list_folder(settings) == listing
    assert inspect(listing.manifest).rows == len(keys)
    rows = parquet.read_source(listing.manifest, "folder").to_pylist()
    assert [row["image_id"] for row in rows] == sorted(keys)
    assert all(fetch(row["uri"], max_bytes=100).decode() == row["image_id"] for row in rows)
    with pytest.raises(InputError, match=r"filled: is a folder, not a manifest; .* makes one of its images"):
        check_columns(f"{server.url}/filled")
    with pytest.raises(InputError, match="choose another --output, or replace it with --overwrite"):
        list_folder(replace(settings, uri=f"{server.url}/filled/süd"))


def test_check_asks_at_least_200_objects_a_second(server: S3Server):
    count = 1200  # more than one page of a listing
    fs = server.filesystem()
    fs.pipe({f"{server.bucket}/speed/{index:04d}.dicom": b"image" for index in range(count)})
    uris = [f"{server.url}/speed/{index:04d}.dicom" for index in range(count)]
    gone = f"{server.url}/speed/gone.dicom"
    start = time.perf_counter()
    found = reach.missing([*uris, gone], f"{server.url}/speed")
    rate = (count + 1) / (time.perf_counter() - start)
    print(f"--check: {rate:.0f} objects/s")
    assert found == [*[None] * count, ("unreachable", "no such object")]
    assert rate >= 200


# --- merge ------------------------------------------------------------------------------------------------------------


def write_manifest(path: Path, source: str, count: int, start: int = 0) -> str:
    ids = [f"{index:06d}.png" for index in range(start, start + count)][::-1]
    table = pa.table(
        {
            "record_id": [f"{source}/{image_id}" for image_id in ids],
            "uri": [f"/data/{source}/{image_id}" for image_id in ids],
            "source": [source] * count,
            "image_id": ids,
        }
    )
    pq.write_table(table, path)
    return str(path)


@pytest.fixture
def manifests(tmp_path, monkeypatch):
    """One manifest per source with the rows that are expected, once these are made few."""
    few = {name: replace(source, expected_rows=5 + index) for index, (name, source) in
           enumerate(sources.PUBLISHED.items())}  # fmt: skip
    monkeypatch.setattr(sources, "PUBLISHED", few)
    return tuple(write_manifest(tmp_path / f"{n}.parquet", n, s.expected_rows) for n, s in few.items())


def test_merge_sorts_by_source_and_id_and_accepts_the_expected_totals(manifests, tmp_path):
    report = merge(ManifestMergeSettings(manifests=manifests[::-1], output=str(tmp_path / "all.parquet")))
    assert report.rows == 5 + 6 + 7 + 8 + 9
    assert report.accepted == {}
    table = pq.read_table(report.manifest)
    assert table.schema.remove_metadata() == record.MANIFEST
    keys = list(zip(table["source"].to_pylist(), table["record_id"].to_pylist(), strict=True))
    assert keys == sorted(keys)


def test_merge_joins_a_source_from_several_manifests(manifests, tmp_path):
    parts = (
        write_manifest(tmp_path / "a.parquet", "vindr-cxr", 4),
        write_manifest(tmp_path / "b.parquet", "vindr-cxr", 5, start=4),
    )
    report = merge(ManifestMergeSettings(manifests=(*manifests[:4], *parts), output=str(tmp_path / "all.parquet")))
    assert report.sources["vindr-cxr"] == 9


def test_merge_refuses_other_totals_until_they_are_accepted(manifests, tmp_path):
    fewer = write_manifest(tmp_path / "fewer.parquet", "vindr-cxr", 3)
    settings = ManifestMergeSettings(manifests=(*manifests[1:4], fewer), output=str(tmp_path / "all.parquet"))
    with pytest.raises(InputError) as caught:
        merge(settings)
    message = str(caught.value)
    assert "chestx-ray8 0 of 5, vindr-cxr 3 of 9 (24 of the 35 of all sources)" in message
    assert "--accept-rows chestx-ray8=0 --accept-rows vindr-cxr=3" in message
    assert not Path(settings.output).exists()
    with pytest.raises(InputError, match="vindr-cxr 3 of 4"):
        merge(replace(settings, accept_rows=("chestx-ray8=0", "vindr-cxr=4")))
    report = merge(replace(settings, accept_rows=("chestx-ray8=0", "vindr-cxr=3")))
    assert report.accepted == {"chestx-ray8": 0, "vindr-cxr": 3}
    assert merge(replace(settings, accept_less=True)) == report


def test_merge_never_accepts_more_as_less(manifests, tmp_path):
    more = write_manifest(tmp_path / "more.parquet", "vindr-cxr", 10)
    settings = ManifestMergeSettings(manifests=(more,), output=str(tmp_path / "all.parquet"), accept_less=True)
    with pytest.raises(InputError, match="vindr-cxr 10 of 9"):
        merge(settings)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("uri", "images/1.png", "uri 'images/1.png' is relative"),
        ("uri", "zip://1.png::a.zip", "uri 'zip://1.png::a.zip' is relative"),
        ("uri", "nosuch://bucket/1.png", "unknown scheme nosuch://"),
        ("record_id", "", "1 rows have no record_id"),
        ("image_id", None, "1 rows have no image_id"),
        ("source", "VinDr", "cannot name a dataset config"),
        ("height", 2.5, "'height' must hold int32 values"),
    ],
)
def test_merge_refuses_the_rows_that_generate_would(column, value, expected, manifests, tmp_path):
    table = pq.read_table(manifests[4]).append_column("height", pa.array([512.0] * 9))
    values = [value, *table[column].to_pylist()[1:]]
    bad = tmp_path / "bad.parquet"
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), bad)
    settings = ManifestMergeSettings(manifests=(*manifests[:4], str(bad)), output=str(tmp_path / "all.parquet"))
    for action in (lambda: merge(settings), lambda: inspect(str(bad))):
        with pytest.raises(InputError, match=expected):
            action()
    assert not Path(settings.output).exists()


def test_merge_refuses_what_would_lose_or_double_rows(manifests, tmp_path):
    again = write_manifest(tmp_path / "again.parquet", "chexpert", 2)
    cases = [
        ((*manifests, again), "chexpert.parquet and .*again.parquet: 2 record ids occur more than once"),
        ((*manifests, manifests[0]), "named twice"),
        ((*manifests, str(tmp_path / "absent.parquet")), "no such manifest"),
        ((), "manifests is needed"),
    ]
    for inputs, expected in cases:
        with pytest.raises(InputError, match=expected):
            merge(ManifestMergeSettings(manifests=inputs, output=str(tmp_path / "all.parquet")))
    with pytest.raises(InputError, match="choose another --output"):
        merge(ManifestMergeSettings(manifests=manifests, output=manifests[0]))
    output = str(tmp_path / "all.parquet")
    with pytest.raises(InputError, match="nothing is expected of it"):
        merge(ManifestMergeSettings(manifests=manifests, output=output, accept_rows=("mine=3",)))
    with pytest.raises(InputError, match="did you mean 'chexpert'"):
        merge(ManifestMergeSettings(manifests=manifests, output=output, accept_rows=("chexprt=3",)))
