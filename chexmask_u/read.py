"""Bytes of a PNG or JPEG -> uint8 1024x1024 and the Letterbox that says what was done to it."""

from __future__ import annotations

import io
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from chexmask_u import record, sources, storage
from chexmask_u.columns import replace
from chexmask_u.letterbox import BlankImageError, Letterbox, prepare

# Enough requests in flight to hide an object store's latency; decoding takes turns on the task's core anyway.
FETCHERS = 8

_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


class ReadError(Exception):
    """An image that gives no record, with a reason from `record.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def fetch(uri: str) -> bytes:
    """The bytes at a local path or fsspec URL.

    Raises:
        ReadError: "missing", "forbidden", "empty" or "storage".
    """
    try:
        fs, path = fsspec.url_to_fs(uri)
        data: bytes = fs.cat_file(path)
    except Exception as error:
        if storage.is_missing(error):
            raise ReadError("missing", "there is no such object") from error
        if storage.is_forbidden(error):
            raise ReadError("forbidden", storage.explain(error)) from error
        raise ReadError("storage", storage.explain(error)) from error
    if not data:
        raise ReadError("empty", "the object holds no bytes")
    return data


def decode(data: bytes, *, max_side: int) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG to 8-bit grey.

    Colour becomes grey and 8-bit values stay, by OpenCV's rules (as upstream reads them). 16-bit values are scaled from
    their minimum and maximum to 0-255, since files of 10, 12 and 16 significant bits look alike.

    Returns:
        uint8 [H, W].

    Raises:
        ReadError: "unsupported", "damaged" or "too_large".
    """
    _check(data, max_side)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if image is None or not image.size:
        raise ReadError("damaged", "the image data cannot be decoded")
    if image.dtype != np.uint8:
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    return np.asarray(image, np.uint8)


def _check(data: bytes, max_side: int) -> None:
    """Find what a decoder would not say: a bomb before it goes off, and data that end early or fail their checksum."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as header:
            width, height = header.size
            if max(width, height) > max_side:
                raise ReadError("too_large", f"{width} x {height} pixels; the limit is {max_side} a side (--max-side)")
            if header.format == "PNG":
                header.verify()
    except ReadError:
        raise
    except UnidentifiedImageError as error:
        if data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff":
            raise ReadError("damaged", "the image header is damaged") from error
        raise ReadError("unsupported", f"not a PNG or JPEG image; it begins with {data[:8]!r}") from error
    except Image.DecompressionBombError as error:
        raise ReadError("too_large", storage.explain(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise ReadError("damaged", storage.explain(error)) from error
    # OpenCV fills the missing rows of a truncated JPEG with grey and says nothing. Bytes FF DA occur only as a scan's
    # start, so an end marker after the last one ends the image itself and not a thumbnail in its header.
    if data[:2] == b"\xff\xd8" and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise ReadError("damaged", "the JPEG data end before the image does")


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
