"""A real run over the images of two hospitals, some of them damaged, for the tests of runs and of their releases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chexmask_u import pipeline
from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import GenerateSettings, ManifestFolderSettings

# Good images of each; three more are damaged.
HOSPITALS = {"hospital-a": 30, "hospital-b": 7}
DAMAGED = {"empty.png": "empty", "text.png": "unsupported", "cut.jpg": "damaged"}
IMAGES = sum(HOSPITALS.values()) + len(DAMAGED) * len(HOSPITALS)


@dataclass(frozen=True)
class FinishedRun:
    """What was asked for, and the summary of it; the images of a hospital lie in the folder of its name."""

    folder: Path
    settings: GenerateSettings
    summary: dict[str, Any]


def draw_images(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Images of many sizes, and three that are damaged."""
    folder.mkdir(parents=True)
    for index in range(count):
        height, width = rng.integers(40, 400, 2)
        grey = cv2.resize(rng.integers(0, 256, (6, 6), dtype=np.uint8), (int(width), int(height)))
        cv2.imwrite(str(folder / f"image-{index:04d}.{'png' if index % 2 else 'jpg'}"), grey)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no image")
    encoded = cv2.imencode(".jpg", np.full((200, 200), 90, np.uint8))[1].tobytes()
    (folder / "cut.jpg").write_bytes(encoded[: len(encoded) // 2])


def make(folder: Path, weights: Path) -> FinishedRun:
    """Draw, list and run them."""
    parts = []
    for hospital, count in HOSPITALS.items():
        draw_images(folder / hospital, count, np.random.default_rng(count))
        listed = folder / f"{hospital}.parquet"
        list_folder(ManifestFolderSettings(uri=str(folder / hospital), output=str(listed), source=hospital))
        parts.append(pq.read_table(listed))
    # Out of order, as a user's own manifest may be.
    merged = pa.concat_tables(parts[::-1])
    # Ray Data would find no file behind a question mark.
    manifest = folder / "what?.parquet"
    pq.write_table(merged.take(np.random.default_rng(0).permutation(len(merged))), manifest)
    settings = GenerateSettings(
        manifest=str(manifest), output=str(folder / "run"), weights=str(weights), samples=5, rows_per_file=8
    )
    return FinishedRun(folder, settings, pipeline.generate(settings))
