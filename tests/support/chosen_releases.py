"""Releases of chosen numbers, without images or a network: what export and import are tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chexmask_u import anatomy, record
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.steps.mask import organ_rle
from tests.support import invented_runs


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
    """The letterbox of an image whose crop is (left, top, width, height); the whole image unless given."""
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
    """Release a run of these records by source as `folder`, a v1.0.0; record ids are source and image id."""
    rows = [_row(source, one) for source, of_source in records.items() for one in of_source]
    run = invented_runs.write_run(folder.parent / "run", rows)
    made = invented_runs.make_release(run, str(folder.parent), rows_per_shard=rows_per_shard)
    assert made["folder"] == str(folder)
    return folder


def _row(source: str, one: Record) -> dict[str, Any]:
    mean = one.mean.astype(np.float32)
    latent = np.zeros(anatomy.LATENT_SIZE)
    return {
        "record_id": f"{source}/{one.image_id}",
        "source": source,
        "uri": "nowhere",
        "status": record.OK,
        **{name: getattr(one, name) for name in ("image_id", "height", "width", "dice_rca_mean", "dice_rca_max")},
        "letterbox": one.letterbox.to_row(),
        "landmarks_mean": mean,
        "landmarks_std": one.std,
        "landmarks_xy": np.zeros(anatomy.N_LANDMARKS),
        "landmarks_across": one.std[:, 0],
        "landmarks_along": one.std[:, 1],
        "uncertainty": float(one.letterbox.spread_to_frame(one.std).mean()),
        "latent_mean": latent,
        "latent_std": latent,
        "latent_uncertainty": 0.0,
        **{organ: organ_rle(mean, organ, one.height, one.width) for organ in anatomy.ORGANS},
    }
