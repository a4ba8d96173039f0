"""Landmarks from masks lie where the annotators put theirs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.sources.synthetic import draw
from chexmask_u.training import scores
from chexmask_u.training.contour import mask_landmarks


@pytest.mark.parametrize("organ", cu.ORGANS)
def test_landmarks_of_a_mask_lie_where_the_annotated_ones_do(organ: str) -> None:
    offsets, overlaps = [], []
    for index in range(20):
        landmarks = draw(index, side=64).landmarks * 16
        mask = cu.organ_mask(landmarks, organ, 1024, 1024)
        found = landmarks.copy()
        found[cu.LANDMARKS[organ]] = mask_landmarks(mask, organ)
        offsets.append(np.hypot(*(found - landmarks)[cu.LANDMARKS[organ]].T).mean())
        overlaps.append(scores.dice(mask, cu.organ_mask(found, organ, 1024, 1024)))
    # Neighbours are about 40 px apart.
    assert np.median(offsets) < 20
    assert min(overlaps) > 0.98


def test_landmarks_of_jsrt_masks_are_near_those_of_the_annotators(shared: Path) -> None:
    with np.load(shared / "data" / "jsrt" / "landmarks.npz") as archive:
        annotated = archive["landmarks"].astype(np.float64)
    for organ, most in (("right_lung", 12), ("left_lung", 22), ("heart", 15)):
        offsets = []
        for landmarks in annotated[::4]:
            mask = cu.organ_mask(landmarks, organ, 1024, 1024)
            found = mask_landmarks(mask, organ)
            offsets.append(np.hypot(*(found - landmarks[cu.LANDMARKS[organ]]).T).mean())
        assert np.mean(offsets) < most, organ


def test_a_mask_whose_inside_and_outside_were_exchanged_is_refused() -> None:
    mask = cu.organ_mask(draw(0, side=256).landmarks, "left_lung", 256, 256)
    with pytest.raises(ValueError, match="left_lung has most of the image's border inside"):
        mask_landmarks(1 - mask, "left_lung")


def test_a_mask_that_compression_or_a_change_of_size_blurred_keeps_its_outline() -> None:
    mask = cu.organ_mask(draw(0, side=512).landmarks, "left_lung", 512, 512)
    _, compressed = cv2.imencode(".jpg", mask * np.uint8(255), [cv2.IMWRITE_JPEG_QUALITY, 90])
    blurred = [cv2.imdecode(compressed, cv2.IMREAD_GRAYSCALE)]
    blurred.append(cv2.resize(cv2.resize(mask * np.uint8(255), (200, 200)), (512, 512)))
    for one in blurred:
        landmarks = np.zeros((120, 2))
        landmarks[cu.LANDMARKS["left_lung"]] = mask_landmarks(one, "left_lung")
        assert scores.dice(mask, cu.organ_mask(landmarks, "left_lung", 512, 512)) > 0.985


def test_mask_without_an_organ_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of the heart is empty"):
        mask_landmarks(np.zeros((8, 8), np.uint8), "heart")
    dot = np.zeros((8, 8), np.uint8)
    dot[4, 4] = 1
    with pytest.raises(ValueError, match="not the shape"):
        mask_landmarks(dot, "heart")
