"""Edges of an image are found where they were drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from chexmask_u.anatomy import LANDMARKS
from chexmask_u.calibration.edges import edge_features
from chexmask_u.calibration.seen import Seen
from tests.model.test_spread import circles
from tests.support import invented_calibrations


def discs(radius: float, contrast: int = 100) -> np.ndarray:
    """uint8 [1024, 1024]: a soft-edged disc around the middle that the circles have."""
    image = np.full((1024, 1024), 60, np.uint8)
    cv2.circle(image, (500, 500), round(radius), (60 + contrast,), -1)
    return cv2.GaussianBlur(image, (0, 0), 2)


@pytest.mark.parametrize("away", [-24, -10, 0, 10, 24])
def test_the_strongest_edge_is_as_far_off_as_it_was_drawn(away: int) -> None:
    found = edge_features(discs(100 + away)[None], circles()[None])
    assert found.shape == (1, 120, 3)
    np.testing.assert_allclose(found[..., 1], abs(away), atol=2.5)
    on_edge = edge_features(discs(100)[None], circles()[None])
    if away:
        assert (found[..., 0] < 0.2 * on_edge[..., 0]).all()
    # A weaker contrast is the same edge.
    weak = edge_features(discs(100 + away, 50)[None], circles()[None])
    np.testing.assert_allclose(weak[..., 0], found[..., 0], atol=0.2)
    assert (weak[..., 2] < found[..., 2] - 0.5).all()


def test_an_image_has_the_features_that_it_has_alone_and_landmarks_may_lie_outside() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 1024, 1024), dtype=np.uint8)
    landmarks = np.stack([circles() + rng.normal(0, 30, (120, 2)) for _ in range(11)])
    landmarks[3, LANDMARKS["heart"]] += 2000
    together = edge_features(images, landmarks)
    assert np.isfinite(together).all()
    for index in (3, 9):
        np.testing.assert_array_equal(edge_features(images[[index]], landmarks[[index]])[0], together[index])


def test_images_that_are_not_those_of_the_prediction_are_refused() -> None:
    prediction = invented_calibrations.predictions(np.random.default_rng(0), 2)
    for images in (np.zeros((3, 1024, 1024), np.uint8), np.zeros((2, 512, 512), np.uint8), np.zeros((2, 1024, 1024))):
        with pytest.raises(ValueError, match=r"images must be the uint8 \[2, 1024, 1024\] that were predicted"):
            Seen.of(prediction, images)
    with pytest.raises(ValueError, match=r"chexmask_u\.read_image"):
        invented_calibrations.calibration("a" * 64).radius(prediction, images="x.png")
