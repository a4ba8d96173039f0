"""The training objective: squared errors or energy scores of landmarks and skip positions, and the KL divergence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import LATENT_SIZE
from chexmask_u.model.network import Network
from chexmask_u.settings import TrainSettings

# Weight of the skip positions' terms, per objective. Lengths weigh alike near and far, and what is judged in the end is
# the spread of the landmarks.
SKIP_WEIGHT = {"mse": 1.0, "energy": 0.5}


class Terms(NamedTuple):
    """Batch means: squared errors or energy scores in the unit square (0 without skip blocks), and nats."""

    landmarks: Tensor
    skip1: Tensor
    skip2: Tensor
    kl: Tensor

    def total(self, kl_weight: float, skip_weight: float = 1.0) -> Tensor:
        """What is minimised; `kl_weight` is that of the KL divergence's mean over the latents.

        With their sum, the paper's weight of 1e-2 presses every latent to the prior within a few epochs (measured: none
        of 64 in use, and landmarks no better than the mean shape), with their mean it leaves most of them in use.
        """
        landmarks_and_skips = self.landmarks + skip_weight * self.skip1 + skip_weight * self.skip2
        return landmarks_and_skips + kl_weight * self.kl / LATENT_SIZE


class Objective(nn.Module):
    """The network with its loss as one module, as `DistributedDataParallel` wants it.

    Args:
        model: the network.
        precision: of the encoder.
        objective: "mse" for squared errors, "energy" for `energy_score`.
    """

    def __init__(self, model: Network, precision: str = "float32", objective: str = "mse") -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.distance = energy_score if objective == "energy" else squared_error

    def forward(self, images: Tensor, target: Tensor, noise: Tensor) -> Terms:
        """Loss terms of a batch.

        Args:
            images: float32 [B, 1, S, S] in [0, 1].
            target: landmarks float32 [B, n, 2], unit square; n is 120, or 94 for lungs alone: the loss sees only these.
            noise: standard normal float32 [B, M * model.noise_size], the numbers of M draws.
        """
        noise = noise.unflatten(1, (-1, self.model.noise_size))
        decoded, divergence = self.model.training_draws(images, noise, self.precision)
        nodes = target.shape[1]
        skip1 = skip2 = target.new_zeros(())
        if decoded.pos1 is not None and decoded.pos2 is not None:
            skip1 = self.distance(decoded.pos1[:, :, : nodes // 2], coarse(target))
            skip2 = self.distance(decoded.pos2[:, :, :nodes], target)
        return Terms(self.distance(decoded.landmarks[:, :, :nodes], target), skip1, skip2, divergence)


def squared_error(drawn: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of a coordinate, of the first draws of [B, M, n, 2], from a target [B, n, 2]."""
    return F.mse_loss(drawn[:, 0], target)


def energy_score(drawn: Tensor, target: Tensor) -> Tensor:
    """Energy score of a node, mean over nodes and images: E|X - y| - E|X - X'| / 2, in the unit of the coordinates.

    It is strictly proper (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", Journal of
    the American Statistical Association 102 (2007), section 4.2): its expectation is least if the draws X of a node are
    distributed as its annotation y is, so both their centre and their spread are taught. The second expectation is the
    mean over the pairs of different draws, which is unbiased for any number of them.

    Norms are those of a node's two coordinates, so each node answers for its own spread. One norm over all 240
    coordinates would mostly see their sum, the image's spread, and one per coordinate not the direction.

    Args:
        drawn: float [B, M, n, 2], M at least 2.
        target: float [B, n, 2].
    """
    first, second = torch.triu_indices(drawn.shape[1], drawn.shape[1], offset=1, device=drawn.device)
    error = torch.linalg.vector_norm(drawn - target.unsqueeze(1), dim=-1).mean()
    return error - 0.5 * torch.linalg.vector_norm(drawn[:, first] - drawn[:, second], dim=-1).mean()


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
