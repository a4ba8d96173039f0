from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS
from chexmask_u.images.decode import decode
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.record import ReadError
from chexmask_u.sources.synthetic import Drawing, draw, write_demo
from chexmask_u.weight_files import load_model

# Neither the demonstration weights' training population (0) nor the one they are validated on (1).
UNSEEN = 77


def _digest(index: int, seed: int, side: int) -> str:
    drawing = draw(index, seed, side)
    return hashlib.sha256(drawing.image.tobytes() + drawing.landmarks.tobytes()).hexdigest()


def _crossings(ring: NDArray[np.float32]) -> int:
    """Pairs of edges of a closed polygon that cross, of those that share no node."""

    def side(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.bool_]:
        ab, ac = b - a, c - a
        return ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0] > 0

    start, end = ring.astype(np.float64), np.roll(ring, -1, axis=0).astype(np.float64)
    a, b, c, d = start[:, None], end[:, None], start[None], end[None]
    crossing = (side(a, b, c) != side(a, b, d)) & (side(c, d, a) != side(c, d, b))
    gap = np.abs(np.subtract.outer(np.arange(len(ring)), np.arange(len(ring))))
    return int((crossing & (gap > 1) & (gap < len(ring) - 1)).sum()) // 2


def _signed_area(ring: NDArray[np.float32]) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum()) / 2


def _interior(shape: tuple[int, int], ring: NDArray[np.float32]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [ring.round().astype(np.int32)], (1,))
    reach = max(shape) // 40
    return cv2.erode(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0


def _lungs_look_darker_than_the_heart(image: NDArray[np.uint8], landmarks: NDArray[np.float32]) -> bool:
    grey = {organ: np.median(image[_interior(image.shape, landmarks[LANDMARKS[organ]])]) for organ in ORGANS}
    return bool(grey["right_lung"] < grey["heart"] and grey["left_lung"] < grey["heart"])


def test_a_drawing_is_the_same_in_every_process() -> None:
    program = (
        "import hashlib; from chexmask_u.sources.synthetic import draw; d = draw(5, 3, 200);"
        "print(hashlib.sha256(d.image.tobytes() + d.landmarks.tobytes()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    draw(4, 3, 200)
    assert _digest(5, 3, 200) == elsewhere.stdout.strip()


def test_index_and_seed_each_give_another_person() -> None:
    people = {draw(index, seed, 64).landmarks.tobytes() for index in range(5) for seed in range(5)}
    assert len(people) == 25


def test_another_side_draws_the_same_person() -> None:
    small, large = draw(2, 0, 128), draw(2, 0, 512)
    np.testing.assert_allclose(small.landmarks * 4, large.landmarks, rtol=1e-5)
    shrunk = cv2.resize(large.image, (128, 128), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(shrunk - small.image).mean() < 8


@pytest.fixture(scope="module")
def people() -> NDArray[np.float32]:
    """Landmarks [200, 120, 2] of so many drawings of 32 x 32 pixels."""
    return np.stack([draw(index, UNSEEN, 32).landmarks for index in range(200)])


def test_organs_lie_as_in_a_person(people: NDArray[np.float32]) -> None:
    for index, landmarks in enumerate(people):
        assert landmarks.min() >= 0
        assert landmarks.max() <= 32
        right, left, heart = (landmarks[LANDMARKS[organ]] for organ in ORGANS)
        assert right[:, 0].max() < left[:, 0].min()
        assert right[:, 0].mean() < heart[:, 0].mean() < left[:, 0].mean()
        assert heart[:, 1].min() > max(right[0, 1], left[0, 1])
        for ring, turn in ((right, -1), (left, 1), (heart, 1)):
            assert _signed_area(ring) * turn > 0, f"person {index} is inside out"
            assert _crossings(ring) == 0, f"a contour of person {index} crosses itself"


def test_people_differ_as_much_as_patients_do(people: NDArray[np.float32]) -> None:
    spread = people.std(0) * (FRAME / 32)
    # Node positions of the 200 JSRT radiographs vary by 33 px in x and 54 px in y.
    assert (spread.mean(0) > (33, 50)).all()


def test_landmarks_lie_where_the_picture_shows_organs() -> None:
    drawings = [draw(index, UNSEEN, 256) for index in range(40)]
    seen = [_lungs_look_darker_than_the_heart(drawing.image, drawing.landmarks) for drawing in drawings]
    assert sum(seen) >= 38


def test_demo_folder_is_mixed_and_its_landmarks_fit_its_files(tmp_path: Path) -> None:
    write_demo(tmp_path, count=8)
    with np.load(tmp_path / "landmarks.npz") as archive:
        names, landmarks = archive["names"].tolist(), archive["landmarks"]
    assert landmarks.shape == (8, 120, 2)
    assert len(set(names)) == 8
    images = [decode((tmp_path / "images" / name).read_bytes(), max_side=4096) for name in names]
    assert len({image.shape for image in images}) >= 6
    for image, points in zip(images, landmarks, strict=True):
        assert points.min() >= 0
        assert (points.max(0) <= image.shape[::-1]).all()
        assert _lungs_look_darker_than_the_heart(image, points)


def test_demo_folder_holds_files_that_cannot_be_read(tmp_path: Path) -> None:
    write_demo(tmp_path, count=1)
    damaged = sorted((tmp_path / "images").glob("damaged-*"))
    assert len(damaged) == 4
    for path in damaged:
        with pytest.raises(ReadError):
            decode(path.read_bytes(), max_side=4096)


@pytest.fixture(scope="module")
def demo() -> HybridGNet:
    return load_model("demo")


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    """Twelve in the network's frame."""
    return [draw(index, UNSEEN, FRAME) for index in range(12)]


@torch.inference_mode()
def _predict(model: HybridGNet, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Landmarks [120, 2] of the posterior mean and the mean std of 30 draws, in pixels of the 1024 frame."""
    grey = torch.from_numpy(image).float().div(255)[None, None]
    mean, log_var, features = model.encode(F.interpolate(grey, (model.input_size, model.input_size), mode="area"))
    noise = torch.randn((1, 30, mean.shape[1]), generator=torch.Generator().manual_seed(0))
    z = torch.cat([mean[:, None], mean[:, None] + noise * (0.5 * log_var[:, None]).exp()], dim=1)
    landmarks = model.decode(z, features)[0] * FRAME
    return landmarks[0].numpy(), float(landmarks[1:].std(0, correction=0).mean())


def test_bundled_weights_find_the_organs_of_unseen_drawings(demo: HybridGNet, drawings: list[Drawing]) -> None:
    errors = []
    for drawing in drawings:
        found, _ = _predict(demo, drawing.image)
        errors.append(np.hypot(*(found - drawing.landmarks).T).mean())
    assert np.mean(errors) < 16
    assert np.max(errors) < 30


def test_bundled_weights_are_less_certain_where_they_cannot_see(demo: HybridGNet, drawings: list[Drawing]) -> None:
    clear, covered = [], []
    for drawing in drawings:
        image = drawing.image.copy()
        clear.append(_predict(demo, image)[1])
        image[340:770, 64:512] = 128
        covered.append(_predict(demo, image)[1])
    assert 0.5 < np.mean(clear) < np.mean(covered)
