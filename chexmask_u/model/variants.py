"""The variants of the network by name; to add one, write its file and its line here."""

from __future__ import annotations

from collections.abc import Collection

import torch

from chexmask_u.model.dropout import DropoutNet
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.network import Network

VARIANTS: dict[str, type[Network]] = {"skip": HybridGNet, "noskip": HybridGNet, "dropout": DropoutNet}


def build(input_size: int, variant: str) -> Network:
    """A network with random weights.

    Raises:
        ValueError: if there is no such variant, or it takes no images of that size.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
    return VARIANTS[variant](input_size, variant)


def called(names: Collection[str], input_size: int) -> str:
    """The variant whose parameters are called most like these, by the keys of its state dict."""

    def apart(variant: str) -> int:
        with torch.device("meta"):
            return len(build(input_size, variant).state_dict().keys() ^ set(names))

    return min(VARIANTS, key=apart)
