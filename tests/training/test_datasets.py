"""Folders and the datasets in their official form."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import chexmask_u as cu
from chexmask_u.errors import InputError
from chexmask_u.sources.synthetic import draw
from tests.support.annotated import SIDE, read, save_landmarks, write_folder


def test_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "nowhere")
    write_folder(tmp_path / "people")
    (tmp_path / "people" / "landmarks.npz").unlink()
    with pytest.raises(InputError, match="--landmarks people=PATH"):
        read(tmp_path / "people")
    save_landmarks(tmp_path / "people", np.zeros((1, 120, 2)))
    with pytest.raises(InputError, match="no --data is called that"):
        read(tmp_path / "people", landmarks=["others=landmarks.npz"])


def test_jsrt_files_are_read_as_they_were_distributed(tmp_path: Path) -> None:
    drawing = draw(0, side=2048)
    values = 4095 - np.rint(drawing.image.astype(np.float64) * 4095 / 255).astype(np.uint16)
    (tmp_path / "All247images").mkdir()
    (tmp_path / "All247images" / "JPCLN001.IMG").write_bytes(values.astype(">u2").tobytes())
    (tmp_path / "All247images" / "JPCNN001.IMG").write_bytes(values.astype("<u2").tobytes())
    (tmp_path / "All247images" / "JPCNN002.IMG").write_bytes(values.astype(">u2").tobytes()[:-2])
    names = np.array(["JPCLN001", "JPCNN001", "JPCNN002"])
    landmarks = np.stack([drawing.landmarks / 2] * 3)
    np.savez(tmp_path / "published.npz", names=names, landmarks=landmarks)
    found, problems = read(f"jsrt={tmp_path}", landmarks=[f"jsrt={tmp_path / 'published.npz'}"])
    assert found.names == ["jsrt/JPCLN001"]
    expected = cv2.resize(drawing.image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert np.abs(found.images[0].astype(int) - expected).mean() < 1
    np.testing.assert_allclose(found.landmarks[0], drawing.landmarks / 2048, atol=1e-5)
    assert [(problem.name, problem.kind) for problem in problems] == [
        ("JPCNN001", "unreadable"),
        ("JPCNN002", "unreadable"),
    ]
    assert "12 bits" in problems[0].detail


def test_montgomery_takes_its_own_masks(tmp_path: Path) -> None:
    drawing = draw(0, side=800)
    (tmp_path / "CXR_png").mkdir()
    padded = np.pad(drawing.image, ((0, 0), (100, 100)))
    cv2.imwrite(str(tmp_path / "CXR_png" / "MCUCXR_0001_0.png"), padded)
    for organ, folder in (("right_lung", "rightMask"), ("left_lung", "leftMask")):
        (tmp_path / "ManualMask" / folder).mkdir(parents=True)
        mask = cu.organ_mask(drawing.landmarks + np.array([100, 0]), organ, 800, 1000)
        cv2.imwrite(str(tmp_path / "ManualMask" / folder / "MCUCXR_0001_0.png"), mask * np.uint8(255))
    found, problems = read(f"montgomery={tmp_path}")
    assert not problems
    assert found.names == ["montgomery/MCUCXR_0001_0"]
    # A wide image is padded above and below to a square of 1000.
    expected = (drawing.landmarks[:94] + 100) / 1000
    assert np.hypot(*(found.landmarks[0, :94] - expected).T).mean() < 0.02


def test_shenzhen_and_padchest_take_published_landmarks_of_the_frame(tmp_path: Path) -> None:
    drawing = draw(0, side=900)
    shenzhen, padchest = tmp_path / "ChinaSet_AllFiles", tmp_path / "padchest" / "0"
    (shenzhen / "CXR_png").mkdir(parents=True)
    padchest.mkdir(parents=True)
    # Brighter than a border, up to its edge.
    image = drawing.image.clip(8)
    cv2.imwrite(str(shenzhen / "CXR_png" / "CHNCXR_0001_0.png"), image)
    # PadChest's black border is cropped before all else.
    bordered = np.pad(image.astype(np.uint16) * 257, 50)
    cv2.imwrite(str(padchest / "100_abc.png"), bordered)
    frame = drawing.landmarks * np.float32(1024 / 900)
    np.savez(tmp_path / "s.npz", names=np.array(["CHNCXR_0001_0"]), landmarks=frame[None, :94])
    np.savez(tmp_path / "p.npz", names=np.array(["100_abc.png"]), landmarks=frame[None])
    found, problems = read(
        f"shenzhen={shenzhen}",
        f"padchest={tmp_path / 'padchest'}",
        landmarks=[f"shenzhen={tmp_path / 's.npz'}", f"padchest={tmp_path / 'p.npz'}"],
    )
    assert not problems
    assert found.names == ["shenzhen/CHNCXR_0001_0", "padchest/100_abc"]
    assert found.has_heart().tolist() == [False, True]
    np.testing.assert_allclose(found.landmarks[1], drawing.landmarks / 900, atol=1e-5)
    # 16-bit values are stretched, so the pictures are alike, and not the same.
    assert np.corrcoef(found.images[0].ravel(), found.images[1].ravel())[0, 1] > 0.99
