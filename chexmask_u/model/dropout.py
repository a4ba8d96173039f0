"""HybridGNet without the variational layer and with dropout in the encoder: Monte Carlo dropout, to compare with.

It draws by encoding an image again with other channels dropped (Gal and Ghahramani, "Dropout as a Bayesian
approximation", ICML 2016), so a draw costs a whole encoding, and every draw has feature maps of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chexmask_u.model.draws import Draws
from chexmask_u.model.encoder import CHANNELS, Features
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.network import TrainingDraws, training_arithmetic
from chexmask_u.model.precision import arithmetic

# Chance that a channel is dropped, of all blocks; the paper compares with dropout and does not say how much.
RATE = 0.1

# Draws of an image that are encoded at once: at 1024 a draw's activations take 64 MiB.
DRAWS = 5


class DropoutNet(HybridGNet):
    """HybridGNet with skip connections whose latents are a point, and whose encoder drops channels.

    Args:
        input_size: as `HybridGNet` takes it.
        variant: "dropout".
    """

    # One per channel of each block.
    noise_size = sum(CHANNELS[1:])
    has_posterior = False
    variants = ("dropout",)

    def __init__(self, input_size: int = 1024, variant: str = "dropout") -> None:
        super().__init__(input_size, variant)

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
        features = self.encoder.maps(images, None if noise is None else kept(noise).split(CHANNELS[1:], dim=1))
        return *self.encoder.latents(features), features

    def sample(self, images: Tensor, noise: Callable[[], Tensor]) -> Draws:
        landmarks, latents = [], []
        normal = noise()
        for image, draws in zip(images, normal, strict=True):
            for chunk in draws.split(DRAWS):
                z, _, features = self.encode(image.expand(len(chunk), -1, -1, -1), chunk)
                landmarks.append(self.decode(z.unsqueeze(1), features)[:, 0])
                latents.append(z)
        shape = normal.shape[:2]
        sigma, mean = torch.std_mean(torch.cat(latents).unflatten(0, shape), dim=1, correction=0)
        return Draws(torch.cat(landmarks).unflatten(0, shape), mean, sigma)

    def training_draws(self, images: Tensor, noise: Tensor, precision: str = "float32") -> TrainingDraws:
        """One draw, M = 1: another would take an encoding of its own."""
        with training_arithmetic(precision, images.device):
            latents, _, features = self.encode(images, noise.squeeze(1))
        decoded = self.decode_all(latents.float().unsqueeze(1), Features(*(maps.float() for maps in features)))
        return TrainingDraws(decoded, latents.new_zeros((), dtype=torch.float32))


def kept(noise: Tensor) -> Tensor:
    """Factors [B, 376] of the channels: 0 for the share `RATE` of the noise [B, 376] that is smallest, else 1 / 0.9.

    That factor keeps a channel's mean.
    """
    limit = torch.special.ndtri(torch.tensor(RATE, dtype=torch.float64)).item()
    return (noise > limit).to(noise.dtype) / (1 - RATE)
