"""A training's checkpoints on storage: the newest and the best of them, and a list that a kill tore."""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
from contextlib import suppress
from typing import Any

import pyarrow.fs as pafs
import torch

from chexmask_u import storage
from chexmask_u.anatomy import FRAME
from chexmask_u.model.variants import VARIANTS
from chexmask_u.settings import TrainSettings
from chexmask_u.training.goals import goal_of

# Where Ray Train keeps them, below the run's folder, and the file that each is.
FOLDER = "checkpoints"
STATE = "state.pt"

_EPOCH = re.compile(r"/epoch-(\d+)$")
_SNAPSHOT = "checkpoint_manager_snapshot.json"

# Squared error in px² that no network but a diverged one has.
_NOT_YET = float(FRAME**2)


def name_of(epoch: int) -> str:
    """Name of the folder of an epoch's checkpoint."""
    return f"epoch-{epoch:06d}"


def rank(settings: TrainSettings, row: dict[str, float]) -> float:
    """What the best epoch has least of: the goal's validation error.

    An epoch with the KL weight that was asked for goes before all that still had a smaller one: their posterior is
    another.
    """
    weight_reached = row["epoch"] > settings.kl_epochs or not VARIANTS[settings.variant].has_posterior
    return goal_of(settings).error(row) + (0 if weight_reached else _NOT_YET)


def found(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """Folders of the checkpoints of the run at a path, oldest first."""
    below = filesystem.get_file_info(pafs.FileSelector(storage.join(path, FOLDER), allow_not_found=True))
    return sorted((info.path for info in below if _EPOCH.search(info.path)), key=epoch_of)


def epoch_of(folder: str) -> int:
    """The epoch at whose end a checkpoint's folder was written."""
    return int(_EPOCH.findall(folder)[0])


def load(filesystem: pafs.FileSystem, folder: str) -> dict[str, Any]:
    """What `loop.Training.state` gave, from a checkpoint's folder."""
    return _state(_content(filesystem, folder))


def _content(filesystem: pafs.FileSystem, folder: str) -> bytes:
    with filesystem.open_input_stream(storage.join(folder, STATE)) as file:
        content: bytes = file.read()
    return content


def _state(content: bytes) -> dict[str, Any]:
    # Not to a GPU: weights are copied there from here, and Adam's count of its steps belongs on the host.
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def mend(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """Put aside Ray's list of checkpoints if a kill tore it; returns those that Ray then knows nothing of, in order.

    Ray writes the list in place, after the newest checkpoint itself is whole.
    """
    snapshot = storage.join(path, FOLDER, _SNAPSHOT)
    # Without a list, a kill came before the first one was written, or before one took the place of a torn one.
    if filesystem.get_file_info(snapshot).type != pafs.FileType.NotFound:
        with filesystem.open_input_stream(snapshot) as file:
            content = file.read()
        with suppress(ValueError):
            json.loads(content)
            return []
        filesystem.move(snapshot, f"{snapshot}.damaged")
    return [folder for folder in found(filesystem, path) if _is_whole(filesystem, folder)]


def _is_whole(filesystem: pafs.FileSystem, folder: str) -> bool:
    """Whether a checkpoint can be loaded: an older kill can have torn one that is not the newest any more."""
    try:
        content = _content(filesystem, folder)
    except FileNotFoundError:
        content = b""
    # What the storage says is wrong is no fault of the file's.
    try:
        _state(content)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        print(f"{folder}: a checkpoint that a kill tore; passed over", file=sys.stderr)
        return False
    return True
