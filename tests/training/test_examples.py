"""Annotated images as they are read, checked, prepared and split."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import chexmask_u as cu
from chexmask_u.errors import InputError
from chexmask_u.model.encoder import Features
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.sources.synthetic import draw
from chexmask_u.training import examples
from tests.support.annotated import HEART, SIDE, read, save_landmarks, save_npy, write_folder


def test_folder_of_any_sizes_is_prepared_with_its_landmarks(tmp_path: Path) -> None:
    from chexmask_u.sources.synthetic import write_demo

    write_demo(tmp_path, count=8)
    with np.load(tmp_path / "landmarks.npz") as archive:
        original = dict(zip(archive["names"], archive["landmarks"], strict=True))
    found, problems = read(tmp_path)
    assert len(found) == 8
    # Files that no landmarks were made for.
    assert {problem.kind for problem in problems} == {"no_annotation"}
    for name, landmarks in zip(found.names, found.landmarks, strict=True):
        file = next(file for file in original if Path(file).stem == name.partition("/")[2])
        image = cu.read_image(str(tmp_path / "images" / file))
        np.testing.assert_allclose(landmarks * 1024, image.letterbox.to_frame(original[file]), atol=0.01)


class Seeing(HybridGNet):
    """Keeps what it is given to encode."""

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Features]:
        self.seen = images
        return super().encode(images)


@pytest.mark.parametrize("side", [256, 384, 640])
def test_training_sees_an_image_as_the_network_will_when_it_predicts(side: int) -> None:
    """At sides that do not divide 1024, too, where a library has ideas of its own of an area."""
    image = np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8)
    model = Seeing(side, "noskip").eval()
    cu.predict(model, image[None], ["a"], n_samples=1)
    reduced = examples.reduced(image, side)
    assert reduced.dtype == np.uint8
    np.testing.assert_allclose(reduced, model.seen[0, 0].numpy() * 255, atol=0.5001, rtol=0)


def _without(folder: Path, landmarks: np.ndarray) -> None:
    (folder / "images" / "person1.png").unlink()


def _extra(folder: Path, landmarks: np.ndarray) -> None:
    save_landmarks(folder, np.delete(landmarks, 1, axis=0))
    np.savez(
        folder / "landmarks.npz", names=np.array(["person0", "person2", "person3"]), landmarks=landmarks[[0, 2, 3]]
    )


def _twice(folder: Path, landmarks: np.ndarray) -> None:
    cv2.imwrite(str(folder / "images" / "person1.jpg"), draw(1, side=SIDE).image)


def _truncated(folder: Path, landmarks: np.ndarray) -> None:
    file = folder / "images" / "person1.png"
    file.write_bytes(file.read_bytes()[:500])


def _count(folder: Path, landmarks: np.ndarray) -> None:
    (folder / "landmarks.npz").unlink()
    save_npy(folder, landmarks)
    np.save(folder / "landmarks" / "person1.npy", landmarks[1, :100])


def _changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path, np.ndarray], None]:
    def write(folder: Path, landmarks: np.ndarray) -> None:
        landmarks = landmarks.copy()
        landmarks[1] = change(landmarks[1])
        save_landmarks(folder, landmarks)

    return write


def _nan_in_lung(points: np.ndarray) -> np.ndarray:
    points[50, 0] = np.nan
    return points


def _nan_in_part_of_heart(points: np.ndarray) -> np.ndarray:
    points[100] = np.nan
    return points


def _far(points: np.ndarray) -> np.ndarray:
    points[3] = (SIDE + 40, 20)
    return points


def _exchanged(points: np.ndarray) -> np.ndarray:
    heart = points[HEART].copy()
    points[HEART] = heart - (0, 0.6 * SIDE) + (0, 20)
    return points.clip(0, SIDE)


def _upside_down_lungs(points: np.ndarray) -> np.ndarray:
    points[:94, 1] = SIDE - points[:94, 1]
    points[HEART] = np.nan
    return points


def _rolled(points: np.ndarray) -> np.ndarray:
    points[:44] = np.roll(points[:44], 5, axis=0)
    return points


def _reversed(points: np.ndarray) -> np.ndarray:
    points[HEART] = points[HEART][::-1]
    return points


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("no_image", _without),
        ("no_annotation", _extra),
        ("duplicate", _twice),
        ("unreadable", _truncated),
        ("count", _count),
        ("not_finite", _changed(_nan_in_lung)),
        ("not_finite", _changed(_nan_in_part_of_heart)),
        ("outside", _changed(_far)),
        ("swapped", _changed(lambda points: points[:, ::-1])),
        ("resolution", _changed(lambda points: points / 2)),
        ("position", _changed(lambda points: np.array([SIDE, 0]) + points * np.array([-1, 1]))),
        ("position", _changed(_exchanged)),
        ("position", _changed(_upside_down_lungs)),
        ("order", _changed(_rolled)),
        ("order", _changed(_reversed)),
    ],
)
def test_bad_input_is_named_and_the_rest_is_usable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, damage: Callable[[Path, np.ndarray], None]
) -> None:
    damage(tmp_path, write_folder(tmp_path))
    found, problems = read(tmp_path)
    assert [(problem.kind, problem.name) for problem in problems] == [(kind, "person1")]
    assert [name.partition("/")[2] for name in found.names] == ["person0", "person2", "person3"]
    with pytest.raises(InputError, match=f"1 {kind} .*/person1.*--on-bad skip"):
        examples.refuse(problems, "refuse")
    examples.refuse(problems, "skip")
    assert re.search(f"1 {kind} .*/person1.*left out", capsys.readouterr().err)
    assert next(csv.DictReader(io.StringIO(examples.problems_csv(problems))))["kind"] == kind


def test_overlays_beside_the_images_are_not_taken_for_them(tmp_path: Path) -> None:
    write_folder(tmp_path)
    expected, _ = read(tmp_path)
    (tmp_path / "overlays").mkdir()
    cv2.imwrite(str(tmp_path / "overlays" / "person1.png"), np.zeros((SIDE, SIDE), np.uint8))
    found, problems = read(tmp_path)
    assert not problems
    np.testing.assert_array_equal(found.images, expected.images)


def test_image_of_another_resolution_than_was_annotated_is_named(tmp_path: Path) -> None:
    landmarks = write_folder(tmp_path)
    save_landmarks(tmp_path, landmarks, height=np.array([SIDE, 512, SIDE, SIDE]), width=np.full(4, SIDE))
    _, problems = read(tmp_path)
    assert [(problem.kind, problem.detail) for problem in problems] == [
        ("resolution", f"annotated at {SIDE} x 512, but the image has {SIDE} x {SIDE}")
    ]


def test_split_by_name_never_changes() -> None:
    names = [f"jsrt/JPCLN{number:03d}" for number in range(1, 155)]
    parts = examples.split(names, 0.1, None)
    held_out = [name for name, part in zip(names, parts, strict=True) if part == "validation"]
    assert held_out[:3] == ["jsrt/JPCLN018", "jsrt/JPCLN024", "jsrt/JPCLN075"]
    # Others in the folder, or another name of the folder, change nothing.
    assert examples.split([f"mine/{names[-1][5:]}"], 0.1, None) == parts[-1:]
    # Who is held out at a tenth is held out at a fifth, too.
    wider = examples.split(names, 0.2, None)
    assert all(wide == "validation" for wide, part in zip(wider, parts, strict=True) if part == "validation")


def test_split_file_is_followed_and_must_be_complete(tmp_path: Path) -> None:
    names = ["mine/a", "mine/b", "mine/c"]
    file = tmp_path / "split.csv"
    file.write_text(examples.split_csv(names, ["train", "validation", "train"]))
    assert examples.split(names, 0.9, str(file)) == ["train", "validation", "train"]
    # As a spreadsheet program on Windows leaves it: an image is not to be taken for one that nobody trained on.
    file.write_bytes(b"\xef\xbb\xbfname,part\r\nmine\\a.png ,train \r\n mine/b,validation\r\nmine/c,train\r\n")
    assert examples.trained_on([*names, "mine/d"], str(file)) == [True, False, True, False]
    assert examples.split(names, 0.9, str(file)) == ["train", "validation", "train"]
    with pytest.raises(InputError, match="part of 1 images, such as d"):
        examples.split([*names, "mine/d"], 0.9, str(file))
    file.write_text("name,part\nmine/a,train\nother/a,validation\n")
    with pytest.raises(InputError, match="a is in both parts"):
        examples.split(names, 0.9, str(file))
    file.write_text("name,part\na\n")
    with pytest.raises(InputError, match="is no CSV with columns name and part"):
        examples.split(names, 0.9, str(file))
    file.write_text("name,part\na,test\n")
    with pytest.raises(InputError, match="'test'"):
        examples.split(names, 0.9, str(file))
