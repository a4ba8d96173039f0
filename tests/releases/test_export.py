"""An export is what existing scripts read: CheXmask's CSVs and COCO, whole or not there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

import chexmask_u as cu
from chexmask_u import cli, sources
from chexmask_u.columns import to_landmarks
from chexmask_u.errors import InputError
from chexmask_u.manifests.chexmask_csv import read_rows
from chexmask_u.releases.export import ExportReport, export
from chexmask_u.releases.export.formats import chexmask_csv
from chexmask_u.releases.export.output import whole_files
from chexmask_u.releases.release import MARKER
from chexmask_u.settings import ExportSettings
from tests.support.chosen_releases import Record, draw, letterbox, write_release
from tests.support.official_layouts import PUBLISHED_FILES
from tests.support.s3 import S3Server, own_bucket

# pycocotools' own.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASK_COLUMNS = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}

# As `manifest` gives them, and as the published rows are named.
IDS = {
    "chestx-ray8": "00000001_{:03d}.png",
    "chexpert": "train/patient{:05d}/study1/view1_frontal.jpg",
    "mimic-cxr-jpg": "02aa804e-bde0afdd-112c0b34-7bc16630-{:08d}",
    "padchest": "21684011136696401359014047672201_{:03d}.png",
    "vindr-cxr": "000434271f63a053c4128a0ba63{:05d}",
    "my-hospital": "ward, 3/{:03d}.png",
}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """Five records of each published source and of one's own; images of many shapes, borders and scores."""
    shapes = [(1024, 1024), (700, 512), (480, 900), (1500, 1203), (61, 64)]
    records = {}
    for source, pattern in IDS.items():
        records[source] = []
        for index, (height, width) in enumerate(shapes):
            if source == "chestx-ray8":
                height = width = 1024
            facts = {"crop": (9, 4, width - 20, height - 11)} if sources.get(source).crop_border else {}
            scores = {"dice_rca_mean": 0.81 + index / 99, "dice_rca_max": 0.9} if index else {}
            # Written backwards: a release is sorted.
            records[source].insert(0, draw(pattern.format(index), height, width, index, **facts, **scores))
    return write_release(tmp_path_factory.mktemp("release") / "v1.0.0", records)


@pytest.fixture(scope="module")
def csvs(released, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("csvs")
    run(released, output)
    return output


def run(released: Path | str, output: Path | str, format: str = "chexmask-csv") -> ExportReport:
    return export(ExportSettings(release=str(released), output=str(output), format=format))


def rows_of(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(1 << 24)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def array(cell: str) -> np.ndarray:
    return np.array(cell.split(","), float).reshape(120, 2)


def published_file(source: str) -> str:
    return PUBLISHED_FILES.get(source, f"{source}.csv")


def imported(path: Path, source: str) -> pa.Table:
    return pa.Table.from_batches(cu.read_published(str(path), source))


# --- CheXmask's CSVs --------------------------------------------------------------------------------------------------


def test_files_columns_and_their_order_are_the_published_ones(csvs):
    expected = {
        f"{folder}/{published_file(source)}" for source in IDS for folder in ("OriginalResolution", "Preprocessed")
    }
    found = {str(file.relative_to(csvs)) for file in csvs.rglob("*.csv")}
    assert found == expected
    end = "Landmarks (Mean),Landmarks (Std),Left Lung,Right Lung,Heart,Height,Width\r\n"
    for source, column in {
        "chestx-ray8": "Image Index",
        "chexpert": "Path",
        "mimic-cxr-jpg": "dicom_id",
        "vindr-cxr": "image_id",
        "my-hospital": "image_id",
    }.items():
        with (csvs / "OriginalResolution" / published_file(source)).open(newline="") as file:
            assert file.readline() == f"{column},Dice RCA (Mean),Dice RCA (Max),{end}"
    with (csvs / "Preprocessed" / "Padchest.csv").open(newline="") as file:
        assert file.readline() == f"ImageID,Dice RCA (Max),Dice RCA (Mean),{end}"


def test_the_published_files_have_these_columns_too(csvs, shared):
    for source in PUBLISHED_FILES:
        theirs = rows_of(shared / "data" / "chexmask_published" / published_file(source))[0]
        ours = rows_of(csvs / "OriginalResolution" / published_file(source))[0]
        assert [name for name in ours if name != "Landmarks (Std)"] == [
            name.replace("Landmarks", "Landmarks (Mean)") for name in theirs
        ]


@pytest.mark.parametrize("source", IDS)
def test_original_resolution_has_rounded_landmarks_and_the_releases_own_masks(csvs, released, source):
    rows = rows_of(csvs / "OriginalResolution" / published_file(source))
    assert [row[sources.get(source).id_column] for row in rows] == [IDS[source].format(index) for index in range(5)]
    for index, row in enumerate(rows):
        height, width = int(row["Height"]), int(row["Width"])
        truth = draw("", height, width, index)
        np.testing.assert_array_equal(array(row["Landmarks (Mean)"]), np.rint(truth.mean))
        assert {len(cell.partition(".")[2]) for cell in row["Landmarks (Std)"].split(",")} == {2}
        np.testing.assert_allclose(array(row["Landmarks (Std)"]), truth.std, atol=0.005001)
        for organ, column in MASK_COLUMNS.items():
            expected = cu.organ_mask(truth.mean.astype(np.float32), organ, height, width)
            np.testing.assert_array_equal(cu.rle_decode(row[column], height, width), expected)
        if index:
            assert np.float32(row["Dice RCA (Mean)"]) == np.float32(0.81 + index / 99)
            assert row["Dice RCA (Max)"] == "0.9"
        else:
            assert row["Dice RCA (Mean)"] == row["Dice RCA (Max)"] == ""


@pytest.mark.parametrize("source", IDS)
def test_preprocessed_is_the_1024_frame_with_masks_drawn_there(csvs, source):
    original = rows_of(csvs / "OriginalResolution" / published_file(source))
    rows = rows_of(csvs / "Preprocessed" / published_file(source))
    for index, (row, at_home) in enumerate(zip(rows, original, strict=True)):
        assert (row["Height"], row["Width"]) == ("1024", "1024")
        height, width = int(at_home["Height"]), int(at_home["Width"])
        left, top = (9, 4) if source in ("mimic-cxr-jpg", "padchest") else (0, 0)
        kept_height, kept_width = (height - 11, width - 20) if left else (height, width)
        side = max(kept_height, kept_width)
        pad = ((side - kept_width) // 2, (side - kept_height) // 2)
        truth = draw("", height, width, index)
        frame = (truth.mean.astype(np.float32) - (left, top) + pad) * 1024 / side
        np.testing.assert_allclose(array(row["Landmarks (Mean)"]), np.rint(frame))
        np.testing.assert_allclose(array(row["Landmarks (Std)"]), truth.std * 1024 / side, atol=0.00501)
        for organ, column in MASK_COLUMNS.items():
            np.testing.assert_array_equal(
                cu.rle_decode(row[column], 1024, 1024), cu.organ_mask(frame, organ, 1024, 1024)
            )


@pytest.mark.parametrize("folder", ["OriginalResolution", "Preprocessed"])
@pytest.mark.parametrize("source", IDS)
def test_what_is_imported_again_is_what_was_exported(csvs, source, folder):
    path = csvs / folder / published_file(source)
    table = imported(path, source)
    rows = rows_of(path)
    assert table["image_id"].to_pylist() == [IDS[source].format(index) for index in range(5)]
    assert table["flags"].to_pylist() == [["no_scores"], [], [], [], []]
    for name in ("mean", "std"):
        for points, row in zip(to_landmarks(table[f"landmarks_{name}"]), rows, strict=True):
            np.testing.assert_array_equal(points, array(row[f"Landmarks ({name.title()})"]).astype(np.float32))
    for organ, column in MASK_COLUMNS.items():
        assert table[organ].to_pylist() == [row[column] for row in rows]
    for side in ("height", "width"):
        assert table[side].to_pylist() == [int(row[side.title()]) for row in rows]


def test_a_manifest_takes_scores_and_sizes_from_an_export(csvs):
    for source in PUBLISHED_FILES:
        rows = read_rows(
            sources.get(source), str(csvs / "OriginalResolution" / published_file(source)), None, preprocessed=False
        )
        assert rows["mean"].null_count == 1
        assert rows["max"].to_pylist() == [None, 0.9, 0.9, 0.9, 0.9]
        assert rows["height"].null_count == 0


def test_ids_of_a_folder_listing_become_those_of_the_published_rows(tmp_path):
    """Whoever lists a downloaded data set as a folder has paths for ids."""
    records = {
        "chestx-ray8": [draw("images_001/images/00000001_000.png", 1024, 1024, 0)],
        "chexpert": [draw("CheXpert-v1.0/valid/patient00001/study1/view1_frontal.jpg", 99, 80, 0)],
        "vindr-cxr": [draw("train/000434271f63a053c4128a0ba6352c7f.dicom", 99, 80, 0)],
    }
    run(write_release(tmp_path / "v1.0.0", records), tmp_path / "out")
    folder = tmp_path / "out" / "OriginalResolution"
    assert rows_of(folder / "ChestX-Ray8.csv")[0]["Image Index"] == "00000001_000.png"
    assert rows_of(folder / "CheXpert.csv")[0]["Path"] == "valid/patient00001/study1/view1_frontal.jpg"
    assert rows_of(folder / "VinDr-CXR.csv")[0]["image_id"] == "000434271f63a053c4128a0ba6352c7f"


@pytest.mark.parametrize("source", PUBLISHED_FILES)
def test_published_rows_come_back_cell_for_cell(shared, tmp_path, source):
    """Published CSV -> import -> the same numbers -> cells; and through a release, which keeps scores as float32."""
    path = shared / "data" / "chexmask_published" / published_file(source)
    rows = rows_of(path)
    table = imported(path, source)
    records = []
    for row, fields, mean in zip(rows, table.to_pylist(), to_landmarks(table["landmarks_mean"]), strict=True):
        scores = [np.float64(fields[name]) for name in ("dice_rca_mean", "dice_rca_max")]
        std = np.full((120, 2), 1.25)
        cells = chexmask_csv.cells(
            sources.get(source), fields["image_id"], *scores, mean, std, fields, fields["height"], fields["width"]
        )
        text = io.StringIO()
        csv.writer(text).writerow(cells.values())
        written = dict(zip(cells, next(csv.reader([text.getvalue()])), strict=True))
        assert_same_cells(written, row)
        if fields["height"] is not None:
            frame = letterbox(fields["height"], fields["width"])
            records.append(Record(fields["image_id"], fields["height"], fields["width"], frame, mean, std, *scores))
    run(write_release(tmp_path / "v1.0.0", {source: records}), tmp_path / "out")
    by_id = {row[sources.get(source).id_column]: row for row in rows}
    for folder in ("OriginalResolution", "Preprocessed"):
        exported = rows_of(tmp_path / "out" / folder / published_file(source))
        assert len(exported) == len(records)
        for row in exported:
            theirs = by_id[row[sources.get(source).id_column]]
            for name in ("Dice RCA (Mean)", "Dice RCA (Max)"):
                assert np.float32(row[name]) == np.float32(theirs[name])
                row[name] = theirs[name]
            assert_same_cells(row, theirs)


def assert_same_cells(ours: dict[str, str], theirs: dict[str, str]) -> None:
    """All but the spread, which the older form lacks; sizes of PadChest are published as 1024.0."""
    for name, cell in theirs.items():
        if name in ("Height", "Width"):
            cell = cell.removesuffix(".0")
        assert ours["Landmarks (Mean)" if name == "Landmarks" else name] == cell, name


# --- COCO -------------------------------------------------------------------------------------------------------------


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def test_pycocotools_reads_polygons_that_cover_our_masks(released, tmp_path):
    run(released, tmp_path, "coco")
    for source, pattern in IDS.items():
        coco = load(tmp_path / f"{source}.json")
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(cu.ORGANS)
        images = coco.loadImgs(coco.getImgIds())
        assert [image["file_name"] for image in images] == [pattern.format(index) for index in range(5)]
        for index, image in enumerate(images):
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
            assert [annotation["category_id"] for annotation in annotations] == [1, 2, 3]
            truth = draw("", image["height"], image["width"], index).mean.astype(np.float32)
            for organ, annotation in zip(cu.ORGANS, annotations, strict=True):
                ours = cu.organ_mask(truth, organ, image["height"], image["width"])
                theirs = coco.annToMask(annotation)
                # OpenCV fills the contour's own pixels too, so ours reaches half a pixel farther; and it rounds first.
                perimeter = cv2.arcLength(truth[cu.LANDMARKS[organ]], True)
                assert (ours != theirs).sum() < perimeter
                assert annotation["area"] == pytest.approx(theirs.sum(), abs=perimeter / 10)


def test_annotations_say_where_and_how_sure_each_landmark_is(released, tmp_path):
    run(released, tmp_path, "coco")
    coco = load(tmp_path / "mimic-cxr-jpg.json")
    assert coco.dataset["info"]["version"] == "v1.0.0"
    assert "keypoints_std" in coco.dataset["info"]["description"]
    ids = coco.getAnnIds()
    assert sorted(ids) == list(range(1, 16))
    image = coco.loadImgs([2])[0]
    assert image["record_id"] == f"mimic-cxr-jpg/{image['file_name']}"
    assert image["dice_rca_mean"] == pytest.approx(0.81 + 1 / 99, abs=1e-7)
    truth = draw("", image["height"], image["width"], 1)
    scale = 1024 / max(image["height"] - 11, image["width"] - 20)
    for organ, category, annotation in zip(
        cu.ORGANS, coco.loadCats([1, 2, 3]), coco.loadAnns(coco.getAnnIds(imgIds=2)), strict=True
    ):
        mean, std = truth.mean[cu.LANDMARKS[organ]], truth.std[cu.LANDMARKS[organ]]
        count = len(mean)
        keypoints = np.array(annotation["keypoints"]).reshape(count, 3)
        np.testing.assert_allclose(keypoints[:, :2], mean, atol=0.00502)
        assert set(keypoints[:, 2]) == {2}
        assert annotation["num_keypoints"] == len(category["keypoints"]) == len(set(category["keypoints"])) == count
        assert category["skeleton"] == [[node, node % count + 1] for node in range(1, count + 1)]
        np.testing.assert_array_equal(np.reshape(annotation["segmentation"][0], (-1, 2)), keypoints[:, :2])
        np.testing.assert_allclose(np.reshape(annotation["keypoints_std"], (-1, 2)), std, atol=0.00502)
        assert annotation["uncertainty"] == pytest.approx(std.mean() * scale, rel=1e-5)
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([x, y], mean.min(axis=0), atol=0.006)
        np.testing.assert_allclose([x + width, y + height], mean.max(axis=0), atol=0.02)
        assert annotation["iscrowd"] == 0


SHIFTS = {
    "right": (90, 0),
    "left": (-95, 0),
    "top": (0, -190),
    "bottom": (0, 100),
    "corner": (85, 100),
    "a sliver": (129, 0),
    "around the image": (0, 0),
}


def shape(name: str, part: slice) -> np.ndarray:
    """A heart [26, 2] that leaves an image of 200 x 300 pixels in a way of its own."""
    count = part.stop - part.start
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if name == "around the image":
        return circle * 400 + (100, 150)
    if name == "in pieces":
        # Its spikes reach in from below, and what joins them lies outside.
        return np.stack([np.linspace(20, 180, count), np.where(np.arange(count) % 3 == 1, 220, 330.0)], axis=1)
    if name == "around a corner":
        # In over the right border only, though its way leads past the corner.
        return np.concatenate([circle[:-4] * (30, 25) + (195, 60), [(215, 40), (210, -9), (190, -9), (230, -20)]])
    if name == "crossing itself":
        return np.stack([100 * np.sin(angle) + 190, 60 * np.sin(2 * angle) + 100], axis=1)
    return circle * (40, 45) + (104, 195) + np.array(SHIFTS[name])


@pytest.mark.parametrize("name", [*SHIFTS, "in pieces", "around a corner", "crossing itself"])
def test_beyond_the_border_area_box_and_visibility_are_those_that_pycocotools_computes(tmp_path, name):
    record = draw("a", 300, 200, 0)
    part = cu.LANDMARKS["heart"]
    record.mean[part] = shape(name, part)
    run(write_release(tmp_path / "v1.0.0", {"x": [record]}), tmp_path / "out", "coco")
    coco = load(tmp_path / "out" / "x.json")
    lung, _, heart = coco.loadAnns(coco.getAnnIds())
    points = np.array(heart["keypoints"]).reshape(-1, 3)
    outside = (points[:, :2] < 0).any(axis=1) | (points[:, :2] > (200, 300)).any(axis=1)
    np.testing.assert_array_equal(points[:, 2], np.where(outside, 0, 2))
    assert heart["num_keypoints"] == (~outside).sum() < 26
    assert set(lung["keypoints"][2::3]) == {2}
    # Masks of the whole contour, which pycocotools cuts while it fills it, and of the polygon that was cut here.
    whole = coco_masks.merge(coco_masks.frPyObjects([record.mean[part].ravel().tolist()], 300, 200))
    edge = cv2.arcLength(record.mean[part].clip(0, (200, 300)).astype(np.float32), True)
    assert heart["area"] == pytest.approx(float(coco_masks.area(whole)), abs=2 + edge / 50)
    assert (coco.annToMask(heart) != coco_masks.decode(whole)).sum() <= edge / 30
    ours = cu.organ_mask(record.mean, "heart", 300, 200)
    assert (coco.annToMask(heart) != ours).sum() <= edge
    x, y, width, height = heart["bbox"]
    left, top, wide, high = coco_masks.toBbox(whole)
    np.testing.assert_allclose([x, y, x + width, y + height], [left, top, left + wide, top + high], atol=1.5)
    ring = np.reshape(heart["segmentation"][0], (-1, 2))
    assert (ring >= 0).all()
    assert (ring <= (200, 300)).all()


@pytest.mark.parametrize("shift", [(300, 0), (0, -400), (-145, 0), (136, 0)])
def test_an_organ_outside_the_image_has_no_annotation(tmp_path, shift):
    """Also where it touches the border; a box without a width ends trainings, and scores count it as missed."""
    record = draw("a", 300, 200, 0)
    part = cu.LANDMARKS["heart"]
    record.mean[part] = shape("right", part) - SHIFTS["right"] + np.array(shift)
    run(write_release(tmp_path / "v1.0.0", {"x": [record, draw("b", 300, 200, 1)]}), tmp_path / "out", "coco")
    coco = load(tmp_path / "out" / "x.json")
    assert [annotation["category_id"] for annotation in coco.loadAnns(coco.getAnnIds(imgIds=1))] == [1, 2]
    assert len(coco.getAnnIds(imgIds=2)) == 3
    assert not cu.organ_mask(record.mean, "heart", 300, 200)[:, :-1].any()


def test_contours_of_real_images_that_are_cut_off(shared, tmp_path):
    """Radiographs cut through the lungs, with the bundled weights, as people's files are."""
    folder = shared / "cases" / "contour-beyond-the-border"
    records = []
    model = cu.load_model("demo")
    for file in sorted(folder.glob("*.png")):
        read = cu.read_image(str(file))
        prediction = cu.predict(model, read.image[None], [file.name], n_samples=5)
        mean = read.letterbox.to_original(prediction.landmarks_mean[0])
        std = read.letterbox.spread_to_original(prediction.landmarks_std[0])
        records.append(Record(file.name, read.height, read.width, read.letterbox, mean, std))
    run(write_release(tmp_path / "v1.0.0", {"x": records}), tmp_path / "out", "coco")
    coco = load(tmp_path / "out" / "x.json")
    beyond = 0
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToRLE(annotation)
        points = np.array(annotation["keypoints"]).reshape(-1, 3)
        beyond += (points[:, 2] == 0).sum()
        assert annotation["area"] == pytest.approx(float(coco_masks.area(mask)), rel=0.01)
        left, top, wide, high = coco_masks.toBbox(mask)
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], [left, top, left + wide, top + high], atol=2)
    assert beyond > 10


# --- whole or not there -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk_of(bytes_a_file: int):
    """Files grow to so many bytes and no farther, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format", ["chexmask-csv", "coco"])
def test_an_export_that_is_stopped_leaves_no_half_file_and_goes_on(tmp_path, format):
    records = {"a": [draw("0", 90, 80, 0)], "b": [draw(str(index), 90, 80, index) for index in range(12)]}
    folder = write_release(tmp_path / "v1.0.0", {**records, "c": records["a"]})
    output = tmp_path / "out"
    with disk_of(40_000), pytest.raises(InputError, match=r"cannot be written \(OSError: .*File too large"):
        run(folder, output, format)
    found = [file for file in output.rglob("*") if file.is_file() and not file.name.startswith(".export-")]
    assert {file.stem for file in found} == {"a"}
    assert {file.suffix for file in found} <= {".csv", ".json"}
    before = {file: file.stat().st_mtime_ns for file in found}
    assert run(folder, output, format).made_before == ("a",)
    assert {file: file.stat().st_mtime_ns for file in found} == before
    assert run(folder, output, format).made_before == ("a", "b", "c")
    run(folder, tmp_path / "at-once", format)
    for file in output.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "at-once" / file.relative_to(output)).read_bytes()


@pytest.mark.parametrize("damage", ["edited", "cut", "lost", "a page lost"])
@pytest.mark.parametrize("format", ["chexmask-csv", "coco"])
def test_a_release_that_is_not_whole_is_refused_before_anything_is_written(released, tmp_path, format, damage):
    hurt = Path(shutil.copytree(released, tmp_path / "v1.0.0"))
    shard = hurt / "mimic-cxr-jpg" / "landmarks-00001-of-00002.parquet"
    if damage == "edited":
        # Other numbers in a sound file, so that only its sha256 tells.
        table = pq.read_table(shard)
        pq.write_table(table.set_column(3, table.schema.field(3), pa.array([70] * len(table), pa.int32())), shard)
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-50])
    else:
        shard = shard if damage == "lost" else hurt / "README.md"
        shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name}: .*(missing|edited).*copy the release anew"):
        run(hurt, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def exchange(folder: Path, path: str, other: str) -> None:
    """Put another shard in a shard's place, as a release that was written wrongly has it: its checksums are right."""
    shutil.copy(folder / other, folder / path)
    content = json.loads((folder / MARKER).read_text())
    facts = {file["path"]: file for file in content["files"]}
    facts[path] |= {name: facts[other][name] for name in ("bytes", "sha256", "rows")}
    (folder / MARKER).write_text(json.dumps(content))


def test_masks_that_do_not_belong_to_the_landmarks_end_it(released, tmp_path):
    hurt = Path(shutil.copytree(released, tmp_path / "v1.0.0"))
    exchange(hurt, "padchest/masks-00001-of-00002.parquet", "vindr-cxr/masks-00001-of-00002.parquet")
    with pytest.raises(InputError, match="masks of padchest are not of the same records as its landmarks"):
        run(hurt, tmp_path / "out")
    assert not (tmp_path / "out" / "Preprocessed" / "Padchest.csv").exists()
    assert (tmp_path / "out" / "Preprocessed" / "CheXpert.csv").exists()


def test_a_file_that_is_there_is_never_replaced(released, tmp_path):
    theirs = tmp_path / "OriginalResolution" / "CheXpert.csv"
    theirs.parent.mkdir()
    theirs.write_text("as downloaded")
    with pytest.raises(InputError, match=r"CheXpert\.csv: exists, and nothing in .*; move it away, or choose another"):
        run(released, tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [theirs]
    shutil.rmtree(theirs.parent)
    run(released, tmp_path)
    theirs.write_text("edited")
    with pytest.raises(InputError, match=r"CheXpert\.csv: has 6 bytes, not the [\d,]+ that were exported"):
        run(released, tmp_path)
    assert theirs.read_text() == "edited"
    theirs.unlink()
    run(released, tmp_path)
    same_size = theirs.read_bytes().replace(b"1", b"2")
    theirs.write_bytes(same_size)
    with pytest.raises(InputError, match=r"CheXpert\.csv: its sha256 is not that of what was exported; move it away"):
        run(released, tmp_path)
    assert theirs.read_bytes() == same_size


def test_a_folder_of_other_things_is_left_alone(released, tmp_path):
    """Scripts take every file of a folder; only where an export began before may others have come since."""
    notes = tmp_path / "notes.json"
    notes.write_text("{}")
    for kind in ("chexmask-csv", "coco"):
        with pytest.raises(InputError, match=r"is not empty and holds no export \(there is 'notes.json'\); choose"):
            run(released, tmp_path, kind)
    assert list(tmp_path.iterdir()) == [notes]
    notes.rename(tmp_path / ".DS_Store")
    run(released, tmp_path)
    notes.write_text("{}")
    assert run(released, tmp_path).made_before == tuple(sorted(IDS))
    assert run(released, tmp_path, "coco").made_before == ()
    assert notes.read_text() == "{}"


def test_two_exports_do_not_write_the_same_file_at_a_time(released, tmp_path):
    run(released, tmp_path)
    theirs = tmp_path / "OriginalResolution" / "CheXpert.csv"
    theirs.unlink()
    with whole_files([str(theirs)]) as (stream,):
        stream.write("half")
        with pytest.raises(InputError, match=r"CheXpert\.csv: another export writes it"):
            run(released, tmp_path)
        stream.write(" and whole")
    assert theirs.read_text() == "half and whole"


def test_an_output_belongs_to_one_release(released, tmp_path):
    run(released, tmp_path / "out", "coco")
    other = Path(shutil.copytree(released, tmp_path / "v1.0.1"))
    content = json.loads((other / MARKER).read_text())
    (other / MARKER).write_text(json.dumps(content | {"version": "v1.0.1"}))
    with pytest.raises(InputError, match=r"exported from another release.* v1\.0\.0 .*not v1\.0\.1 .*another --output"):
        run(other, tmp_path / "out", "coco")
    # The other format has files of its own.
    run(other, tmp_path / "out")


def test_on_s3_an_object_appears_when_it_is_whole(released, s3: S3Server, tmp_path, monkeypatch):
    with own_bucket(s3, "export") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        fs = server.filesystem()
        fs.put(str(released), f"{server.bucket}/v1.0.0", recursive=True)
        hurt = Path(shutil.copytree(released, tmp_path / "hurt"))
        exchange(hurt, "mimic-cxr-jpg/masks-00001-of-00002.parquet", "padchest/masks-00001-of-00002.parquet")
        with pytest.raises(InputError, match="masks of mimic-cxr-jpg are not of the same records"):
            run(hurt, f"{server.url}/hurt")
        found = [Path(file).name for file in fs.find(f"{server.bucket}/hurt")]
        assert sorted(found) == sorted([".export-chexmask-csv.json", *["ChestX-Ray8.csv", "CheXpert.csv"] * 2])
        shard = f"{server.bucket}/v1.0.0/mimic-cxr-jpg/masks-00001-of-00002.parquet"
        content = fs.cat_file(shard)
        fs.pipe_file(shard, content[: len(content) // 2])
        with pytest.raises(InputError, match="masks-00001-of-00002"):
            run(f"{server.url}/v1.0.0", f"{server.url}/out")
        assert not fs.exists(f"{server.bucket}/out")
        fs.pipe_file(shard, content)
        run(f"{server.url}/v1.0.0", f"{server.url}/out")
        assert run(f"{server.url}/v1.0.0", f"{server.url}/out").made_before == tuple(sorted(IDS))
        run(released, tmp_path / "local")
        for source in IDS:
            name = f"OriginalResolution/{published_file(source)}"
            assert fs.cat_file(f"{server.bucket}/out/{name}") == (tmp_path / "local" / name).read_bytes()
        assert len(imported(f"{server.url}/out/Preprocessed/Padchest.csv", "padchest")) == 5
        with pytest.raises(InputError, match=r"no-such-bucket.*cannot be written"):
            run(released, "s3://no-such-bucket/out")
        assert not fs.exists("no-such-bucket")


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_is_no_release_or_no_place_to_write_is_named(released, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: is no release \(no release\.json\)"):
        run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/out: cannot be written"):
        run(released, tmp_path / "file" / "out")
    with pytest.raises(InputError, match="is in the release, which never changes"):
        run(released, released / "csv")
    with pytest.raises(InputError, match="--format must be one of chexmask-csv, coco, not 'yolo'"):
        run(released, tmp_path / "out", "yolo")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".export-coco.json").write_text("{")
    with pytest.raises(InputError, match=r"\.export-coco\.json: is no JSON; choose another folder"):
        run(released, tmp_path / "out", "coco")


def test_the_command_line_says_where_the_files_are(released, tmp_path, capsys):
    arguments = ["export", str(released), "--format", "chexmask-csv", "--output", str(tmp_path)]
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["rows"] == dict.fromkeys(IDS, 5)
    assert all((tmp_path / file).is_file() for files in report["files"].values() for file in files)
    assert cli.main(arguments) == 0
    assert "OriginalResolution/ChestX-Ray8.csv: 5 (made before)" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path), "--format", "coco", "--output", f"{tmp_path}-coco"]) == 2
    assert "is no release" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(released), "--format", "yolo", "--output", str(tmp_path)])
    assert ended.value.code == 2
