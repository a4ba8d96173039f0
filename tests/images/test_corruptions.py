from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME
from chexmask_u.images import corruptions
from chexmask_u.images.corruptions import ALTERATIONS, CORRUPTIONS
from chexmask_u.sources.synthetic import draw


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return draw(0, 0, FRAME).image


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_nothing_at_first_and_ever_more_of_the_image_then(
    name: str, image: NDArray[np.uint8]
) -> None:
    kind, before = CORRUPTIONS[name], image.copy()
    away = [float(np.abs(kind.apply(image, level, 0).astype(float) - image).mean()) for level in kind.levels]
    assert away[0] == 0
    assert np.array_equal(image, before)
    assert (np.diff(away) > 0).all()


@pytest.mark.parametrize("matrix", [corruptions.rotation(20, FRAME), corruptions.cropping(0.7, FRAME)])
def test_points_go_where_the_image_goes(matrix: NDArray[np.float64]) -> None:
    points = np.array([[300.5, 420.5], [600.5, 350.5], [520.5, 700.5]], np.float32)
    image = np.zeros((FRAME, FRAME), np.uint8)
    # Each with a grey of its own, so large that a turned pixel is found.
    for grey, point in zip((60, 120, 240), points, strict=True):
        left, top = (point - 4.5).astype(int)
        image[top : top + 9, left : left + 9] = grey
    moved = corruptions.move(image, matrix)
    for grey, (x, y) in zip((60, 120, 240), corruptions.move_points(points, matrix), strict=True):
        rows, columns = np.nonzero(np.abs(moved.astype(int) - grey) < 3)
        near = (np.abs(columns - x) < 15) & (np.abs(rows - y) < 15)
        assert columns[near].mean() + 0.5 == pytest.approx(x, abs=0.3)
        assert rows[near].mean() + 0.5 == pytest.approx(y, abs=0.3)


def test_a_point_is_covered_where_its_pixel_is() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, FRAME, (500, 2))
    corners = corruptions.corners_around(rng.uniform(0, FRAME, (4, 2)), 150)
    covered = corruptions.cover(np.full((FRAME, FRAME), 9, np.uint8), corners, 150)
    column, row = points.astype(int).T
    assert np.array_equal(corruptions.is_covered(points, corners, 150), covered[row, column] == 0)
    assert not corruptions.is_covered([np.nan, np.nan], corners, 150)


def test_noise_is_as_strong_as_it_says_and_the_same_again() -> None:
    grey = np.full((FRAME, FRAME), 128, np.uint8)
    noisy = corruptions.noise(grey, 20, seed=3)
    assert noisy.std() == pytest.approx(20, rel=0.02)
    assert np.array_equal(noisy, corruptions.noise(grey, 20, seed=3))
    assert not np.array_equal(noisy, corruptions.noise(grey, 20, seed=4))


def test_two_images_are_blended_by_their_share(image: NDArray[np.uint8]) -> None:
    other = corruptions.invert(image)
    assert np.array_equal(corruptions.blend(image, other, 0), image)
    assert np.array_equal(corruptions.blend(image, other, 1), other)
    assert np.ptp(corruptions.blend(image, other, 0.5)) <= 1
    with pytest.raises(ValueError, match="one size"):
        corruptions.blend(image, other[1:], 0.5)


def test_what_is_done_twice_over_is_undone(image: NDArray[np.uint8]) -> None:
    for twice in ("inverted", "upside down", "mirrored"):
        assert np.array_equal(ALTERATIONS[twice](ALTERATIONS[twice](image)), image)
    assert np.array_equal(ALTERATIONS["turned right"](ALTERATIONS["turned left"](image)), image)
    halves = ALTERATIONS["left half hidden"](image).astype(int) + ALTERATIONS["right half hidden"](image)
    assert np.array_equal(halves, image)
