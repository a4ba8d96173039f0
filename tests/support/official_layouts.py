"""A small tree that imitates the official layouts of the five sources, with CheXmask CSVs as dirty as the real ones."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from chexmask_u import sources

DIRT = {"missing_image": 1, "missing_row": 1, "duplicate_row": 1, "no_scores": 1, "max_below_mean": 1, "no_size": 1}
"""Problems that every source's CSV has; `write_layouts` with `dirty` makes them."""


# As CheXmask published them.
PUBLISHED_FILES = {
    "chestx-ray8": "ChestX-Ray8.csv",
    "chexpert": "CheXpert.csv",
    "mimic-cxr-jpg": "MIMIC-CXR-JPG.csv",
    "padchest": "Padchest.csv",
    "vindr-cxr": "VinDr-CXR.csv",
}


@dataclass
class Layout:
    """One source as downloaded.

    ``sizes`` are (height, width) of the image files by the id of a manifest row; ``counts`` the problems to be found;
    ``images`` the image files that are the source's by name; ``other_views`` those of them that are neither PA nor AP.
    """

    source: str
    root: Path
    chexmask: Path
    preprocessed: Path
    sizes: dict[str, tuple[int, int]]
    counts: dict[str, int]
    images: int
    other_views: int = 0
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)


def write_layouts(folder: Path, count: int = 6, *, dirty: bool = True) -> dict[str, Layout]:
    """Write ``folder/<source>/`` and ``folder/CheXmask/{OriginalResolution,Preprocessed}/`` with `count` rows a source.

    Sources of real sizes get images of a few dozen pixels; those of ChestX-ray8 are 1024 x 1024.
    """
    assert count >= 4, "each kind of dirt needs a row of its own"
    return {name: write(folder, count, dirty) for name, write in _WRITERS.items()}


def _chestx_ray8(folder: Path, count: int, dirty: bool) -> Layout:
    root = folder / "chestx-ray8"
    # One more than there are rows: the image that the CSV forgets.
    names = [f"{index // 3 + 1:08d}_{index % 3:03d}.png" for index in range(count + dirty)]
    for index, name in enumerate(names):
        _image(root / f"images_{index % 12 + 1:03d}" / "images" / name, 1024, 1024, index)
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex"]
    header += ["View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"]
    rows = [[name, "No Finding", 0, 1, 58, "M", "PA", 2682, 2749, 0.143, 0.143] for name in names]
    _write_csv(root / "Data_Entry_2017_v2020.csv", header, rows)
    return _layout("chestx-ray8", folder, root, dict.fromkeys(names, (1024, 1024)), dirty)


def _chexpert(folder: Path, count: int, dirty: bool) -> Layout:
    root = folder / "chexpert"
    sizes = {}
    for index in range(count + dirty):
        split = "valid" if index % 4 == 3 else "train"
        name = f"{split}/patient{index + 1:05d}/study1/view1_frontal.jpg"
        sizes[name] = _image(root / "CheXpert-v1.0" / name, 40 + index, 32, index)
        _image(root / "CheXpert-v1.0" / name.replace("view1_frontal", "view2_lateral"), 30, 30, index)
    (root / "CheXpert-v1.0" / "train.csv").write_text("Path,Sex\n")
    return _layout("chexpert", folder, root, sizes, dirty)


def _mimic_cxr_jpg(folder: Path, count: int, dirty: bool) -> Layout:
    root = folder / "mimic-cxr-jpg"
    sizes, rows = {}, []
    others = ("LATERAL", "LL", "")
    for index in range(count + dirty + len(others)):
        subject, study = f"p{10_000_000 + index}", f"s{50_000_000 + index}"
        name = f"{index:08x}-00000000-11111111-22222222-33333333"
        frontal = index < count + dirty
        size = _image(root / "files" / subject[:3] / subject / study / f"{name}.jpg", 36, 44 + index, index, border=3)
        view = ("PA", "AP")[index % 2] if frontal else others[index - count - dirty]
        rows.append([name, subject[1:], study[1:], "CHEST (PA AND LAT)", view, *size])
        if frontal:
            sizes[name] = size
    header = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"]
    _write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", [*header, "Columns"], rows)
    return _layout("mimic-cxr-jpg", folder, root, sizes, dirty, other_views=len(others))


def _padchest(folder: Path, count: int, dirty: bool) -> Layout:
    root = folder / "padchest"
    sizes, rows = {}, []
    others = ("L", "AP_horizontal", "COSTAL")
    for index in range(count + dirty + len(others)):
        name = f"2168401113669640{index:02d}_01-{index:03d}-001.png"
        frontal = index < count + dirty
        size = _image(root / str(index % 55) / name, 50, 28 + index, index, border=2)
        view = ("PA", "AP")[index % 2] if frontal else others[index - count - dirty]
        rows.append([index, name, index % 55, 1900 + index, view, "informe con\nsalto de linea, y coma"])
        if frontal:
            sizes[name] = size
    header = ["", "ImageID", "ImageDir", "StudyDate_DICOM", "Projection", "Report"]
    _write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)
    return _layout("padchest", folder, root, sizes, dirty, other_views=len(others))


def _vindr_cxr(folder: Path, count: int, dirty: bool) -> Layout:
    root = folder / "vindr-cxr"
    sizes = {}
    for index in range(count + dirty):
        name = f"{index:032x}"
        path = root / ("test" if index % 3 == 2 else "train") / f"{name}.dicom"
        sizes[name] = _dicom(path, 48, 40 + index, index)
    (root / "annotations").mkdir()
    (root / "annotations" / "annotations_train.csv").write_text("image_id,rad_id,class_name\n")
    return _layout("vindr-cxr", folder, root, sizes, dirty)


_WRITERS: dict[str, Callable[[Path, int, bool], Layout]] = {
    "chestx-ray8": _chestx_ray8,
    "chexpert": _chexpert,
    "mimic-cxr-jpg": _mimic_cxr_jpg,
    "padchest": _padchest,
    "vindr-cxr": _vindr_cxr,
}


def _layout(
    source: str, folder: Path, root: Path, sizes: dict[str, tuple[int, int]], dirty: bool, other_views: int = 0
) -> Layout:
    """Write both CSVs of a source; with `dirty`, the last image gets no row and the first ones are faulty."""
    images = len(sizes) + other_views
    rowless = sizes.popitem() if dirty else None
    names = list(sizes)
    scores: dict[str, tuple[float, float] | tuple[None, None]] = {
        name: (round(0.7 + 0.01 * index, 3), round(0.75 + 0.01 * index, 3)) for index, name in enumerate(names)
    }
    csvs = {}
    for resolution in ("OriginalResolution", "Preprocessed"):
        rows = []
        for index, name in enumerate(names):
            mean, highest = scores[name]
            size: Sequence[Any] = sizes[name] if resolution == "OriginalResolution" else (1024, 1024)
            if dirty and index == 0:
                mean, highest = scores[name] = (0.91, 0.89)
            if dirty and index == 1:
                size = ("", "")
            if dirty and index == 2:
                mean, highest = scores[name] = (None, None)
            rows.append([name, mean, highest, *size])
        if dirty:
            assert rowless is not None
            rows.append(rows[3])
            rows.append([_absent(source, rowless[0]), 0.8, 0.9, 1024, 1024])
        csvs[resolution] = folder / "CheXmask" / resolution / f"{sources.get(source).title}.csv"
        _write_chexmask(csvs[resolution], source, rows)
    return Layout(
        source,
        root,
        csvs["OriginalResolution"],
        csvs["Preprocessed"],
        sizes,
        dict(DIRT) if dirty else {},
        images,
        other_views,
        {name: pair for name, pair in scores.items() if pair[0] is not None and pair[1] is not None},
    )


def _absent(source: str, name: str) -> str:
    """An id of the same form that no image has."""
    return name.replace("patient0", "patient9") if source == "chexpert" else "9" + name[1:]


def _write_chexmask(path: Path, source: str, rows: Sequence[Sequence[Any]]) -> None:
    """Id, mean, max, height and width, in the columns and order of the published file of this source."""
    newest = source in ("chexpert", "vindr-cxr")
    landmarks = ["Landmarks (Mean)", "Landmarks (Std)"] if newest else ["Landmarks"]
    scores = ["Dice RCA (Mean)", "Dice RCA (Max)"]
    if source == "padchest":
        scores.reverse()
    header = [sources.get(source).id_column, *scores, *landmarks, "Left Lung", "Right Lung", "Heart", "Height", "Width"]
    lines = []
    for name, mean, highest, height, width in rows:
        pair = [highest, mean] if source == "padchest" else [mean, highest]
        points = ",".join(["12"] * 240)
        size = [float(value) if source == "padchest" and value != "" else value for value in (height, width)]
        lines.append([name, *pair, *[points] * len(landmarks), "5 3 21 4", "9 2", "30 1", *size])
    _write_csv(path, header, lines)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _pixels(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(30, 220, (5, 5), dtype=np.uint8)
    return cv2.resize(coarse, (width, height))


def _image(path: Path, height: int, width: int, seed: int, border: int = 0) -> tuple[int, int]:
    """Write a grey PNG or JPEG with a black border of so many pixels; returns height and width of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inner = _pixels(height - 2 * border, width - 2 * border, seed)
    assert cv2.imwrite(str(path), np.pad(inner, border))
    return height, width


def _dicom(path: Path, height: int, width: int, seed: int) -> tuple[int, int]:
    """Write a 12-bit DICOM file, as VinDr-CXR's are; every third is MONOCHROME1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = height, width
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if seed % 3 == 1 else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = (_pixels(height, width, seed).astype(np.uint16) << 4).tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return height, width
