"""Original pixels <-> the 1024 frame: exact both ways, and where the image really lands."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chexmask_u import record
from chexmask_u.images.letterbox import BlankImageError, Letterbox, prepare

FRAME = 1024

coordinates = st.lists(
    st.tuples(st.floats(-500, 1524, width=32), st.floats(-500, 1524, width=32)), min_size=1, max_size=20
).map(np.array)


@st.composite
def letterboxes(draw: st.DrawFn) -> Letterbox:
    """Letterboxes of an image of any size with a border of any width: drawn from what is kept, not from `prepare`."""
    width, height = draw(st.integers(1, 9000)), draw(st.integers(1, 9000))
    side = max(width, height)
    return Letterbox(
        crop_left=draw(st.integers(0, 3000)),
        crop_top=draw(st.integers(0, 3000)),
        crop_width=width,
        crop_height=height,
        pad_left=(side - width) // 2,
        pad_top=(side - height) // 2,
        scale=FRAME / side,
    )


def stored(letterbox: Letterbox) -> Letterbox:
    """As it comes back from a record."""
    return Letterbox.from_row(pa.array([letterbox.to_row()], record.LETTERBOX)[0].as_py())


@settings(deadline=None)
@given(letterboxes(), coordinates)
def test_frame_to_original_and_back_is_exact(letterbox: Letterbox, frame: NDArray[Any]) -> None:
    letterbox = stored(letterbox)
    assert np.abs(letterbox.to_frame(letterbox.to_original(frame)) - frame).max() < 1e-6
    assert np.abs(letterbox.to_original(letterbox.to_frame(frame)) - frame).max() < 1e-6


@settings(deadline=None)
@given(letterboxes().filter(lambda box: box.scale <= 4), coordinates)
def test_landmarks_of_a_record_map_back_to_a_thousandth_of_a_pixel(letterbox: Letterbox, frame: NDArray[Any]) -> None:
    # Records hold float32, which alone moves a coordinate of 10,000 px by up to 0.0005 px.
    original = letterbox.to_original(frame).astype(np.float32)
    tolerance = 1e-3 * max(1, letterbox.scale)
    assert np.abs(stored(letterbox).to_frame(original) - frame).max() < tolerance


@settings(deadline=None)
@given(letterboxes())
def test_what_is_kept_fills_the_frame_and_stays_centred(letterbox: Letterbox) -> None:
    left_top = np.array([letterbox.crop_left, letterbox.crop_top])
    right_bottom = left_top + np.array([letterbox.crop_width, letterbox.crop_height])
    start, stop = letterbox.to_frame(np.array([left_top, right_bottom]))
    assert (stop - start).max() == pytest.approx(FRAME)
    # The odd pixel of padding lies to the right and below.
    excess = (FRAME - stop) - start
    assert (np.isclose(excess, 0) | np.isclose(excess, letterbox.scale)).all()


@settings(deadline=None)
@given(letterboxes(), coordinates)
def test_spreads_are_distances_between_points(letterbox: Letterbox, frame: NDArray[Any]) -> None:
    spread = np.abs(frame) / 100
    there = letterbox.to_original(frame + spread) - letterbox.to_original(frame)
    assert letterbox.spread_to_original(spread) == pytest.approx(there, rel=1e-6, abs=1e-6)
    assert letterbox.spread_to_frame(letterbox.spread_to_original(spread)) == pytest.approx(spread)
    assert (letterbox.spread_to_original(np.zeros(2)) == 0).all()


def test_an_example_by_hand() -> None:
    # 300 x 500 (height x width) with 20 columns of border on the left and 80 on the right, 100 rows at the bottom:
    # 200 x 400 are kept, 100 rows are added above and below, and 400 pixels become 1024.
    image = np.zeros((300, 500), np.uint8)
    image[:200, 20:420] = 100
    prepared, letterbox = prepare(image, crop_border=True)
    assert letterbox == Letterbox(20, 0, 400, 200, 0, 100, 2.56)
    assert letterbox.to_frame(np.array([20, 0])).tolist() == [0, 256]
    assert letterbox.to_frame(np.array([120, 50])).tolist() == [256, 384]
    assert letterbox.to_original(np.array([1024, 768])).tolist() == [420, 200]
    assert letterbox.spread_to_original(np.array([2.56, 5.12])).tolist() == [1, 2]
    assert (prepared[:254] == 0).all()
    assert (prepared[258:766] == 100).all()
    assert (prepared[770:] == 0).all()


def centroid(image: NDArray[np.uint8], above: int) -> NDArray[np.float64]:
    """x then y of the light above a grey value; pixel i covers the coordinates from i to i + 1."""
    light = np.clip(image.astype(float) - above, 0, None)
    rows, columns = np.indices(image.shape)
    return np.array([((columns + 0.5) * light).sum(), ((rows + 0.5) * light).sum()]) / light.sum()


@pytest.mark.parametrize("crop_border", [False, True])
@pytest.mark.parametrize(
    ("height", "width"), [(100, 140), (140, 101), (512, 512), (1024, 1024), (1000, 1023), (2021, 1500), (2500, 3001)]
)
def test_a_bright_spot_lands_where_the_letterbox_says(height: int, width: int, crop_border: bool) -> None:
    rng = np.random.default_rng(height)
    for _ in range(2):
        border = rng.integers(0, 60, 4)
        image = np.zeros((height + border[0] + border[1], width + border[2] + border[3]), np.uint8)
        body = image[border[0] : border[0] + height, border[2] : border[2] + width]
        body[:] = 30
        radius = max(3, max(height, width) // 60)
        centre = rng.integers(3 * radius, [width - 3 * radius, height - 3 * radius]).tolist()
        cv2.circle(body, centre, radius, (250,), cv2.FILLED)
        prepared, letterbox = prepare(image, crop_border=crop_border)
        expected = letterbox.to_frame(centroid(image, 40))
        assert np.abs(centroid(prepared, 40) - expected).max() < 0.25
        assert (
            np.abs(letterbox.to_original(centroid(prepared, 40)) - centroid(image, 40)).max() < 0.25 / letterbox.scale
        )


@pytest.mark.parametrize(("height", "width"), [(100, 140), (2021, 1500)])
def test_one_bright_pixel_lands_where_the_letterbox_says(height: int, width: int) -> None:
    side = max(height, width)
    for x, y in np.random.default_rng(0).integers(0, [width, height], (20, 2)):
        image = np.zeros((height, width), np.uint8)
        image[y, x] = 255
        prepared, letterbox = prepare(image)
        if not prepared.any():  # bilinear resizing to less than half looks at some pixels only
            assert side > 2 * FRAME
            continue
        assert np.abs(centroid(prepared, 0) - letterbox.to_frame(np.array([x, y]) + 0.5)).max() < 1


def test_preparing_leaves_the_original_alone() -> None:
    image = np.arange(1024 * 1024, dtype=np.uint32).astype(np.uint8).reshape(1024, 1024)
    before = image.copy()
    for crop_border in (False, True):
        prepare(image, crop_border=crop_border)
        assert (image == before).all()


@pytest.mark.parametrize("grey", [0, 1])
def test_a_black_image_is_blank_once_its_border_is_cropped(grey: int) -> None:
    black = np.full((40, 60), grey, np.uint8)
    with pytest.raises(BlankImageError):
        prepare(black, crop_border=True)
    prepared, _ = prepare(black)
    assert prepared.shape == (FRAME, FRAME)


def test_a_single_pixel_above_the_border_is_kept() -> None:
    image = np.ones((40, 60), np.uint8)
    image[7, 11] = 2
    prepared, letterbox = prepare(image, crop_border=True)
    assert (prepared == 2).all()
    assert letterbox == Letterbox(11, 7, 1, 1, 0, 0, 1024.0)
