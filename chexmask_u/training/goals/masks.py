"""Masks: the cross entropy of each pixel, at every resolution that a network predicts, and its latents' divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.model.pixel import PixelNetwork, in_frame
from chexmask_u.steps.mask import organ_mask
from chexmask_u.training.goals.base import Goal
from chexmask_u.training.scores import dice


class MaskTerms(NamedTuple):
    """Batch means in nats per pixel and organ.

    ``masks`` is the cross entropy at the whole resolution, ``coarse`` the sum of those at coarser ones (0 where a
    network predicts none), ``kl`` the weighted divergence over the number of pixels and organs.
    """

    masks: Tensor
    coarse: Tensor
    kl: Tensor


class MaskObjective(nn.Module):
    """A network of masks with its loss as one module, as `DistributedDataParallel` wants it.

    Args:
        model: the network.
        precision: of its convolutions.
    """

    def __init__(self, model: PixelNetwork, precision: str = "float32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, images: Tensor, target: Tensor, noise: Tensor) -> MaskTerms:
        """Loss terms of a batch.

        Args:
            images: float32 [B, 1, S, S] in [0, 1].
            target: float32 [B, c, S, S], the share of each pixel that is the organ's; c is 3, or 2 for lungs alone: the
                loss sees only these.
            noise: standard normal float32 [B, model.noise_size].
        """
        logits, divergence = self.model.training_masks(images, target, noise, self.precision)
        organs = target.shape[1]
        each = [
            F.binary_cross_entropy_with_logits(level[:, :organs], F.avg_pool2d(target, 2**depth))
            for depth, level in enumerate(logits)
        ]
        coarse = torch.stack(each[1:]).sum() if each[1:] else target.new_zeros(())
        return MaskTerms(each[0], coarse, divergence / target[0].numel())


class MaskGoal(Goal):
    """Masks of the organs as `organ_mask` draws them in the 1024 frame, and as the shares of the input's pixels."""

    terms = MaskTerms._fields

    def target(self, landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        return shares(landmarks, self.settings.input_size)

    def objective(self, model: Any) -> nn.Module:
        return MaskObjective(model, self.settings.precision)

    def total(self, terms: Sequence[Tensor], kl_weight: float) -> Tensor:
        masks, coarse, kl = terms
        return masks + coarse + kl_weight * kl

    def judge(self, model: Any, grey: Tensor, name: str, landmarks: NDArray[np.float32]) -> dict[str, float]:
        logits = model.centre(grey)
        truth = shares(landmarks[np.isfinite(landmarks).all(axis=1)], self.settings.input_size)
        target = torch.from_numpy(truth).to(logits)
        entropy = F.binary_cross_entropy_with_logits(logits[0, : len(target)], target)
        found = in_frame(logits.sigmoid())[0].cpu().numpy() > 0.5
        overlap = {
            f"dice_{organ}": dice(mask, true)
            for organ, mask, true in zip(ORGANS, found.astype(np.uint8), frame_masks(landmarks), strict=True)
            if true is not None
        }
        return {"cross_entropy": float(entropy), **overlap}

    def summary(self, judged: Sequence[dict[str, float]]) -> dict[str, float]:
        names = list(dict.fromkeys(name for one in judged for name in one))
        return {name: float(np.mean([one[name] for one in judged if name in one])) for name in names}

    def error(self, row: dict[str, float]) -> float:
        return row["cross_entropy"]


def frame_masks(landmarks: NDArray[np.float32]) -> list[NDArray[np.uint8] | None]:
    """Masks uint8 {0, 1} [1024, 1024] of the organs of landmarks [n, 2], unit square; None where one is not there."""
    points = np.full((N_LANDMARKS, 2), np.nan)
    points[: len(landmarks)] = landmarks * FRAME
    there = [bool(np.isfinite(points[LANDMARKS[organ]]).all()) for organ in ORGANS]
    return [
        organ_mask(points, organ, FRAME, FRAME) if annotated else None
        for organ, annotated in zip(ORGANS, there, strict=True)
    ]


def shares(landmarks: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The share of each pixel that is the organ's: float32 [c, side, side] in [0, 1], of landmarks [n, 2], unit square.

    Masks are drawn in the 1024 frame: drawn at a small side, their borders would be half a pixel too far out.
    """
    masks = [mask for mask in frame_masks(landmarks) if mask is not None]
    return np.stack([cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) for mask in masks])
