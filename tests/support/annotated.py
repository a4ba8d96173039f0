"""Annotated folders of drawings, and the settings of a small training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

import chexmask_u as cu
from chexmask_u.settings import EvaluateSettings, TrainSettings
from chexmask_u.sources.synthetic import draw
from chexmask_u.training import examples
from chexmask_u.training.examples import Examples
from chexmask_u.training.loop import Place

SIDE = 256
HEART = cu.LANDMARKS["heart"]
HERE = Place(0, 1, torch.device("cpu"))


def settings(**changes: object) -> TrainSettings:
    return TrainSettings.from_mapping({"drawings": 1, "output": "unused", "input_size": 64, **changes})


def write_folder(folder: Path, count: int = 4, side: int = SIDE, first: int = 0) -> np.ndarray:
    """Drawings as a folder of images with landmarks.npz; returns the landmarks [count, 120, 2]."""
    (folder / "images").mkdir(parents=True)
    drawings = [draw(first + index, side=side) for index in range(count)]
    for index, drawing in enumerate(drawings):
        cv2.imwrite(str(folder / "images" / f"person{first + index}.png"), drawing.image)
    landmarks = np.stack([drawing.landmarks for drawing in drawings])
    save_landmarks(folder, landmarks, first)
    return landmarks


def save_landmarks(folder: Path, landmarks: np.ndarray, first: int = 0, **more: np.ndarray) -> None:
    names = np.array([f"person{first + index}" for index in range(len(landmarks))])
    np.savez(folder / "landmarks.npz", names=names, landmarks=landmarks, **more)


def read(*folders: Path | str, **more: object) -> tuple[Examples, list[examples.Problem]]:
    given = EvaluateSettings.from_mapping({"data": [str(folder) for folder in folders], **more})
    return examples.read_examples(given, SIDE)


def save_npy(folder: Path, landmarks: np.ndarray) -> None:
    """Landmarks [N, 120, 2] as a file per image."""
    (folder / "landmarks").mkdir()
    for index, points in enumerate(landmarks):
        np.save(folder / "landmarks" / f"person{index}.npy", points)
