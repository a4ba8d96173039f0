"""Releases with chosen numbers, without a run: what export and import are tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexmask_u import anatomy, record
from chexmask_u.columns import landmark_array, latent_array, node_array
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.releases.release import MARKER, config
from chexmask_u.releases.validate import validate
from chexmask_u.steps.mask import organ_rle


@dataclass(frozen=True)
class Record:
    """One record of a release; landmarks [120, 2] in original pixels."""

    image_id: str
    height: int
    width: int
    letterbox: Letterbox
    mean: np.ndarray
    std: np.ndarray
    dice_rca_mean: float | None = None
    dice_rca_max: float | None = None


def letterbox(height: int, width: int, crop: tuple[int, int, int, int] | None = None) -> Letterbox:
    """Of an image whose crop is (left, top, width, height); the whole image unless given."""
    left, top, crop_width, crop_height = crop or (0, 0, width, height)
    side = max(crop_width, crop_height)
    pads = (side - crop_width) // 2, (side - crop_height) // 2
    return Letterbox(left, top, crop_width, crop_height, *pads, anatomy.FRAME / side)


def draw(image_id: str, height: int, width: int, seed: int, **facts: Any) -> Record:
    """A record of three blobs within an image, with spreads of a few pixels."""
    rng = np.random.default_rng(seed)
    points = []
    for (x, y), nodes in zip(((0.3, 0.45), (0.7, 0.45), (0.52, 0.65)), anatomy.LANDMARKS.values(), strict=True):
        angle = np.linspace(0, 2 * np.pi, nodes.stop - nodes.start, endpoint=False)
        radius = rng.uniform(0.13, 0.2) * (1 + 0.05 * rng.standard_normal(len(angle)))
        points.append(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1))
    mean = np.concatenate(points) * (width, height)
    crop = facts.pop("crop", None)
    return Record(
        image_id, height, width, letterbox(height, width, crop), mean, rng.uniform(0.004, 9, mean.shape), **facts
    )


def write_release(folder: Path, records: Mapping[str, Sequence[Record]], rows_per_shard: int = 3) -> Path:
    """A valid release of these records by source; record ids are source and image id."""
    files: list[dict[str, Any]] = []
    for source, of_source in records.items():
        rows = sorted(of_source, key=lambda row: row.image_id)
        shards = [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]
        for kind in ("landmarks", "masks"):
            for index, shard in enumerate(shards):
                path = folder / source / f"{kind}-{index:05d}-of-{len(shards):05d}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Groups that are cut elsewhere than the shards of the other kind.
                table = _landmarks(source, shard) if kind == "landmarks" else _masks(source, shard)
                pq.write_table(table, path, row_group_size=rows_per_shard if kind == "landmarks" else 2)
                facts = {"path": str(path.relative_to(folder)), "config": config(source, kind), "kind": kind}
                facts |= {"rows": len(shard)}
                files.append(facts | _digest(path))
    (folder / "README.md").write_text("# A release for tests\n")
    content = {
        "version": "v1.0.0",
        "schema_version": record.SCHEMA_VERSION,
        "files": files,
        "counts": {source: {"ok": len(of_source), "failed": 0} for source, of_source in records.items()},
        "failures": {},
        "manifest": {"rows": sum(map(len, records.values()))},
        "excluded_rows": 0,
        "pages": {"README.md": _digest(folder / "README.md")},
    }
    (folder / MARKER).write_text(json.dumps(content))
    validate(str(folder))
    return folder


def _digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _landmarks(source: str, rows: Sequence[Record]) -> pa.Table:
    zeros = [np.zeros(anatomy.LATENT_SIZE)] * len(rows)
    columns: dict[str, Any] = {
        "record_id": [f"{source}/{row.image_id}" for row in rows],
        "source": [source] * len(rows),
        **{name: [getattr(row, name) for row in rows] for name in ("image_id", "height", "width")},
        "landmarks_mean": landmark_array([row.mean for row in rows]),
        "landmarks_std": landmark_array([row.std for row in rows]),
        "landmarks_xy": node_array([np.zeros(anatomy.N_LANDMARKS)] * len(rows)),
        "uncertainty": [float(row.letterbox.spread_to_frame(row.std).mean()) for row in rows],
        "latent_mean": latent_array(zeros),
        "latent_std": latent_array(zeros),
        "latent_uncertainty": [0.0] * len(rows),
        **{name: [getattr(row, name) for row in rows] for name in ("dice_rca_mean", "dice_rca_max")},
        "letterbox": [row.letterbox.to_row() for row in rows],
    }
    return pa.table([_column(columns[field.name], field) for field in record.LANDMARK_RELEASE], record.LANDMARK_RELEASE)


def _masks(source: str, rows: Sequence[Record]) -> pa.Table:
    columns = {
        "record_id": [f"{source}/{row.image_id}" for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in ("height", "width")},
        **{
            organ: [organ_rle(row.mean.astype(np.float32), organ, row.height, row.width) for row in rows]
            for organ in anatomy.ORGANS
        },
    }
    return pa.table([_column(columns[field.name], field) for field in record.MASK_RELEASE], record.MASK_RELEASE)


def _column(values: Any, field: pa.Field) -> Any:
    return values if isinstance(values, pa.Array) else pa.array(values, field.type)
