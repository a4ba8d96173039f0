"""How a verb ends early: on input that cannot be used, or stopped before its end."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used; the message is one line that names the file, field or flag, and the remedy."""


class StoppedError(RuntimeError):
    """Work that stopped before its end; what is done is kept, and the same command goes on with it."""


class CheckpointError(InputError):
    """Weights that cannot be found, read or fitted to the network; the message is one line that names the remedy."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: "; did you mean 'chexpert'?", or nothing where no name is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""
