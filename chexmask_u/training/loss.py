"""The training objective: squared errors of landmarks and skip positions, and the KL divergence."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import LATENT_SIZE
from chexmask_u.model.dropout import DropoutNet
from chexmask_u.model.encoder import Features
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.settings import TrainSettings


class Terms(NamedTuple):
    """Batch means of the loss terms: squared errors in the unit square (0 without skip blocks), and nats."""

    landmarks: Tensor
    skip1: Tensor
    skip2: Tensor
    kl: Tensor

    def total(self, kl_weight: float) -> Tensor:
        """What is minimised; the weight is that of the KL divergence's mean over the latents.

        With their sum, the paper's weight of 1e-2 presses every latent to the prior within a few epochs (measured: none
        of 64 in use, and landmarks no better than the mean shape), with their mean it leaves most of them in use.
        """
        return self.landmarks + self.skip1 + self.skip2 + kl_weight * self.kl / LATENT_SIZE


class Objective(nn.Module):
    """The network with its loss as one module, as `DistributedDataParallel` wants it."""

    def __init__(self, model: HybridGNet, precision: str = "float32") -> None:
        super().__init__()
        self.model = model
        self.precision = precision

    def forward(self, images: Tensor, target: Tensor, noise: Tensor) -> Terms:
        """Loss terms of a batch.

        Args:
            images: float32 [B, 1, S, S] in [0, 1].
            target: landmarks float32 [B, n, 2], unit square; n is 120, or 94 for lungs alone: the loss sees only these.
            noise: standard normal float32 [B, 64], or [B, 376] for the dropout variant.
        """
        device = images.device.type
        low = torch.autocast(device, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with low:
            if isinstance(self.model, DropoutNet):
                mean, log_var, features = self.model.encode(images, noise)
            else:
                mean, log_var, features = self.model.encode(images)
        mean, log_var = mean.float(), log_var.float()
        features = Features(features.conv5.float(), features.conv6.float())
        divergence = target.new_zeros(())
        z = mean
        if not isinstance(self.model, DropoutNet):
            z = mean + noise * (0.5 * log_var).exp()
            # KL(N(m, s²) || N(0, 1)) of each latent (Kingma and Welling, 2014, appendix B), summed over the latents.
            divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
        decoded = self.model.decode_all(z.unsqueeze(1), features)
        nodes = target.shape[1]
        skip1 = skip2 = target.new_zeros(())
        if decoded.pos1 is not None and decoded.pos2 is not None:
            skip1 = F.mse_loss(decoded.pos1[:, 0, : nodes // 2], coarse(target))
            skip2 = F.mse_loss(decoded.pos2[:, 0, :nodes], target)
        return Terms(F.mse_loss(decoded.landmarks[:, 0, :nodes], target), skip1, skip2, divergence)


def coarse(landmarks: Tensor) -> Tensor:
    """Landmarks [B, n, 2] on the coarse graph [B, n / 2, 2]: each node is the mean of two; organs have even sizes."""
    return 0.5 * (landmarks[:, 0::2] + landmarks[:, 1::2])


def kl_weight(settings: TrainSettings, epoch: int) -> float:
    """Weight of the KL term in an epoch, counted from 0: it grows linearly, then stays."""
    return settings.kl_first + (settings.kl_last - settings.kl_first) * min(epoch / settings.kl_epochs, 1.0)


def learning_rate(settings: TrainSettings, epoch: int) -> float:
    """Learning rate in an epoch, counted from 0.

    It falls in steps, as the paper's, or along half a cosine (Loshchilov and Hutter, 2017, without restarts).
    """
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / settings.decay_epochs))
    return settings.learning_rate * settings.decay ** (epoch // settings.decay_epochs)
