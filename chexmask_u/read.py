"""Bytes of a PNG or JPEG -> uint8 1024x1024 and the Letterbox that says what was done to it."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from chexmask_u import record, sources, storage
from chexmask_u.columns import replace
from chexmask_u.letterbox import BlankImageError, Letterbox, prepare

# Enough requests in flight to hide an object store's latency; decoding takes turns on the task's core anyway.
FETCHERS = 8

_FORMATS = {b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile}

# The last chunk of every PNG, with its checksum.
_PNG_END = b"IEND\xaeB`\x82"

# In image data, FF is followed by 00 or a restart marker; anything else begins the next segment.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = b"\xff\xd9"


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
        fs, path = storage.resolve(uri)
        data: bytes = fs.cat_file(path)
    except IsADirectoryError as error:
        raise ReadError("missing", "there is a folder, not an object") from error
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

    Colour becomes grey and 8-bit values stay, by OpenCV's rules. 16-bit values are scaled from
    their minimum and maximum to 0-255, since files of 10, 12 and 16 significant bits look alike.

    Returns:
        uint8 [H, W].

    Raises:
        ReadError: "unsupported", "damaged" or "too_large".
    """
    _check(data, max_side)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ReadError("damaged", storage.explain(error)) from error
    if image is None or not image.size:
        raise ReadError("damaged", "the image data cannot be decoded")
    if image.dtype != np.uint8:
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    return np.asarray(image, np.uint8)


def _check(data: bytes, max_side: int) -> None:
    """Find what a decoder would not say: a bomb before it goes off, and data that end early or fail their checksum."""
    kind = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ReadError("unsupported", f"not a PNG or JPEG image; it begins with {data[:8]!r}")
    try:
        # Not Image.open, which has a limit of its own that `max_side` could not lift.
        with kind(io.BytesIO(data)) as header:
            width, height = header.size
            if max(width, height) > max_side:
                raise ReadError("too_large", f"{width} x {height} pixels; the limit is {max_side} a side (--max-side)")
            if kind is PngImageFile:
                header.verify()
    except ReadError:
        raise
    except Exception as error:  # a damaged header makes its parser raise whatever it stumbles over
        raise ReadError("damaged", storage.explain(error)) from error
    # Decoders fill the missing rows of a truncated JPEG with grey and say nothing.
    if not (_PNG_END in data if kind is PngImageFile else _jpeg_ends(data)):
        raise ReadError("damaged", "the data end before the image does")


def _jpeg_ends(data: bytes) -> bool:
    """Whether the segments of a JPEG lead to its end marker; a thumbnail within a segment has one of its own."""
    position = len(b"\xff\xd8")
    while marker := _JPEG_MARKER.search(data, position):
        if marker[0] == _JPEG_END:
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False


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
