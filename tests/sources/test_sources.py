"""What each source says of itself, and that a sixth needs one file only."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from chexmask_u import cli, sources
from chexmask_u.steps.read import read_image
from tests.support.official_layouts import PUBLISHED_FILES

# Where each distribution has the image of an id that CheXmask published.
OFFICIAL_PATHS = {
    "chestx-ray8": ("images_001/images/{}", "{}"),
    "chexpert": ("{}", "CheXpert-v1.0/{}", "CheXpert-v1.0-small/{}"),
    "mimic-cxr-jpg": ("files/p10/p10000032/s50414267/{}.jpg",),
    "padchest": ("{}", "54/{}"),
    "vindr-cxr": ("train/{}.dicom", "test/{}.dicom"),
}

STRANGERS = {
    "chestx-ray8": ("00000001_000.jpg", "LOG_CHESTXRAY.pdf", "x/00000001_000.png.part"),
    "chexpert": (
        "CheXpert-v1.0/train/patient00001/study1/view2_lateral.jpg",
        "train/patient00001/study1/._view1_frontal.jpg",
        "patient00001/study1/view1_frontal.jpg",
    ),
    "mimic-cxr-jpg": ("files/p10/p10000032/s50414267.txt", "files/p10/p10000032/s50414267/index.jpg"),
    "padchest": ("._a.png", "0.zip"),
    "vindr-cxr": ("annotations/image_labels_train.csv", "train/._0.dicom"),
}

SIXTH = """
from chexmask_u.sources.base import Source, by_pattern

SOURCE = Source("sixth", "Sixth", crop_border=True, policy="open", id_column="key", layout="NAME.png",
                image_id=by_pattern(r"(?:^|/)([^/]+)[.]png$"))
"""


def test_the_counts_add_up_to_the_published_total():
    assert list(sources.PUBLISHED) == sorted(PUBLISHED_FILES)
    assert sum(source.expected_rows for source in sources.PUBLISHED.values()) == 657_566


def test_every_source_states_its_terms_and_physionets_are_withheld():
    for source in sources.PUBLISHED.values():
        assert source.citation
        assert source.licence
        assert source.terms_url.startswith("https://")
        assert source.layout
        assert (source.policy == "withheld") == ("physionet.org" in source.terms_url)
    assert sources.get("anything-else").policy == "withheld"


@pytest.mark.parametrize("name", OFFICIAL_PATHS)
def test_published_ids_are_found_where_the_distribution_has_them(name, shared):
    source = sources.get(name)
    csv.field_size_limit(1 << 24)
    with (shared / "data" / "chexmask_published" / PUBLISHED_FILES[name]).open(newline="") as file:
        ids = [row[source.id_column] for row in csv.DictReader(file)]
    assert ids
    for image_id in ids:
        assert source.row_id(image_id) == image_id
        for path in OFFICIAL_PATHS[name]:
            assert source.image_id(path.format(image_id)) == image_id


@pytest.mark.parametrize(
    ("name", "path", "image_id"),
    [
        ("chestx-ray8", "images_012/images/00030805_000.png", "00030805_000.png"),
        ("chexpert", "x/CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg",
         "train/patient00001/study1/view1_frontal.jpg"),
        ("chexpert", "CheXpert-v1.0 batch 1 (validate & csv)/valid/patient64541/study1/view1_frontal.jpg",
         "valid/patient64541/study1/view1_frontal.jpg"),
        ("mimic-cxr-jpg", "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg",
         "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"),
        ("padchest", "0/20536686640136348236148679891455886468_k6ga29.png",
         "20536686640136348236148679891455886468_k6ga29.png"),
        ("vindr-cxr", "train/000434271f63a053c4128a0ba6352c7f.dicom", "000434271f63a053c4128a0ba6352c7f"),
    ],
)  # fmt: skip
def test_official_paths_give_the_id(name, path, image_id):
    assert sources.get(name).image_id(path) == image_id


@pytest.mark.parametrize("name", STRANGERS)
def test_other_files_of_a_distribution_are_no_images(name):
    assert [sources.get(name).image_id(path) for path in STRANGERS[name]] == [None] * len(STRANGERS[name])


def test_a_path_of_chexperts_own_tables_is_the_same_id():
    row = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    assert sources.get("chexpert").row_id(row) == "train/patient00001/study1/view1_frontal.jpg"


def test_a_sixth_source_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "added"
    package.mkdir()
    (package / "sixth.py").write_text(SIXTH)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(package)])
    found = sources.discover()
    monkeypatch.delitem(sys.modules, "chexmask_u.sources.sixth")
    assert set(found) == {*sources.PUBLISHED, "sixth"}

    # And nothing else has to know of it.
    monkeypatch.setattr(sources, "PUBLISHED", found)
    (tmp_path / "images").mkdir()
    picture = np.zeros((30, 40), np.uint8)
    picture[5:20, 10:30] = 200
    cv2.imwrite(str(tmp_path / "images" / "a.png"), picture)
    (tmp_path / "sixth.csv").write_text("key,Dice RCA (Mean),Dice RCA (Max),Height,Width\na,0.8,0.9,30,40\n")
    listed, merged = tmp_path / "m.parquet", tmp_path / "all.parquet"
    tables = ["--images", str(tmp_path / "images"), "--chexmask", str(tmp_path / "sixth.csv")]
    assert cli.main(["manifest", "sixth", *tables, "--output", str(listed)]) == 0
    assert cli.main(["manifest", "merge", str(listed), "--accept-less", "--output", str(merged)]) == 0
    (row,) = pq.read_table(merged).to_pylist()
    assert (row["record_id"], row["height"], row["width"]) == ("sixth/a", 30, 40)
    letterbox = read_image(row["uri"], source=row["source"]).letterbox
    assert (letterbox.crop_left, letterbox.crop_top, letterbox.crop_width, letterbox.crop_height) == (10, 5, 20, 15)
