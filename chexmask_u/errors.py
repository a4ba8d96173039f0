"""How a verb ends early: on input that cannot be used, or stopped before its end."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used; the message is one line that names the file, field or flag, and the remedy."""


class StoppedError(RuntimeError):
    """Work that stopped before its end; what is done is kept, and the same command goes on with it."""


class CheckpointError(InputError):
    """Weights that cannot be found, read or fitted to the network; the message is one line that names the remedy."""
