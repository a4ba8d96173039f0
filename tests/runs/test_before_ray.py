"""What needs no cluster is refused before one starts, in one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from chexmask_u.manifests.folder import list_folder
from chexmask_u.settings import ManifestFolderSettings
from tests.support import apart

IMAGES = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of a few images."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "images").mkdir()
    for number in range(IMAGES):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), np.full((50, 60), number * 20, np.uint8))
    list_folder(ManifestFolderSettings(uri=str(folder / "images"), output=str(folder / "m.parquet")))
    return folder


def test_what_the_machine_or_the_disk_lacks_is_refused_without_ray(place: Path) -> None:
    generate = ["generate", "--manifest", "m.parquet", "--output", "run"]
    plan = ["plan", "--manifest", "m.parquet", "--probe", "8"]
    train = ["train", "--output", "training", "--drawings", "8"]
    commands = {
        "--device cuda: torch sees no GPU on this machine; leave the flag out": [
            [*generate, "--device", "cuda"],
            ["generate", "--device", "cuda", "--output", "demo"],
            [*train, "--device", "cuda"],
            [*plan, "--device", "cuda"],
        ],
        "--precision tf32: only NVIDIA GPUs have it": [
            [*generate, "--precision", "tf32"],
            [*plan, "--precision", "tf32"],
        ],
        "--gpus: no GPU was probed": [[*plan, "--gpus", "2"]],
        "--data nowhere: no such folder": [["train", "--output", "training", "--data", "nowhere"]],
        "--split nowhere.csv: no such file": [[*train, "--split", "nowhere.csv"]],
    }
    before = sorted(place.rglob("*"))
    outcomes = iter(apart.run([command for some in commands.values() for command in some], place))
    for words, some in commands.items():
        for command in some:
            outcome = next(outcomes)
            assert (outcome.code, outcome.with_ray) == (2, False), (command, outcome)
            (line,) = outcome.stderr.splitlines()
            assert line.startswith(f"chexmask-u: {words}"), command
    assert sorted(place.rglob("*")) == before
