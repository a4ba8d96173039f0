"""Every form of landmark and mask files."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.errors import InputError
from chexmask_u.settings import EvaluateSettings
from chexmask_u.training import evaluate, examples
from tests.support.annotated import HEART, read, save_landmarks, save_npy, write_folder


def _csv(folder: Path, landmarks: np.ndarray) -> None:
    with (folder / "landmarks.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["name", *(f"{axis}{node}" for node in range(120) for axis in "xy")])
        for index, points in enumerate(landmarks):
            table.writerow([f"person{index}.png", *("" if np.isnan(value) else value for value in points.ravel())])


def _organ_texts(folder: Path, landmarks: np.ndarray) -> None:
    for organ, name in zip(cu.ORGANS, ("RL", "LL", "H"), strict=True):
        (folder / "landmarks" / name).mkdir(parents=True)
        for index, points in enumerate(landmarks[:, cu.LANDMARKS[organ]]):
            if np.isfinite(points).all():
                np.savetxt(folder / "landmarks" / name / f"person{index}.txt", points, delimiter=",")


@pytest.mark.parametrize("write", [_csv, save_npy, _organ_texts])
def test_every_form_of_landmarks_gives_the_same_examples(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None]
) -> None:
    landmarks = write_folder(tmp_path)
    landmarks[1, HEART] = np.nan
    save_landmarks(tmp_path, landmarks)
    expected, problems = read(tmp_path)
    assert not problems
    assert expected.has_heart().tolist() == [True, False, True, True]
    (tmp_path / "landmarks.npz").unlink()
    write(tmp_path, landmarks)
    found, problems = read(tmp_path)
    assert not problems
    assert found.names == expected.names
    np.testing.assert_allclose(found.landmarks, expected.landmarks, atol=1e-5)


def test_masks_give_landmarks_of_those_organs(tmp_path: Path) -> None:
    landmarks = write_folder(tmp_path, side=512)
    (tmp_path / "landmarks.npz").unlink()
    for organ in ("right_lung", "left_lung"):
        (tmp_path / "masks" / organ).mkdir(parents=True)
        for index, points in enumerate(landmarks):
            mask = cu.organ_mask(points, organ, 512, 512) * np.uint8(255)
            cv2.imwrite(str(tmp_path / "masks" / organ / f"person{index}.png"), mask)
    found, problems = read(tmp_path)
    assert not problems
    assert not found.has_heart().any()
    offset = found.landmarks[:, :94] * 512 - landmarks[:, :94]
    assert np.hypot(*np.moveaxis(offset, -1, 0)).mean() < 10
    whole, _ = examples.read_examples(EvaluateSettings(data=(str(tmp_path),)), 1024)
    scored = evaluate.score(cu.load_model("demo"), whole.take([0, 1, 2]), samples=2, seed=0, batch_size=3).summary
    assert scored["from_masks"] == 3
    assert "3 of them annotated by masks: distances" in evaluate.table(scored)


@pytest.mark.parametrize(
    ("sizes", "kind", "words"),
    [
        ((400, 400), "resolution", "annotated at 400 x 400, but the image has 512 x 512"),
        ((512, 400), "unreadable", r"its masks have 512 x 512 \(right_lung\) and 400 x 400 \(left_lung\) pixels"),
    ],
)
def test_masks_of_another_size_than_their_image_are_named(
    tmp_path: Path, sizes: tuple[int, int], kind: str, words: str
) -> None:
    landmarks = write_folder(tmp_path, side=512)
    (tmp_path / "landmarks.npz").unlink()
    for organ, size in zip(("right_lung", "left_lung"), sizes, strict=True):
        (tmp_path / "masks" / organ).mkdir(parents=True)
        mask = cu.organ_mask(landmarks[0], organ, 512, 512)[:size, :size]
        cv2.imwrite(str(tmp_path / "masks" / organ / "person0.png"), mask * np.uint8(255))
    _, problems = read(tmp_path)
    (problem,) = [problem for problem in problems if problem.name == "person0"]
    assert problem.kind == kind
    assert re.search(words, problem.detail)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"PK" + data])
def test_a_damaged_landmark_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_folder(tmp_path)
    file = tmp_path / "landmarks.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"landmarks\.npz: is no \.npz archive"):
        read(tmp_path)


def test_images_that_are_linked_from_another_disk_are_read_and_dead_links_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "images").symlink_to(tmp_path / "disk" / "images")
    (folder / "landmarks.npz").symlink_to(tmp_path / "disk" / "landmarks.npz")
    assert len(read(folder)[0]) == 4
    image = tmp_path / "disk" / "images" / "person1.png"
    image.unlink()
    image.symlink_to(tmp_path / "gone.png")
    found, problems = read(folder)
    assert ([problem.name for problem in problems], len(found)) == (["person1"], 3)
    (folder / "more").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"mine/more: is a link that leads nowhere; mend or delete it"):
        read(folder)
