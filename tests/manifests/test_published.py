"""Published CheXmask CSVs, as dirty as they are, become rows of the release's types; other files say what they are."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import chexmask_u as cu
from chexmask_u import record, sources
from chexmask_u.columns import to_landmarks
from chexmask_u.manifests.published import FLAGS, PUBLISHED_ROW
from chexmask_u.steps.mask import organ_rle
from tests.support.official_layouts import PUBLISHED_FILES

NEW = ["Landmarks (Mean)", "Landmarks (Std)"]
OLD = ["Landmarks"]
MASKS = {"Left Lung": "1 2", "Right Lung": "5 3", "Heart": ""}


def points(seed: int) -> str:
    return ",".join(map(str, np.random.default_rng(seed).integers(-3, 1024, 240)))


def row(name: str, forms: list[str] = NEW, column: str = "dicom_id", **changes: str) -> dict[str, str]:
    cells = {column: name, "Dice RCA (Mean)": "0.8371115419443061", "Dice RCA (Max)": "0.9"}
    cells |= {form: points(index) for index, form in enumerate(forms)}
    if "Landmarks (Std)" in cells:
        cells["Landmarks (Std)"] = ",".join(["1.25", "0.50"] * 120)
    return cells | MASKS | {"Height": "2500", "Width": "3000"} | changes


def write(path: Path, rows: list[dict[str, str]], separator: str = ",") -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def read(uri: str, source: str | None = None) -> pa.Table:
    return pa.Table.from_batches(cu.read_published(uri, source))


def test_a_row_of_the_newest_form_is_read_whole(tmp_path):
    table = read(write(tmp_path / "mimic.csv", [row("a")]))
    assert table.schema == PUBLISHED_ROW
    assert table.schema.field("landmarks_mean").type == record.LANDMARK_ARRAY
    read_row = table.to_pylist()[0]
    assert (read_row["image_id"], read_row["height"], read_row["width"]) == ("a", 2500, 3000)
    assert (read_row["dice_rca_mean"], read_row["dice_rca_max"]) == (0.8371115419443061, 0.9)
    assert (read_row["left_lung"], read_row["right_lung"], read_row["heart"]) == ("1 2", "5 3", "")
    assert read_row["flags"] == []
    (mean,), (std,) = (list(to_landmarks(table[name])) for name in ("landmarks_mean", "landmarks_std"))
    assert mean.ravel().tolist() == [float(value) for value in points(0).split(",")]
    assert std.tolist() == [[1.25, 0.5]] * 120


def test_the_older_form_has_no_spread(tmp_path):
    table = read(write(tmp_path / "mimic.csv", [row("a", OLD), row("b", OLD)]))
    assert table["landmarks_std"].null_count == 2
    assert table["landmarks_mean"].null_count == 0


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"Height": "", "Width": ""}, ["no_size"]),
        ({"Height": "0"}, ["no_size"]),
        ({"Height": "2500.0", "Width": "3000.0"}, []),
        ({"Dice RCA (Max)": "0.8"}, ["max_below_mean"]),
        ({"Dice RCA (Mean)": "", "Dice RCA (Max)": "nan"}, ["no_scores"]),
        ({"Landmarks (Mean)": ""}, ["no_landmarks"]),
        ({"dicom_id": " "}, ["no_id"]),
    ],
)
def test_a_dirty_row_is_kept_and_flagged(tmp_path, changes, flags):
    rows = read(write(tmp_path / "mimic.csv", [row("a"), row("b") | changes, row("c")])).to_pylist()
    assert [found["flags"] for found in rows] == [[], flags, []]
    assert set(flags) <= set(FLAGS)
    if "no_size" in flags:
        assert rows[1]["height"] is None
        assert rows[1]["left_lung"] == "1 2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Landmarks (Mean)": "1,2,3"}, r"row 'b': Landmarks \(Mean\) holds 3 values, expected 240"),
        ({"Landmarks (Mean)": points(0)[:-1] + "x"}, r"row 'b': Landmarks \(Mean\) holds what is no number"),
        ({"Landmarks (Mean)": "," * 239}, r"row 'b': Landmarks \(Mean\) holds what is no number"),
        ({"Landmarks (Std)": ",".join(["nan"] * 240)}, r"row 'b': Landmarks \(Std\) holds what is no number"),
        ({"Landmarks (Std)": ",".join(["-1"] * 240)}, r"row 'b': Landmarks \(Std\) holds a negative"),
    ],
)
def test_landmarks_that_are_no_240_numbers_name_their_row(tmp_path, changes, words):
    with pytest.raises(ValueError, match=rf"mimic\.csv: {words}.*take it as published"):
        read(write(tmp_path / "mimic.csv", [row("a"), row("b") | changes]))


def test_the_source_is_told_by_the_id_column(tmp_path):
    for name in sources.PUBLISHED:
        column = sources.get(name).id_column
        assert len(read(write(tmp_path / "a.csv", [row("a", column=column)]))) == 1
    prefixed = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    table = read(write(tmp_path / "chexpert.csv", [row(prefixed, column="Path")]))
    assert table["image_id"].to_pylist() == ["train/patient00001/study1/view1_frontal.jpg"]


def test_sources_that_share_an_id_column_are_told_by_the_files_name(tmp_path, monkeypatch):
    prefixed = replace(sources.get("vindr-cxr"), name="abroad", csv_name="Abroad", row_id=lambda value: f"far/{value}")
    monkeypatch.setattr(sources, "PUBLISHED", {"abroad": prefixed, **sources.PUBLISHED})
    names = {"Abroad.csv": "far/a", "VinDr-CXR.csv": "a", "vindr-cxr.csv.gz": "a"}
    for name, image_id in names.items():
        path = Path(write(tmp_path / name, [row("a", column="image_id")]))
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
        assert read(str(path))["image_id"].to_pylist() == [image_id]
    other = write(tmp_path / "other.csv", [row("a", column="image_id")])
    with pytest.raises(ValueError, match=r"other\.csv: may be of VinDr-CXR or VinDr-CXR, by its columns; say which"):
        read(other)
    assert read(other, "abroad")["image_id"].to_pylist() == ["far/a"]


def test_a_file_that_is_no_such_csv_says_what_it_is_and_what_to_do(tmp_path):
    semicolons = write(tmp_path / "semicolons.csv", [row("a")], separator=";")
    with pytest.raises(ValueError, match=r"separated by ';'; expected a CheXmask CSV of MIMIC-CXR-JPG"):
        read(semicolons)
    with pytest.raises(ValueError, match=r"id column of MIMIC-CXR-JPG.*CheXmask CSV of PadChest.*of the same source"):
        read(write(tmp_path / "other.csv", [row("a")]), "padchest")
    columns = {name: cell for name, cell in row("a").items() if name not in ("Heart", "Landmarks (Std)")}
    with pytest.raises(ValueError, match=r"has no column 'Landmarks \(Std\)', 'Heart'; found 'dicom_id'"):
        read(write(tmp_path / "columns.csv", [columns]))
    with pytest.raises(ValueError, match=r"has no column 'image_id'.*found 'subject_id', 'label'"):
        read(write(tmp_path / "labels.csv", [{"subject_id": "1", "label": "2"}]))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="is empty"):
        read(str(tmp_path / "empty.csv"))
    with pytest.raises(ValueError, match="no such file; expected a CheXmask CSV"):
        read(str(tmp_path / "none.csv"))


def test_a_large_file_comes_in_batches_and_may_be_compressed(tmp_path):
    long = " ".join(["1 2"] * 20_000)
    path = Path(write(tmp_path / "mimic.csv", [row(f"{index:03d}", Heart=long) for index in range(150)]))
    packed = tmp_path / "mimic.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    batches = list(cu.read_published(str(packed)))
    assert len(batches) > 3
    assert [name for batch in batches for name in batch["image_id"].to_pylist()] == [f"{i:03d}" for i in range(150)]


def test_the_real_published_rows_are_read_flagged_and_kept(shared):
    flagged, masks = {}, 0
    for name, file in PUBLISHED_FILES.items():
        table = read(str(shared / "data" / "chexmask_published" / file), name)
        flagged[name] = sum(map(bool, table["flags"].to_pylist()))
        for points_, fields in zip(to_landmarks(table["landmarks_mean"]), table.to_pylist(), strict=True):
            if fields["height"] is not None:
                for organ in cu.ORGANS:
                    assert organ_rle(points_, organ, fields["height"], fields["width"]) == fields[organ]
                    masks += 1
    assert flagged == dict.fromkeys(PUBLISHED_FILES, 0) | {"padchest": 20}
    assert masks == 402
