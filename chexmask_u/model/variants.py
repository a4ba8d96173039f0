"""The variants of the network by name; to add one, write its file and its line here."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import torch

from chexmask_u.model.dropout import DropoutNet
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.network import LEAST_SIZE, Network

VARIANTS: dict[str, type[Network]] = {"skip": HybridGNet, "noskip": HybridGNet, "dropout": DropoutNet}


def build(input_size: int, variant: str) -> Network:
    """A network with random weights.

    Raises:
        ValueError: if there is no such variant, or it takes no images of that size.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
    return VARIANTS[variant](input_size, variant)


def called(names: Collection[str]) -> str:
    """The variant whose parameters are called most like these, by the keys of its state dict."""
    return min(VARIANTS, key=lambda variant: len(_names(variant) ^ set(names)))


@cache
def _names(variant: str) -> frozenset[str]:
    # Whoever seeded torch finds its random numbers where they were.
    with torch.random.fork_rng(devices=[]):
        return frozenset(build(LEAST_SIZE, variant).state_dict())
