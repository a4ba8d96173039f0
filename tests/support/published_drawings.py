"""Drawings as if published: rows by the published algorithm with noise of its own, and the same images' records."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import chexmask_u as cu
from chexmask_u import anatomy, record, sources
from chexmask_u.bench.reference import Reference
from chexmask_u.columns import landmark_array, latent_array, node_array
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.predict import latent_noise
from chexmask_u.runs.identity import library_versions
from chexmask_u.sources import synthetic
from chexmask_u.steps.mask import organ_rle

SAMPLES = 10

IDS = {
    "chexpert": "train/patient{:05d}/study1/view1_frontal.jpg",
    "mimic-cxr-jpg": "{:08x}-00000000-11111111-22222222-33333333",
}

# Where each distribution has the image.
PATHS = {"chexpert": "{}", "mimic-cxr-jpg": "files/p10/p10000032/s50414267/{}.jpg"}

# Width and height of the drawings, and the black border around them: left, top, right, bottom.
_SHAPES = ((1400, 1800), (1800, 1520), (1280, 1280), (1640, 1220))
_BORDERS = ((62, 24, 16, 80), (28, 100, 44, 34), (0, 50, 120, 0))


@dataclass(frozen=True)
class Row:
    """One image on both sides; landmarks [120, 2], regenerated in original pixels, published in the 1024 frame."""

    image_id: str
    uri: Path
    width: int
    height: int
    letterbox: Letterbox
    mean: np.ndarray
    std: np.ndarray
    published_mean: np.ndarray
    published_std: np.ndarray


@dataclass(frozen=True)
class Cells:
    """What a CSV says of an image: numbers as they are written, pixels of the CSV."""

    image_id: str
    mean: np.ndarray
    std: np.ndarray
    width: int
    height: int
    masks: dict[str, str] = field(default_factory=dict)


def narrow() -> HybridGNet:
    """The bundled network with a fifth of its spread, so that means of 10 draws are as near as those of 250."""
    model = cu.load_model("demo")
    with torch.no_grad():
        model.encoder.fc_logvar.bias.sub_(2 * math.log(5))
    return model


def make(folder: Path, source: str, model: HybridGNet, count: int = 12) -> list[Row]:
    """Draw images of a source, as it distributes them, and predict each on both sides."""
    reference = Reference(model)
    images, ids, paths = [], [], []
    for number in range(count):
        image_id = IDS[source].format(number + 1)
        path = folder / PATHS[source].format(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = cv2.resize(synthetic.draw(number).image, _SHAPES[number % len(_SHAPES)])
        # A drawing has pixels that a crop would take for border.
        picture = np.maximum(picture, 12)
        if sources.get(source).crop_border:
            left, top, right, bottom = _BORDERS[number % len(_BORDERS)]
            picture = np.pad(picture, ((top, bottom), (left, right)))
        # A border stays black in JPEG at the highest quality alone.
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
        images.append(cu.read_image(str(path), source=source))
        ids.append(image_id)
        paths.append(path)
    prepared = np.stack([image.image for image in images])
    ours = cu.predict(model, prepared, [f"{source}/{image_id}" for image_id in ids], SAMPLES, seed=0)
    threads = torch.get_num_threads()
    # Its many small operations take ten times as long where threads wait for each other beside other work.
    torch.set_num_threads(1)
    theirs = reference.predict(prepared, [latent_noise(f"published {name}", SAMPLES, 1) for name in ids])
    torch.set_num_threads(threads)
    return [
        Row(
            image_id,
            path,
            image.width,
            image.height,
            image.letterbox,
            image.letterbox.to_original(mean).astype(np.float32),
            image.letterbox.spread_to_original(std).astype(np.float32),
            *published,
        )
        for image_id, path, image, mean, std, published in zip(
            ids, paths, images, ours.landmarks_mean, ours.landmarks_std, theirs, strict=True
        )
    ]


def preprocessed(row: Row) -> Cells:
    """As the Preprocessed folder has it."""
    return _with_masks(Cells(row.image_id, np.rint(row.published_mean), row.published_std, 1024, 1024))


def original(row: Row) -> Cells:
    """As the OriginalResolution folder has it: rounded, mapped, and rounded again."""
    mean = np.rint(row.letterbox.to_original(np.rint(row.published_mean)))
    std = row.letterbox.spread_to_original(row.published_std)
    return _with_masks(Cells(row.image_id, mean, std, row.width, row.height))


def without_crop(row: Row) -> Cells:
    """As the published mapping had it that forgot the border crop."""
    return original(replace(row, letterbox=replace(row.letterbox, crop_left=0, crop_top=0)))


def as_whole_image(row: Row) -> Cells:
    """As a mapping had it that took padding and scale from the size of the whole image."""
    side = max(row.width, row.height)
    pads = (side - row.width) // 2, (side - row.height) // 2
    return original(replace(row, letterbox=Letterbox(0, 0, row.width, row.height, *pads, 1024 / side)))


def _with_masks(cells: Cells) -> Cells:
    masks = {organ: organ_rle(cells.mean, organ, cells.height, cells.width) for organ in anatomy.ORGANS}
    return replace(cells, masks=masks)


def write_csv(
    path: Path,
    source: str,
    rows: Sequence[Row],
    cells: Callable[[Row], Cells] = original,
    change: Callable[[list[Cells]], list[Cells]] = list,
    spread: bool = True,
) -> str:
    """Write rows as published; `change` plants a fault, and without `spread` the form is CheXmask's own."""
    names = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
    landmarks = ["Landmarks (Mean)", "Landmarks (Std)"] if spread else ["Landmarks"]
    header = [sources.get(source).id_column, "Dice RCA (Mean)", "Dice RCA (Max)", *landmarks, *names.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "Height", "Width"])
        for row in change([cells(one) for one in rows]):
            points = [",".join(map(str, row.mean.astype(int).ravel()))]
            if spread:
                points.append(",".join(f"{value:.2f}" for value in row.std.ravel()))
            sizes = [row.height or "", row.width or ""]
            writer.writerow([row.image_id, 0.8, 0.9, *points, *(row.masks[organ] for organ in names), *sizes])
    return str(path)


def write_run(folder: Path, rows: dict[str, Sequence[Row]], missing: int = 0, failed: Sequence[str] = ()) -> str:
    """A run as `generate` leaves it, of which `missing` rows of the manifest have no record yet."""
    folder.mkdir(parents=True)
    names = {row.image_id for of_source in rows.values() for row in of_source}
    table = pa.concat_tables(_records(source, of_source, failed) for source, of_source in rows.items())
    for part, content in (("records/part_000000-0", table), ("checkpoint/part_000000", table.select(["record_id"]))):
        path = folder / f"{part}.parquet"
        path.parent.mkdir()
        pq.write_table(content, path)
    weights = cu.load_model("demo")
    manifest = table.select(["record_id", "uri", "source", "image_id"])
    pq.write_table(manifest, folder / "manifest.parquet")
    digest = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
    run = {
        "schema_version": record.SCHEMA_VERSION,
        "settings": {},
        "numbers": {"samples": SAMPLES, "seed": 0, "max_side": 10_000},
        "manifest": {"uri": str(folder / "manifest.parquet"), "sha256": digest, "rows": len(names) + missing},
        "weights": {"source": "w.safetensors", "variant": "skip", "input_size": 256, "sha256": weights.sha256},
        "versions": library_versions(),
    }
    (folder / "run.json").write_text(json.dumps(run))
    return str(folder)


def _records(source: str, rows: Sequence[Row], failed: Sequence[str]) -> pa.Table:
    fine = [row.image_id not in failed for row in rows]

    def where_fine(values: Sequence[object]) -> list[object]:
        return [value if ok else None for value, ok in zip(values, fine, strict=True)]

    zeros = where_fine([np.zeros(anatomy.LATENT_SIZE)] * len(rows))
    columns = {
        "record_id": [f"{source}/{row.image_id}" for row in rows],
        "uri": [str(row.uri) for row in rows],
        "source": [source] * len(rows),
        "image_id": [row.image_id for row in rows],
        "height": [row.height for row in rows],
        "width": [row.width for row in rows],
        "status": [record.OK if ok else record.FAILED for ok in fine],
        "reason": [None if ok else "damaged" for ok in fine],
        "letterbox": where_fine([row.letterbox.to_row() for row in rows]),
        "landmarks_mean": landmark_array(where_fine([row.mean for row in rows])),
        "landmarks_std": landmark_array(where_fine([row.std for row in rows])),
        **{
            name: node_array(where_fine([np.zeros(anatomy.N_LANDMARKS)] * len(rows)))
            for name in ("landmarks_xy", "landmarks_across", "landmarks_along")
        },
        "uncertainty": where_fine([float(row.std.mean()) for row in rows]),
        "latent_mean": latent_array(zeros),
        "latent_std": latent_array(zeros),
        "latent_uncertainty": where_fine([0.0] * len(rows)),
        **{
            organ: where_fine([organ_rle(row.mean, organ, row.height, row.width) for row in rows])
            for organ in anatomy.ORGANS
        },
    }
    arrays = [
        column
        if isinstance(column := columns.get(one.name), pa.Array)
        else pa.array(column or [None] * len(rows), one.type)
        for one in record.RECORD
    ]
    return pa.table(arrays, schema=record.RECORD)
