"""Polygons and keypoints per organ, and how sure they are, as COCO: one JSON file per source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import LANDMARKS, ORGANS
from chexmask_u.releases.export import polygon
from chexmask_u.releases.export.output import TextSink
from chexmask_u.releases.export.rows import Row, SourceRows

# Whether a keypoint lies in the image: COCO's "not labelled", which nobody counts, and "labelled and visible".
OUTSIDE, INSIDE = 0, 2

DECIMALS = 2

DESCRIPTION = (
    "Landmarks of both lungs and the heart, as polygons and keypoints in original pixels. segmentation, area (square"
    " pixels) and bbox are of what lies in the image; an organ wholly outside has no annotation. A keypoint outside the"
    " image keeps its place and has v = 0. file_name is the source's own id of the image, which for some sources is no"
    " path: chexmask_u.pair_images finds the files. Beyond COCO: keypoints_std, the standard deviation [sx1, sy1, sx2,"
    " ...] of the keypoints over the draws, in original pixels; uncertainty, its mean over keypoints and axes, in"
    " pixels of the 1024 x 1024 frame, which compares images of any size."
)


def files(source: str) -> tuple[str]:
    """The files of a source, below the output."""
    return (f"{source}.json",)


def write(rows: SourceRows, stream: TextSink) -> None:
    """Write the file of a source, record by record; they are read twice, since images come before annotations."""
    info = {"description": DESCRIPTION, "version": rows.release.version}
    stream.write('{\n"info": ' + _json(info) + ',\n"licenses": [],\n')
    _write_list(stream, "categories", map(category, ORGANS))
    stream.write(",\n")
    _write_list(stream, "images", (image(index, row) for index, row in enumerate(rows.landmarks(), start=1)))
    stream.write(",\n")
    _write_list(stream, "annotations", _annotations(rows))
    stream.write("\n}\n")


def category(organ: str) -> dict[str, Any]:
    """An organ, with its landmarks as keypoints and its contour, a ring, as their skeleton."""
    count = LANDMARKS[organ].stop - LANDMARKS[organ].start
    return {
        "id": ORGANS.index(organ) + 1,
        "name": organ,
        "supercategory": "thorax",
        "keypoints": [f"{organ}_{index}" for index in range(1, count + 1)],
        "skeleton": [[index, index % count + 1] for index in range(1, count + 1)],
    }


def image(image_id: int, row: Row) -> dict[str, Any]:
    """COCO's image of a record, with its RCA scores."""
    scores = {"dice_rca_mean": row.dice_rca_mean, "dice_rca_max": row.dice_rca_max}
    return {
        "id": image_id,
        "file_name": row.image_id,
        "height": row.height,
        "width": row.width,
        "record_id": row.record_id,
        **{name: None if score is None else _shortest(score) for name, score in scores.items()},
    }


def annotation(annotation_id: int, image_id: int, organ: str, row: Row) -> dict[str, Any] | None:
    """COCO's annotation of one organ of a record: polygon, area and box of what lies in the image; None if nothing."""
    points = _rounded(row.landmarks_mean[LANDMARKS[organ]])
    std = row.landmarks_std[LANDMARKS[organ]]
    size = (row.width, row.height)
    inside = np.all((points >= 0) & (points <= size), axis=1)
    visibility = np.where(inside, INSIDE, OUTSIDE)
    ring, area, (left, top, right, bottom) = _in_image(points, size, bool(inside.all()))
    if not round(area, DECIMALS):
        # People train on boxes, which must have a width, and would score an organ that nobody can see as missed.
        return None
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": ORGANS.index(organ) + 1,
        "iscrowd": 0,
        "segmentation": [_rounded(ring).ravel().tolist()],
        "area": round(area, DECIMALS),
        "bbox": _rounded(np.array([left, top, right - left, bottom - top])).tolist(),
        "num_keypoints": int(inside.sum()),
        "keypoints": [
            value for (x, y), v in zip(points.tolist(), visibility.tolist(), strict=True) for value in (x, y, v)
        ],
        "keypoints_std": _rounded(std).ravel().tolist(),
        "uncertainty": _shortest(row.letterbox.spread_to_frame(std).mean()),
    }


def _in_image(
    points: NDArray[np.float64], size: tuple[int, int], whole: bool
) -> tuple[NDArray[np.float64], float, tuple[float, float, float, float]]:
    """Polygon, area and box (left, top, right, bottom) of what lies in the image of a contour [nodes, 2]."""
    if whole:
        # The shoelace formula takes a fiftieth of the time, and nearly all contours are whole.
        following = np.roll(points, -1, axis=0)
        area = abs((points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]).sum()) / 2
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return points, float(area), (left, top, right, bottom)
    return polygon.cut(points, size), polygon.area(points, size), polygon.box(points, size)


def _annotations(rows: SourceRows) -> Iterator[dict[str, Any]]:
    # From 1: pycocotools takes an annotation of id 0 for no match.
    for index, row in enumerate(rows.landmarks()):
        for offset, organ in enumerate(ORGANS, start=1):
            if (found := annotation(index * len(ORGANS) + offset, index + 1, organ, row)) is not None:
                yield found


def _rounded(values: NDArray[Any]) -> NDArray[np.float64]:
    """Values of any shape to `DECIMALS`."""
    return np.asarray(np.round(values.astype(np.float64), DECIMALS), np.float64)


def _shortest(value: np.floating[Any]) -> float:
    """A float32 with its own digits; as a float64 it would be written with meaningless ones."""
    return float(str(np.float32(value)))


def _write_list(stream: TextSink, name: str, items: Iterable[dict[str, Any]]) -> None:
    stream.write(f'"{name}": [')
    for index, item in enumerate(items):
        stream.write(("," if index else "") + "\n" + _json(item))
    stream.write("\n]")


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
