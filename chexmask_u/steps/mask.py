"""Landmarks -> polygon -> mask -> run-length string, per organ, in original pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u import anatomy, record, storage
from chexmask_u.columns import landmark_array, node_array, replace, to_landmarks, to_nodes
from chexmask_u.images.letterbox import Letterbox

# No image that OpenCV reads is larger; beyond, filling a contour takes seconds, and then overflows.
FARTHEST = 2**20


# What the step adds to a row or may change.
_POINT_COLUMNS = ("landmarks_mean", "landmarks_std")
_LANDMARK_COLUMNS = (*_POINT_COLUMNS, *record.NODE_COLUMNS)
_MASK_COLUMNS = ("status", "reason", "error", *_LANDMARK_COLUMNS, *anatomy.ORGANS, "mask_seconds")


def organ_mask(landmarks: NDArray[Any], organ: str, height: int, width: int) -> NDArray[np.uint8]:
    """Filled contour of one organ, by OpenCV's rules, as the published masks are made.

    Args:
        landmarks: [120, 2], x then y, in pixels of the mask; rounded to the nearest integer here.
        organ: one of `anatomy.ORGANS`.
        height, width: size of the mask in pixels.

    Returns:
        uint8 {0, 1} [height, width].

    Raises:
        ValueError: if the organ or the shape of the landmarks is not one of those, or a landmark is not finite, or
            farther away than any image reaches.
    """
    mask = np.zeros((height, width), np.uint8)
    cv2.drawContours(mask, [_contour(landmarks, organ)], -1, 1, cv2.FILLED)
    return mask


def organ_rle(landmarks: NDArray[Any], organ: str, height: int, width: int) -> str:
    """`rle_encode(organ_mask(...))`, drawn inside the organ's bounding box only."""
    contour = _contour(landmarks, organ)
    left, top = np.clip(contour.min(axis=0), 0, (width, height))
    right, bottom = np.clip(contour.max(axis=0) + 1, 0, (width, height))
    if right <= left or bottom <= top:
        return ""
    # A zero column on either side makes every run start and stop inside its own row.
    box = np.zeros((bottom - top, right - left + 2), np.uint8)
    cv2.drawContours(box[:, 1:-1], [contour - (left, top)], -1, 1, cv2.FILLED)
    pixels = box.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    row, column = np.divmod(edges, box.shape[1])
    pixel = (row + top) * width + column + left
    return _rle_string(pixel[0::2], pixel[1::2])


def rle_encode(mask: NDArray[Any]) -> str:
    """Run-length string of a mask [H, W]: row-major, 1-based "start length start length ..."; "" if it is empty."""
    flat = np.concatenate(([False], np.asarray(mask, bool).ravel(), [False]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return _rle_string(edges[0::2], edges[1::2])


def rle_decode(rle: str, height: int, width: int) -> NDArray[np.uint8]:
    """Mask uint8 {0, 1} [height, width] of a run-length string.

    Raises:
        ValueError: if the string is no list of pairs, or its runs do not fit the size.
    """
    try:
        numbers = np.array(rle.split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a run-length string holds whole numbers only, not {rle[:40]!r}") from error
    if len(numbers) % 2:
        raise ValueError(f"a run-length string holds pairs, not {len(numbers)} numbers")
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    # Not starts + lengths, which may overflow.
    if (starts < 0).any() or (lengths < 1).any() or (lengths > height * width - starts).any():
        raise ValueError(f"runs do not fit a mask of height {height} and width {width}")
    # +1 where a run starts and -1 where it stops sum to the mask.
    steps = np.zeros(height * width + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    covered: NDArray[np.int32] = np.cumsum(steps[:-1])
    return (covered > 0).astype(np.uint8).reshape(height, width)


def mask(batch: pa.Table) -> pa.Table:
    """Step: `record.PREDICTED` -> `record.RECORD`; landmarks to original pixels, one run-length string per organ.

    Landmarks are rounded only here, after they were mapped, and only for the masks.
    """
    arrays = zip(
        *(to_landmarks(batch[name]) for name in _POINT_COLUMNS),
        *(to_nodes(batch[name]) for name in record.NODE_COLUMNS),
        strict=True,
    )
    rows = zip(
        arrays,
        batch.select(["status", "reason", "error", "letterbox", "height", "width"]).to_pylist(),
        strict=True,
    )
    masked = [_mask_row(dict(zip(_LANDMARK_COLUMNS, arrays, strict=True)), row) for arrays, row in rows]
    columns = {name: [row[name] for row in masked] for name in _MASK_COLUMNS}
    columns |= {name: landmark_array(columns[name]) for name in _POINT_COLUMNS}
    columns |= {name: node_array(columns[name]) for name in record.NODE_COLUMNS}
    return replace(batch, record.RECORD, **columns)


def to_original(letterbox: Letterbox, landmarks: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """The landmark columns of a record, float32 in original pixels as it stores them.

    Args:
        letterbox: of its image.
        landmarks: the same columns in pixels of the 1024 frame, as a `Prediction` has them of one image.
    """
    ways = {"landmarks_mean": letterbox.to_original, "landmarks_xy": letterbox.covariance_to_original}
    return {
        name: ways.get(name, letterbox.spread_to_original)(landmarks[name]).astype(np.float32)
        for name in _LANDMARK_COLUMNS
    }


def _mask_row(landmarks: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The columns that the step adds or changes, of one row and its `_LANDMARK_COLUMNS`."""
    start = time.perf_counter()
    result = {name: row[name] for name in ("status", "reason", "error")}
    result |= dict.fromkeys((*_LANDMARK_COLUMNS, *anatomy.ORGANS))
    if landmarks["landmarks_mean"] is not None:
        try:
            original = to_original(Letterbox.from_row(row["letterbox"]), landmarks)
            # Of what is stored: of what was rounded to float32 afterwards, others would draw another border.
            mean = original["landmarks_mean"]
            masks = {organ: organ_rle(mean, organ, row["height"], row["width"]) for organ in anatomy.ORGANS}
            result |= masks | original
        except Exception as error:
            result |= {"status": record.FAILED, "reason": "internal", "error": storage.explain(error)}
    return result | {"mask_seconds": time.perf_counter() - start}


def _contour(landmarks: NDArray[Any], organ: str) -> NDArray[np.int32]:
    if organ not in anatomy.LANDMARKS:
        raise ValueError(f"organ must be one of {anatomy.ORGANS}, not {organ!r}")
    points = np.asarray(landmarks)
    if points.shape != (anatomy.N_LANDMARKS, 2):
        raise ValueError(f"landmarks must be [{anatomy.N_LANDMARKS}, 2], not {list(points.shape)}")
    points = points[anatomy.LANDMARKS[organ]]
    if not np.isfinite(points).all():
        raise ValueError(f"a landmark of the {organ} is not finite")
    if np.abs(points).max() > FARTHEST:
        raise ValueError(f"a landmark of the {organ} is more than {FARTHEST} pixels away")
    return np.rint(points).astype(np.int32)


def _rle_string(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> str:
    """Join runs that touch across the end of a row, and write them 1-based."""
    if not len(starts):
        return ""
    separate = starts[1:] != stops[:-1]
    starts = starts[np.concatenate(([True], separate))]
    stops = stops[np.concatenate((separate, [True]))]
    # One format string takes half the time of joining as many.
    return " ".join(["%d"] * (2 * len(starts))) % tuple(np.column_stack([starts + 1, stops - starts]).ravel().tolist())
