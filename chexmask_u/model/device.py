"""The device that this process computes on."""

from __future__ import annotations

import torch

from chexmask_u.errors import InputError


def choose(device: str) -> str:
    """The device that --device means on this machine: "cpu", or "cuda" for a GPU.

    Args:
        device: "auto" for a GPU where torch sees one, "cpu" or "cuda".

    Raises:
        InputError: if "cuda" is asked for, and torch sees no GPU.
    """
    seen = torch.cuda.is_available()
    if device.startswith("cuda") and not seen:
        raise InputError(f"--device {device}: torch sees no GPU on this machine; leave the flag out to use the CPU")
    if device == "auto":
        return "cuda" if seen else "cpu"
    return device
