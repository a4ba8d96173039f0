"""HybridGNet without the variational layer and with dropout in the encoder: Monte Carlo dropout, to compare with.

It draws by encoding an image again with other channels dropped (Gal and Ghahramani, "Dropout as a Bayesian
approximation", ICML 2016), so a draw costs a whole encoding, and every draw has feature maps of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from chexmask_u.anatomy import LATENT_SIZE
from chexmask_u.model.encoder import CHANNELS, Features
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.precision import arithmetic

# Chance that a channel is dropped, of all blocks; the paper compares with dropout and does not say how much.
RATE = 0.1

# Standard normal numbers that a draw takes: one per channel of each block.
NOISE_SIZE = sum(CHANNELS[1:])

# Draws of an image that are encoded at once: at 1024 a draw's activations take 64 MiB.
DRAWS = 5


class DropoutNet(HybridGNet):
    """HybridGNet with skip connections whose latents are a point, and whose encoder drops channels.

    Args:
        input_size: as `HybridGNet` takes it.
    """

    def __init__(self, input_size: int = 1024) -> None:
        super().__init__(input_size, "skip")
        self.variant = "dropout"
        del self.encoder.fc_logvar

    def encode(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Features]:
        """Latents and feature maps, with the channels dropped that the noise says; without gradients in `precision`.

        Args:
            images: float32 [B, 1, S, S], grey in [0, 1].
            noise: standard normal float32 [B, 376]; None drops nothing.

        Returns:
            latents float32 [B, 64], their log variance (minus infinity: they are a point), and the feature maps.

        Raises:
            ValueError: if the device does not have the precision.
        """
        if torch.is_grad_enabled():
            return self._encode(images, noise)
        with arithmetic(self.precision, images.device):
            latents, log_var, features = self._encode(images, noise)
        return latents.float(), log_var.float(), Features(*(maps.float() for maps in features))

    def _encode(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Features]:
        x = images
        maps: list[Tensor] = []
        kept = None if noise is None else _kept(noise).split(CHANNELS[1:], dim=1)
        for level in range(1, len(CHANNELS)):
            x = getattr(self.encoder, f"dconv_down{level}")(F.max_pool2d(x, 2) if maps else x)
            if kept is not None:
                x = x * kept[level - 1][:, :, None, None]
            maps.append(x)
        latents = self.encoder.fc_mu(x.flatten(1))
        return latents, torch.full_like(latents, -math.inf), Features(conv5=maps[-2], conv6=maps[-1])

    def sample(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws of a batch.

        Args:
            images: float32 [B, 1, S, S].
            noise: standard normal float32 [B, N, 376].

        Returns:
            landmarks float32 [B, N, 120, 2], unit square, and latents float32 [B, N, 64].
        """
        landmarks, latents = [], []
        for image, draws in zip(images, noise, strict=True):
            for chunk in draws.split(DRAWS):
                z, _, features = self.encode(image.expand(len(chunk), -1, -1, -1), chunk)
                landmarks.append(self.decode(z.unsqueeze(1), features)[:, 0])
                latents.append(z)
        shape = noise.shape[:2]
        return torch.cat(landmarks).unflatten(0, shape), torch.cat(latents).unflatten(0, shape)


def _kept(noise: Tensor) -> Tensor:
    """Factor of each channel: 0 for the share `RATE` of the noise that is smallest, else what keeps the mean."""
    limit = torch.special.ndtri(torch.tensor(RATE, dtype=torch.float64)).item()
    return (noise > limit).to(noise.dtype) / (1 - RATE)


def build(input_size: int, variant: str) -> HybridGNet:
    """The network of a variant: "skip", "noskip" or "dropout".

    Raises:
        ValueError: if the size or variant is not one of those.
    """
    return DropoutNet(input_size) if variant == "dropout" else HybridGNet(input_size, variant)  # type: ignore[arg-type]


def noise_size(variant: str) -> int:
    """Standard normal numbers that a draw of a variant takes."""
    return NOISE_SIZE if variant == "dropout" else LATENT_SIZE
