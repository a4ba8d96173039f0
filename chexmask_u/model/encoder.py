"""Convolutional encoder: image -> Gaussian posterior over 64 latents, and the skip connections' feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import LATENT_SIZE

CHANNELS = (1, 8, 16, 32, 64, 128, 128)

# Five 2x2 poolings separate the input from conv6.
DOWNSAMPLING = 2 ** (len(CHANNELS) - 2)


class Features(NamedTuple):
    """Feature maps of a batch: conv5 float [B, 128, S/16, S/16] and conv6 float [B, 128, S/32, S/32]."""

    conv5: Tensor
    conv6: Tensor


class ImageNorm(nn.Module):
    """Normalise each channel of each image by its own mean and variance, then scale and shift.

    Equals upstream's batch norm without running statistics at batch size 1, at which its numbers were published, and
    keeps an image's numbers independent of its batch.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class ResidualBlock(nn.Module):
    """Two pre-activated 3x3 convolutions with a shortcut; indices in ``block`` and ``skip`` follow upstream's keys."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            ImageNorm(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            ImageNorm(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), ImageNorm(out_channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.block(x) + self.skip(x))


class Encoder(nn.Module):
    """float [B, 1, S, S] in [0, 1] -> mean [B, 64], log variance [B, 64], Features.

    Args:
        input_size: S.
        posterior: whether the latents have a variance; else they are points, whose log variance is minus infinity.
    """

    def __init__(self, input_size: int, posterior: bool = True) -> None:
        super().__init__()
        for level in range(1, len(CHANNELS)):
            setattr(self, f"dconv_down{level}", ResidualBlock(CHANNELS[level - 1], CHANNELS[level]))
        flat = CHANNELS[-1] * (input_size // DOWNSAMPLING) ** 2
        self.fc_mu = nn.Linear(flat, LATENT_SIZE)
        log_variance = nn.Linear(flat, LATENT_SIZE)
        # Drawn in any case: the first weights of what is drawn next, the decoder, are the same in every variant.
        self.fc_logvar = log_variance if posterior else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Features]:
        features = self.maps(x)
        return *self.latents(features), features

    def maps(self, x: Tensor, factors: Sequence[Tensor] | None = None) -> Features:
        """Feature maps; each block's output is multiplied by its factors, float [B, channels], if there are any."""
        maps: list[Tensor] = []
        for level in range(1, len(CHANNELS)):
            x = getattr(self, f"dconv_down{level}")(F.max_pool2d(x, 2) if maps else x)
            if factors is not None:
                x = x * factors[level - 1][:, :, None, None]
            maps.append(x)
        return Features(conv5=maps[-2], conv6=maps[-1])

    def latents(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean and log variance, float [B, 64] each, of an image's feature maps."""
        flat = features.conv6.flatten(1)
        mean = self.fc_mu(flat)
        return mean, torch.full_like(mean, -math.inf) if self.fc_logvar is None else self.fc_logvar(flat)
