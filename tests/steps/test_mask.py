"""Masks and run-length strings: the published ones, and what must hold for any."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from chexmask_u import record
from chexmask_u.steps.mask import mask, organ_mask, organ_rle, rle_decode, rle_encode

SHARED = Path(os.environ.get("CHEXMASK_SHARED", Path(__file__).parents[3] / "shared"))
PUBLISHED = SHARED / "data" / "chexmask_published"

# Column of the published table and nodes of the landmarks, per organ.
ORGANS = {
    "right_lung": ("Right Lung", slice(0, 44)),
    "left_lung": ("Left Lung", slice(44, 94)),
    "heart": ("Heart", slice(94, 120)),
}

masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1))
sizes = st.integers(1, 60)
# Inside, across a border and far outside of the largest of these masks.
landmarks = hnp.arrays(np.float32, (120, 2), elements=st.floats(-90, 150, width=32))


def everywhere(points: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Landmarks of which every organ runs along these points."""
    return np.concatenate([contour(points, nodes) for _, nodes in ORGANS.values()])


def contour(points: list[tuple[float, float]], nodes: slice) -> NDArray[np.float64]:
    """Once along these points, and all further nodes on the last one."""
    return np.array([*points, *[points[-1]] * (nodes.stop - nodes.start - len(points))], float)


def runs(mask: NDArray[np.uint8]) -> str:
    """Run-length string by the definition: walk the pixels, row by row, counting from 1."""
    found: list[int] = []
    length = 0
    flat = [*mask.ravel().tolist(), 0]
    for position, inside in enumerate(flat, start=1):
        if inside:
            length += 1
        elif length:
            found += [position - length, length]
            length = 0
    return " ".join(map(str, found))


# What was published


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the published tables are not at {PUBLISHED}")
def test_published_strings_are_ours_byte_for_byte() -> None:
    csv.field_size_limit(10_000_000)
    compared = 0
    tables = sorted(PUBLISHED.glob("*.csv"))
    assert len(tables) == 5
    for table in tables:
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                if not row["Height"] or not row["Width"]:
                    continue
                height, width = int(float(row["Height"])), int(float(row["Width"]))
                points = np.array(row["Landmarks"].split(","), float).reshape(120, 2)
                for organ, (column, _) in ORGANS.items():
                    where = f"{table.name}, {organ} of the row with {row['Landmarks'][:20]}"
                    assert rle_encode(organ_mask(points, organ, height, width)) == row[column], where
                    assert organ_rle(points, organ, height, width) == row[column], where
                    compared += 1
    assert compared == 402


# Strings


def test_a_string_by_hand() -> None:
    drawn = np.array(
        [
            [0, 1, 1, 0, 1],
            [1, 0, 0, 0, 0],
            [0, 0, 0, 1, 1],
            [1, 1, 0, 0, 1],
        ],
        np.uint8,
    )
    # Runs go on over the end of a row: pixel 5 with 6, and pixels 14 and 15 with 16 and 17.
    assert rle_encode(drawn) == "2 2 5 2 14 4 20 1"
    assert (rle_decode("2 2 5 2 14 4 20 1", 4, 5) == drawn).all()


@settings(deadline=None)
@given(masks)
@example(np.zeros((3, 4), np.uint8))
@example(np.ones((3, 4), np.uint8))
@example(np.ones((1, 1), np.uint8))
@example(np.array([[1, 0, 0, 1, 1]], np.uint8))
@example(np.array([[1], [0], [1]], np.uint8))
def test_any_mask_survives_its_string(drawn: NDArray[np.uint8]) -> None:
    string = rle_encode(drawn)
    assert string == runs(drawn)
    decoded = rle_decode(string, *drawn.shape)
    assert decoded.dtype == np.uint8
    assert (decoded == drawn).all()
    assert rle_encode(drawn.astype(bool)) == rle_encode(drawn * 255) == string


@pytest.mark.parametrize(
    "bad",
    [
        *["5", "1 2 3", "0 1", "-3 2", "1 0", "1 -1", "20 2", "21 1", "1 21", "one two", "1.5 2", "1,2", "nan 1"],
        *["99999999999999999999 1", "1 99999999999999999999", "9223372036854775807 9223372036854775807"],
    ],
)
def test_strings_that_are_no_runs_of_this_size_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="run"):
        rle_decode(bad, 4, 5)


def test_a_run_may_end_at_the_last_pixel() -> None:
    assert rle_decode("20 1", 4, 5).ravel().tolist() == [0] * 19 + [1]
    assert rle_decode("1 20", 4, 5).all()


# Organs


@pytest.mark.parametrize("organ", ORGANS)
def test_each_organ_is_drawn_from_its_own_nodes(organ: str) -> None:
    points = np.zeros((120, 2))
    for index, (_, nodes) in enumerate(ORGANS.values()):
        low, high = 3 + 10 * index, 6 + 10 * index
        points[nodes] = contour([(2, low), (8, low), (8, high), (2, high)], nodes)
    expected = np.zeros((40, 20), np.uint8)
    top = 3 + 10 * list(ORGANS).index(organ)
    expected[top : top + 4, 2:9] = 1  # the contour itself belongs to the organ
    assert (organ_mask(points, organ, 40, 20) == expected).all()


@settings(deadline=None, max_examples=200)
@given(landmarks, sizes, sizes, st.sampled_from(list(ORGANS)))
@example(everywhere([(-5, -5), (70, -5), (70, 70), (-5, 70)]), 8, 9, "heart")  # covers all
@example(everywhere([(0, 0), (8, 0), (8, 7), (0, 7)]), 8, 9, "heart")  # touches every border
@example(everywhere([(3, 2), (30, 2), (30, 6), (3, 6), (-4, 5)]), 8, 9, "left_lung")  # runs over the ends of rows
@example(everywhere([(9, 0), (20, 0), (20, 7)]), 8, 9, "right_lung")  # begins one column too far right
@example(everywhere([(-20, 0), (-1, 3), (-20, 7)]), 8, 9, "right_lung")  # ends one column too far left
@example(everywhere([(0, 8), (8, 8)]), 8, 9, "heart")  # one row too low
@example(everywhere([(4, 4)]), 8, 9, "heart")  # a point
def test_the_fast_string_is_the_string_of_the_mask(points: NDArray[Any], height: int, width: int, organ: str) -> None:
    drawn = organ_mask(points, organ, height, width)
    assert organ_rle(points, organ, height, width) == runs(drawn)
    # By OpenCV's rules: another of its functions fills the same polygon.
    filled = np.zeros((height, width), np.uint8)
    cv2.drawContours(filled, [np.rint(points[ORGANS[organ][1]]).astype(int)[:, None].astype(np.int32)], 0, (1,), -1)
    assert (drawn == filled).all()


def test_coordinates_are_rounded_to_the_nearest_pixel() -> None:
    low = everywhere([(1.6, 1.6), (6.4, 1.6), (6.4, 4.4), (1.6, 4.4)])
    expected = np.zeros((8, 9), np.uint8)
    expected[2:5, 2:7] = 1
    assert (organ_mask(low, "heart", 8, 9) == expected).all()


@pytest.mark.parametrize("draw", [organ_mask, organ_rle])
def test_what_is_no_set_of_landmarks_is_refused(draw: Any) -> None:
    good = everywhere([(1, 1), (5, 1), (5, 5)])
    with pytest.raises(ValueError, match="lungs"):
        draw(good, "lungs", 8, 9)
    with pytest.raises(ValueError, match=r"\[119, 2\]"):
        draw(good[1:], "heart", 8, 9)
    with pytest.raises(ValueError, match=r"\[240\]"):
        draw(good.ravel(), "heart", 8, 9)
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[100, 1] = value
        with pytest.raises(ValueError, match="heart is not finite"):
            draw(bad, "heart", 8, 9)
        draw(bad, "left_lung", 8, 9)
    for far in (1e10, -3e9):
        bad = good.copy()
        bad[100, 1] = far
        with pytest.raises(ValueError, match="heart"):
            draw(bad, "heart", 8, 9)


# The step


def predicted(rows: list[dict[str, Any]]) -> pa.Table:
    """`record.PREDICTED`, with what a row does not say left null."""
    columns = {
        field.name: pa.array(
            [row.get(field.name, "x" if not field.nullable else None) for row in rows],
            field.type,
        )
        for field in record.PREDICTED
    }
    return pa.table(columns, schema=record.PREDICTED)


def ok_row(frame: NDArray[Any], letterbox: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    return {
        "status": "ok",
        "landmarks_mean": frame.tolist(),
        "landmarks_std": (np.abs(frame) / 64).tolist(),
        "landmarks_xy": (frame.prod(axis=1) / 64**2).tolist(),
        "landmarks_across": (np.abs(frame[:, 0]) / 64).tolist(),
        "landmarks_along": (np.abs(frame[:, 1]) / 64).tolist(),
        "letterbox": letterbox,
        "height": height,
        "width": width,
    }


# 2048 x 1000 (width x height) of which a border of 40 on the left and 8 at the top is cropped: 2000 x 960 remain,
# padded by 520 above, and 2000 pixels become 1024.
WIDE = {"crop_left": 40, "crop_top": 8, "crop_width": 2000, "crop_height": 960, "pad_left": 0, "pad_top": 520}


def test_landmarks_are_mapped_to_original_pixels_before_they_are_rounded() -> None:
    scale = 1024 / 2000
    original = everywhere([(100, 50), (900, 50), (900.4, 700.4), (99.6, 700)])
    frame = (original - [40, 8] + [0, 520]) * scale
    (row,) = mask(predicted([ok_row(frame, WIDE | {"scale": scale}, 1000, 2048)])).to_pylist()
    assert np.abs(np.array(row["landmarks_mean"]) - original).max() < 1e-3
    assert np.allclose(np.array(row["landmarks_std"]), np.abs(frame) / 64 / scale, rtol=1e-5)
    assert np.allclose(np.array(row["landmarks_xy"]), frame.prod(axis=1) / 64**2 / scale**2, rtol=1e-5)
    for axis, name in enumerate(("landmarks_across", "landmarks_along")):
        assert np.allclose(row[name], np.abs(frame[:, axis]) / 64 / scale, rtol=1e-5)
    # Rounding in the frame first would move the edges: a pixel of the frame is two of the original.
    expected = np.zeros((1000, 2048), np.uint8)
    expected[50:701, 100:901] = 1
    for organ in ORGANS:
        assert (rle_decode(row[organ], 1000, 2048) == expected).all()
    assert row["mask_seconds"] >= 0


def test_masks_are_those_of_the_landmarks_that_are_stored() -> None:
    """Sizes at which float32 rounds to another pixel than float64 does, for some landmark of most batches."""
    rng = np.random.default_rng(0)
    size = height, width = (4280, 3520)
    whole = {"crop_left": 0, "crop_top": 0, "crop_width": width, "crop_height": height, "pad_left": 380, "pad_top": 0}
    box = whole | {"scale": 1024 / height}
    frames = rng.uniform(100, 900, (100, 120, 2)).astype(np.float32)
    for row in mask(predicted([ok_row(frame, box, *size) for frame in frames])).to_pylist():
        landmarks = np.array(row["landmarks_mean"])
        for organ in ORGANS:
            assert row[organ] == organ_rle(landmarks, organ, *size)


def test_failed_rows_pass_through_wherever_they_stand() -> None:
    box = {**WIDE, "crop_left": 0, "crop_top": 0, "crop_width": 512, "crop_height": 512, "pad_top": 0, "scale": 2.0}
    squares = [everywhere([(2, 2), (2 + size, 2), (2 + size, 2 + size), (2, 2 + size)]) for size in (100, 200, 300)]
    good = [ok_row(square, box, 512, 512) for square in squares]
    bad = {"status": "failed", "reason": "damaged", "error": "cut short"}
    batch = predicted([bad, good[0], bad, bad, good[1], good[2], bad])
    names = list("abcdefg")
    batch = batch.set_column(0, record.PREDICTED.field("record_id"), pa.array(names))
    # Pieces of a larger table, as Ray hands them over.
    pieces = [batch, batch.slice(2, 4), batch.slice(6), pa.concat_tables([batch.slice(4), batch.slice(0, 4)])]
    widths = {"b": 50, "e": 100, "f": 150}
    for piece in [*pieces, batch.slice(0, 0)]:
        result = mask(piece)
        assert result.schema == record.RECORD
        assert result["record_id"].to_pylist() == piece["record_id"].to_pylist()
        for row in result.to_pylist():
            if row["record_id"] in widths:
                side = widths[row["record_id"]] + 1
                assert row["landmarks_mean"][0] == [1, 1]
                assert rle_decode(row["heart"], 512, 512).sum() == side * side
            else:
                assert (row["status"], row["reason"], row["error"]) == ("failed", "damaged", "cut short")
                assert all(row[name] is None for name in ("landmarks_mean", "landmarks_std", *ORGANS))
