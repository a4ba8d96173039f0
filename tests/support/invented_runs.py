"""Runs and releases of invented records, made without images, a network or Ray, for tests of what follows a release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexmask_u import record
from chexmask_u.anatomy import LANDMARKS, ORGANS
from chexmask_u.columns import landmark_array, latent_array, node_array
from chexmask_u.releases import plan, shards
from chexmask_u.runs.identity import library_versions
from chexmask_u.runs.report import calibration_of
from chexmask_u.runs.run import Run
from chexmask_u.settings import ReleaseSettings
from chexmask_u.steps import mask

# Centre and half axes of each organ, pixels of the 1024 frame.
_ELLIPSES = {"right_lung": (330, 480, 150, 330), "left_lung": (720, 480, 140, 320), "heart": (560, 690, 170, 130)}


@dataclass(frozen=True)
class Records:
    """How the invented records of a source differ.

    Attributes:
        ok: numbers of the images that gave a record.
        failed: reason by number of those that gave none.
        moved: pixels of the 1024 frame by which the heart of a record lies further right.
        size: height and width of the images in pixels.
    """

    ok: range | list[int] = range(6)
    failed: Mapping[int, str] = field(default_factory=dict)
    moved: Mapping[int, float] = field(default_factory=dict)
    size: tuple[int, int] = (512, 512)


def record_id(source: str, number: int) -> str:
    return f"{source}/image-{number:06d}.png"


def make_run(folder: Path, sources: Mapping[str, Records], seed: int = 0, weights: str = "a") -> str:
    """Write a finished run; `seed` moves every landmark a little, and is what the run says its seed was."""
    rows = [_row(source, number, kind, seed) for source, kind in sources.items() for number in (*kind.ok, *kind.failed)]
    return write_run(folder, rows, seed, weights)


def write_run(folder: Path, rows: list[dict[str, Any]], seed: int = 0, weights: str = "a") -> str:
    """Write a finished run of these records, whose columns are those of `record.RECORD`, or some of them."""
    folder.mkdir(parents=True)
    table = pa.table([_column(field_, rows) for field_ in record.RECORD], schema=record.RECORD)
    ids = table.select(["record_id"])
    for name, content in (("records", table), ("checkpoint", ids)):
        (folder / name).mkdir()
        pq.write_table(
            content, folder / name / ("part_000000.parquet" if name == "checkpoint" else "part_000000-0.parquet")
        )
    listed = {name: table[name] for name in ("record_id", "source", "image_id")}
    # Any file that is there: nothing looks at it.
    listed["uri"] = pa.array([__file__] * len(rows))
    pq.write_table(pa.table(listed), folder / "manifest.parquet")
    digest = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
    run = {
        "schema_version": record.SCHEMA_VERSION,
        "settings": {},
        "numbers": {"samples": 50, "seed": seed, "max_side": 10_000},
        "manifest": {"uri": str(folder / "manifest.parquet"), "sha256": digest, "rows": len(rows)},
        "weights": {
            "source": "demo",
            "variant": "skip",
            "input_size": 256,
            "sha256": hashlib.sha256(weights.encode()).hexdigest(),
        },
        "versions": library_versions(),
    }
    (folder / "run.json").write_text(json.dumps(run))
    return str(folder)


def flip_a_bit(part: Path) -> None:
    """In the landmarks of a Parquet file, where nothing but a checksum tells."""
    group = pq.read_metadata(part).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    column = next(one for one in columns if one.path_in_schema.startswith("landmarks_mean"))
    content = bytearray(part.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(content)


def make_release(run: str, output: str, **settings: Any) -> dict[str, Any]:
    """As `pipeline.make_release` does, in this process."""
    to_release = ReleaseSettings(run=run, output=output, **settings)
    opened = Run(run)
    plan.check(opened, to_release)
    planned = plan.plan(opened, to_release, calibration_of(opened, to_release.calibration))
    if not planned.is_settled:
        described = [shards.describe_shard(opened, planned, shard) for shard in planned.shards]
        planned = plan.settle(planned, to_release, described)
    if planned.is_made:
        assert planned.before is not None
        return planned.before.made(before=True)
    files = [shards.write_shard(opened, planned, shard) for shard in planned.shards]
    return shards.finish(planned, files).made(before=False)


def _row(source: str, number: int, kind: Records, seed: int) -> dict[str, Any]:
    height, width = kind.size
    row = {"record_id": record_id(source, number), "source": source, "image_id": f"image-{number:06d}.png"}
    row |= {"height": height, "width": width, "status": record.OK, "uri": "nowhere"}
    if number in kind.failed:
        return row | {
            "status": record.FAILED,
            "reason": kind.failed[number],
            "error": "x",
            "height": None,
            "width": None,
        }
    rng = np.random.default_rng([number, seed])
    landmarks = np.empty((120, 2))
    for organ, (x, y, half_width, half_height) in _ELLIPSES.items():
        part = LANDMARKS[organ]
        angle = np.linspace(0, 2 * np.pi, part.stop - part.start, endpoint=False)
        landmarks[part] = np.stack([x + half_width * np.cos(angle), y + half_height * np.sin(angle)], axis=1)
    landmarks += rng.normal(0, 2, landmarks.shape)
    landmarks[LANDMARKS["heart"], 0] += kind.moved.get(number, 0)
    std = np.abs(rng.normal(4, 1, landmarks.shape))
    side = max(height, width)
    pad_left, pad_top, scale = (side - width) // 2, (side - height) // 2, 1024 / side
    box = {"crop_left": 0, "crop_top": 0, "crop_width": width, "crop_height": height}
    original = (landmarks / scale - [pad_left, pad_top]).astype(np.float32)
    latent = rng.normal(0, 1, (2, 64))
    return row | {
        "letterbox": box | {"pad_left": pad_left, "pad_top": pad_top, "scale": scale},
        "landmarks_mean": original,
        "landmarks_std": (std / scale).astype(np.float32),
        "landmarks_xy": (0.5 * std.prod(axis=1) / scale**2).astype(np.float32),
        "landmarks_across": (std[:, 0] / scale).astype(np.float32),
        "landmarks_along": (std[:, 1] / scale).astype(np.float32),
        "uncertainty": std.mean(),
        "latent_mean": latent[0].astype(np.float32),
        "latent_std": np.abs(latent[1]).astype(np.float32),
        "latent_uncertainty": np.abs(latent[1]).mean(),
        "dice_rca_mean": None if number % 2 else 0.9,
        **{organ: mask.organ_rle(original, organ, height, width) for organ in ORGANS},
    }


def _column(field_: pa.Field, rows: list[dict[str, Any]]) -> pa.Array:
    values = [row.get(field_.name) for row in rows]
    if field_.type == record.LANDMARK_ARRAY:
        return landmark_array(values)
    if field_.type == record.LATENT_ARRAY:
        return latent_array(values)
    if field_.type == record.NODE_ARRAY:
        return node_array(values)
    return pa.array(values, field_.type)
