"""The variants of the network by name; to add one, write its file and its line here."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import torch

from chexmask_u.model.dropout import DropoutNet
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.network import LEAST_SIZE, BaseNetwork
from chexmask_u.model.phiseg import PHiSeg
from chexmask_u.model.unet import UNet

VARIANTS: dict[str, type[BaseNetwork]] = {
    "skip": HybridGNet,
    "noskip": HybridGNet,
    "dropout": DropoutNet,
    "unet": UNet,
    "phiseg": PHiSeg,
}


def build(input_size: int, variant: str) -> BaseNetwork:
    """A network with random weights.

    Raises:
        ValueError: if there is no such variant, or it takes no images of that size.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
    return VARIANTS[variant](input_size, variant)


def called(names: Collection[str]) -> str:
    """The variant whose weight files' keys are most like these."""
    # A damaged file of one family may share no more keys with it than with another family.
    marked = [variant for variant, kind in VARIANTS.items() if kind.mark in names]
    return min(marked or VARIANTS, key=lambda variant: len(_names(variant) ^ set(names)))


@cache
def _names(variant: str) -> frozenset[str]:
    # Whoever seeded torch finds its random numbers where they were.
    with torch.random.fork_rng(devices=[]):
        return frozenset(map(VARIANTS[variant].saved_as, build(LEAST_SIZE, variant).state_dict()))
