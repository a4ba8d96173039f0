"""Step: fetch, decode and prepare a manifest row's image -> uint8 1024x1024 and the Letterbox of what was done."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from chexmask_u import record, storage
from chexmask_u.columns import replace
from chexmask_u.errors import StoppedError
from chexmask_u.images import sandbox
from chexmask_u.images.bounds import max_bytes
from chexmask_u.images.fetch import fetch
from chexmask_u.images.preparation import ReadImage, read_bytes
from chexmask_u.record import ReadError
from chexmask_u.sources.base import Preparation
from chexmask_u.steps.outage import Outages

# Enough requests in flight to hide an object store's latency, while one image at a time is decoded.
FETCHERS = 8


def read_image(
    uri: str | Path, *, source: str = "folder", max_side: int = 10_000, preparation: Preparation = "published"
) -> ReadImage:
    """Fetch, decode and prepare one image as `source` is prepared.

    Args:
        uri: path or URL of the file.
        source: name of its source dataset; any other name is an image of your own.
        max_side: longest side in pixels that is decoded.
        preparation: "published" gives the pixels that the published numbers were made of; "lossless" leaves out the
            JPEG compression that those of MIMIC-CXR-JPG passed through. Other sources have none.

    Raises:
        ReadError: with the file and the reason why not.
    """
    uri = storage.as_text(uri, "uri")
    try:
        data = fetch(uri, max_bytes=max_bytes(max_side))
        return read_bytes(data, source=source, max_side=max_side, preparation=preparation)
    except ReadError as error:
        raise ReadError(error.reason, f"{storage.redact(uri)}: {error}{storage.nearest(uri)}") from error


def read(batch: pa.Table, *, max_side: int = 10_000, preparation: Preparation = "published") -> pa.Table:
    """Step: `record.MANIFEST` -> `record.READ`; objects are fetched concurrently and decoded in a child process.

    Each fetcher waits with its object for the child, so no more objects than fetchers are in memory.

    Args:
        batch: manifest rows.
        max_side: longest side in pixels that is decoded; it bounds memory, since the image is padded to a square.
        preparation: as `read_image` takes it.

    Raises:
        StoppedError: if a storage is out of reach, so that its images are no failures of theirs.
    """
    with ThreadPoolExecutor(min(FETCHERS, max(1, len(batch)))) as pool:
        told = (batch[name].to_pylist() for name in ("uri", "source", "height", "width"))
        one = partial(_read_row, outages=Outages(), max_side=max_side, preparation=preparation)
        rows = list(pool.map(one, *told))
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
        spacing=[row.get("spacing") for row in rows],
        image=[row.get("image") for row in rows],
        read_seconds=[row["read_seconds"] for row in rows],
    )


def _read_row(
    uri: str,
    source: str,
    height: int | None,
    width: int | None,
    outages: Outages,
    max_side: int,
    preparation: Preparation,
) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        data = _fetch(uri, outages, max_side)
        result = sandbox.shared.read(data, source=source, max_side=max_side, preparation=preparation)
        _check_size(result, height, width)
    except (sandbox.SandboxError, StoppedError):
        # Without a decoder, or without its storage, every image would fail; the run is to stop and say so.
        raise
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
            "spacing": result.spacing and result.spacing.to_row(),
            "image": result.image.tobytes(),
        }
    return row | {"read_seconds": time.perf_counter() - start}


def _fetch(uri: str, outages: Outages, max_side: int) -> bytes:
    outages.check(uri)
    try:
        data = fetch(uri, max_bytes=max_bytes(max_side))
    except ReadError as error:
        outages.answered(uri, error)
        raise
    outages.answered(uri, None)
    return data


def _check_size(result: ReadImage, height: int | None, width: int | None) -> None:
    """Raise ReadError unless the image has the size in pixels that its manifest row tells, where that tells one."""
    found = (result.width, result.height)
    told = (result.width if width is None else width, result.height if height is None else height)
    if found == told:
        return
    if found == told[::-1]:
        remedy = "height and width are swapped there: swap them"
    else:
        remedy = "put another image at the URI, correct height and width, or leave them empty"
    raise ReadError(
        "size_mismatch",
        f"the image is {found[0]} x {found[1]} pixels (width x height),"
        f" the manifest says {told[0]} x {told[1]}; {remedy}",
    )
