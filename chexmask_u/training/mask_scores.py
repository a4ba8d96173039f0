"""How well mean masks overlap the annotated ones, and whether their entropy says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import ORGANS
from chexmask_u.calibration.worth import trust
from chexmask_u.training.scores import dice

IMAGE = "image"
"""What a relation over an image's organs together is called, beside those of each of `anatomy.ORGANS`."""


def predictive_entropy(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy in nats of each pixel's being inside or not, by its mean probability over the draws; 0 to ln 2."""
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return np.where((p > 0) & (p < 1), each, 0.0)


def mask_row(mean: NDArray[np.floating], truth: Sequence[NDArray[np.uint8] | None]) -> dict[str, float]:
    """Scores of one image, over the organs that are annotated.

    Args:
        mean: [3, H, W] in [0, 1], the mean over the draws of each organ's mask.
        truth: annotated masks {0, 1} [H, W] by `anatomy.ORGANS`; None where there is none.

    Returns:
        Per organ ``dice_<organ>``, of the pixels more likely inside than not, and ``entropy_<organ>``, the mean of
        `predictive_entropy` in nats over the annotated organ; ``dice`` and ``entropy``, their means over the organs.
    """
    row: dict[str, float] = {}
    for organ, likely, mask in zip(ORGANS, mean, truth, strict=True):
        if mask is not None:
            row[f"dice_{organ}"] = dice((likely > 0.5).astype(np.uint8), mask)
            row[f"entropy_{organ}"] = float(predictive_entropy(likely[mask > 0]).mean())
    organs = [organ for organ in ORGANS if f"dice_{organ}" in row]
    together = {name: float(np.mean([row[f"{name}_{organ}"] for organ in organs])) for name in ("dice", "entropy")}
    return row | together


def mean_row(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the images that have it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def relation(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What `worth.trust` says of the entropy against 1 - Dice, one value per image: of `IMAGE`, and of each organ.

    Args:
        rows: of `mask_row`.
    """
    found = {}
    for of in (IMAGE, *ORGANS):
        suffix = "" if of == IMAGE else f"_{of}"
        there = [row for row in rows if f"dice{suffix}" in row]
        entropy, lost = (
            np.array([[row[f"{name}{suffix}"]] for row in there]).reshape(-1, 1) for name in ("entropy", "dice")
        )
        if len(there):
            found[of] = trust(entropy, 1 - lost)
    return found
