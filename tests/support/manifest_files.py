"""Folders of files that look like images, and what refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chexmask_u.errors import InputError


def fill(folder: Path, *names: str) -> Path:
    """The folder, with files of those names in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not looked at")
    return folder


def refusal(action: Any, *arguments: Any) -> str:
    """The one line with which the action refuses its arguments."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
