"""Score weights that give masks on annotated radiographs: overlap, and whether the entropy tells where it is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import ORGANS
from chexmask_u.model.pixel import PixelNetwork, predict_masks
from chexmask_u.training.examples import Examples
from chexmask_u.training.goals.masks import frame_masks
from chexmask_u.training.mask_scores import IMAGE, mask_row, mean_row, relation
from chexmask_u.training.measure import Count


def score_masks(
    model: PixelNetwork,
    examples: Examples,
    shown: Sequence[NDArray[np.uint8]],
    samples: int,
    seed: int,
    count: Count,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores over all images, and of each, of the mean masks in the 1024 frame.

    Args:
        model: the network.
        examples: in the 1024 frame.
        shown: uint8 [N, 1024, 1024], the images as they are, and with a part covered.
        samples, seed: as `predict_masks` takes them; the names of the examples fix the draws.
        count: is told of the images that are predicted.

    Returns:
        The means of what `mask_scores.mask_row` gives; ``trust``, of `mask_scores.relation`; and ``covered``, the means
        of the hidden images. And a row per image.
    """
    found: list[list[dict[str, float]]] = [[] for _ in shown]
    for index, (name, landmarks) in enumerate(zip(examples.names, examples.landmarks, strict=True)):
        truth = frame_masks(landmarks)
        for pixels, of_these in zip(shown, found, strict=True):
            # An image's mean masks take 12 MiB, so no more than one is held.
            of_these.append(mask_row(predict_masks(model, pixels[index][None], [name], samples, seed)[0], truth))
            count(1)
    rows, covered = found
    summary = {
        "images": len(examples),
        "with_heart": int(examples.has_heart().sum()),
        "from_masks": sum(name in examples.from_masks for name in examples.names),
        **mean_row(rows),
        "trust": relation(rows),
        "covered": mean_row(covered),
    }
    images = [
        {"name": name, **row, "dice_covered": under["dice"], "entropy_covered": under["entropy"]}
        for name, row, under in zip(examples.names, rows, covered, strict=True)
    ]
    return summary, images


def mask_table(summary: Mapping[str, Any]) -> str:
    """The scores as lines of text for people."""
    covered = summary["covered"]
    lines = [f"{summary['images']:,} images ({summary['with_heart']:,} with heart); mean masks in the 1024 frame"]
    for of in (*ORGANS, IMAGE):
        suffix = "" if of == IMAGE else f"_{of}"
        if f"dice{suffix}" not in summary:
            continue
        one = summary["trust"].get(of, {"r": None})
        told = (
            "too few images, or nothing varies"
            if one["r"] is None
            else f"r {one['r']:.2f} [{one['r_interval'][0]:.2f}, {one['r_interval'][1]:.2f}], rho {one['rho']:.2f}"
        )
        lines.append(
            f"  {'all organs' if of == IMAGE else of.replace('_', ' ')}: Dice {summary[f'dice{suffix}']:.3f}, entropy "
            f"{summary[f'entropy{suffix}']:.4f} nats; entropy against 1 - Dice: {told}"
        )
    lines.append(f"  right lung covered: Dice {covered['dice']:.3f}, entropy {covered['entropy']:.4f} nats")
    return "\n".join(lines)
