"""Step: fetch, decode and prepare a manifest row's image -> uint8 1024x1024 and the Letterbox of what was done."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u import record, sources, storage
from chexmask_u.columns import replace
from chexmask_u.decode import decode
from chexmask_u.fetch import fetch
from chexmask_u.letterbox import BlankImageError, Letterbox, prepare
from chexmask_u.record import ReadError

# Enough requests in flight to hide an object store's latency; decoding takes turns on the task's core anyway.
FETCHERS = 8


@dataclass(frozen=True)
class ReadImage:
    """A prepared image uint8 [1024, 1024], its original size in pixels, and how one maps to the other."""

    image: NDArray[np.uint8]
    height: int
    width: int
    letterbox: Letterbox


def read_image(uri: str, *, source: str = "folder", max_side: int = 10_000) -> ReadImage:
    """Fetch, decode and prepare one image as `source` is prepared.

    Raises:
        ReadError: with the reason why not.
    """
    image = decode(fetch(uri), max_side=max_side)
    try:
        prepared, letterbox = prepare(image, crop_border=sources.get(source).crop_border)
    except BlankImageError as error:
        raise ReadError("blank", str(error)) from error
    return ReadImage(prepared, image.shape[0], image.shape[1], letterbox)


def read(batch: pa.Table, *, max_side: int = 10_000) -> pa.Table:
    """Step: `record.MANIFEST` -> `record.READ`; objects are fetched and decoded concurrently.

    Args:
        batch: manifest rows.
        max_side: longest side in pixels that is decoded; it bounds memory, since the image is padded to a square.
    """
    with ThreadPoolExecutor(min(FETCHERS, max(1, len(batch)))) as pool:
        rows = list(
            pool.map(partial(_read_row, max_side=max_side), *(batch[name].to_pylist() for name in ("uri", "source")))
        )
    known = batch.select(["height", "width"]).to_pylist()
    return replace(
        batch,
        record.READ,
        status=[row["status"] for row in rows],
        reason=[row.get("reason") for row in rows],
        error=[row.get("error") for row in rows],
        height=[row.get("height", table["height"]) for row, table in zip(rows, known, strict=True)],
        width=[row.get("width", table["width"]) for row, table in zip(rows, known, strict=True)],
        letterbox=[row.get("letterbox") for row in rows],
        image=[row.get("image") for row in rows],
        read_seconds=[row["read_seconds"] for row in rows],
    )


def _read_row(uri: str, source: str, max_side: int) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        result = read_image(uri, source=source, max_side=max_side)
    except Exception as error:
        reason = error.reason if isinstance(error, ReadError) else "internal"
        message = str(error) if isinstance(error, ReadError) else storage.explain(error)
        row: dict[str, Any] = {"status": record.FAILED, "reason": reason, "error": message}
    else:
        row = {
            "status": record.OK,
            "height": result.height,
            "width": result.width,
            "letterbox": result.letterbox.to_row(),
            "image": result.image.tobytes(),
        }
    return row | {"read_seconds": time.perf_counter() - start}
