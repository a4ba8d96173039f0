"""HybridGNet: encode an image once, decode it many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from chexmask_u.anatomy import LATENT_SIZE
from chexmask_u.model import fast
from chexmask_u.model.decoder import CHEBYSHEV_ORDER, Decoded, Decoder
from chexmask_u.model.draws import Draws
from chexmask_u.model.encoder import CHANNELS, DOWNSAMPLING, Encoder, Features
from chexmask_u.model.network import Network, TrainingDraws, reparameterised, training_arithmetic
from chexmask_u.model.precision import arithmetic

# Draws decoded at once: on a CPU as many as stay in cache, elsewhere 0.7 GiB (a draw's largest activation is 92 kB).
CPU_DRAWS = 50
DEVICE_DRAWS = 8192


class HybridGNet(Network):
    """Variational encoder and graph decoder of HybridGNet (Gaggion et al.), with upstream's parameter names.

    Args:
        input_size: side S in pixels of the square images it takes; a multiple of 32, at least 64.
        variant: "skip" with image-to-graph skip connections, "noskip" without.

    Raises:
        ValueError: if the size or variant is not one of those.
    """

    family = "HybridGNet"
    mark = "encoder.fc_mu.weight"
    noise_size = LATENT_SIZE
    has_posterior = True
    variants: tuple[str, ...] = ("skip", "noskip")

    convolutions_frozen: bool = False
    """Whether the encoder's convolutions stay as they are in training; they then run as in inference."""

    fused: Callable[[Tensor], tuple[Tensor, Tensor, Features]] | None = None
    """Stands in for the encoder on a GPU in float32, where no gradient is kept; `use_kernels` sets it."""

    def __init__(self, input_size: int = 1024, variant: str = "skip") -> None:
        super().__init__(input_size, variant)
        if variant not in self.variants:
            raise ValueError(f"variant must be {' or '.join(map(repr, self.variants))}, not {variant!r}")
        self.encoder = Encoder(input_size, self.has_posterior)
        self.decoder = Decoder(skip=variant != "noskip")

    @classmethod
    def size_of(cls, state: Mapping[str, Tensor]) -> int:
        weight = state[cls.mark]
        if weight.ndim != 2:
            raise ValueError(f"{cls.mark} is no matrix, so these are not HybridGNet weights")
        side = round((weight.shape[1] / CHANNELS[-1]) ** 0.5)
        if side < 2 or CHANNELS[-1] * side**2 != weight.shape[1]:
            raise ValueError(f"{cls.mark} {list(weight.shape)} fits no square input")
        return side * DOWNSAMPLING

    @staticmethod
    def saved_as(name: str) -> str:
        return name.removeprefix("decoder.")

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Features]:
        """Posterior of a batch; where no gradient is kept, in `precision`, and on a CPU by the network's fast form.

        Args:
            images: float32 [B, 1, S, S], grey in [0, 1].

        Returns:
            mean float32 [B, 64], log variance float32 [B, 64], and the feature maps that `decode` takes.

        Raises:
            ValueError: if the device does not have the precision.
        """
        if torch.is_grad_enabled():
            mean, log_var, features = self.encoder(images)
            return mean, log_var, features
        with arithmetic(self.precision, images.device):
            if self.precision == "float32" and fast.applies(self.encoder, images):
                return fast.encode(self.encoder, images)
            if self.precision == "float32" and self.fused is not None and images.device.type == "cuda":
                return self.fused(images)
            return _in_float32(*self.encoder(images))

    def decode_all(self, z: Tensor, features: Features) -> Decoded:
        """Landmarks and the skip blocks' positions, which training needs too."""
        decoded: Decoded = self.decoder(z, features)
        return decoded

    def decode(self, z: Tensor, features: Features) -> Tensor:
        """Landmarks float32 [B, N, 120, 2] (x then y, unit square) of latent draws float32 [B, N, 64].

        Draws are decoded a few at a time, so memory does not grow with their number.
        """
        batch, draws = z.shape[:2]
        at_once = CPU_DRAWS if z.device.type == "cpu" else DEVICE_DRAWS
        images_at_once = max(1, at_once // max(1, draws))
        landmarks = []
        with arithmetic("float32", z.device) if not torch.is_grad_enabled() else nullcontext():
            for start in range(0, batch, images_at_once):
                images = slice(start, start + images_at_once)
                shared = Features(*(maps[images] for maps in features))
                decoded = [self.decode_all(chunk, shared).landmarks for chunk in z[images].split(at_once, dim=1)]
                landmarks.append(torch.cat(decoded, dim=1))
        return torch.cat(landmarks)

    def sample(self, images: Tensor, noise: Callable[[], Tensor]) -> Draws:
        mean, log_var, features = self.encode(images)
        z = reparameterised(mean, log_var, noise())
        return Draws(self.decode(z, features), mean, torch.exp(log_var / 2))

    def centre(self, images: Tensor) -> Draws:
        mean, log_var, features = self.encode(images)
        return Draws(self.decode(mean.unsqueeze(1), features), mean, torch.exp(log_var / 2))

    def training_draws(self, images: Tensor, noise: Tensor, precision: str = "float32") -> TrainingDraws:
        if self.convolutions_frozen:
            with torch.no_grad():
                _, _, features = self.encode(images)
            mean, log_var = self.encoder.latents(features)
        else:
            with training_arithmetic(precision, images.device):
                mean, log_var, features = self.encode(images)
            mean, log_var, features = _in_float32(mean, log_var, features)
        # Before the divergence: gradients are summed in the opposite order, on which a trained network's digits hang.
        z = reparameterised(mean, log_var, noise)
        # KL(N(m, s²) || N(0, 1)) of each latent (Kingma and Welling, 2014, appendix B), summed over the latents.
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
        return TrainingDraws(self.decode_all(z, features), divergence)

    def freeze_convolutions(self) -> None:
        self.convolutions_frozen = True
        self.encoder.requires_grad_(False)
        for linear in (self.encoder.fc_mu, self.encoder.fc_logvar):
            if linear is not None:
                linear.requires_grad_(True)

    def compile_checked(self, images: Tensor, noise: Tensor) -> tuple[float, Tensor]:
        plain_mean, log_var, features = self.encode(images)
        z = reparameterised(plain_mean, log_var, noise)
        plain = self.decode(z, features)
        # For any number of images, but of this size alone: convolutions gain by knowing it.
        torch._dynamo.maybe_mark_dynamic(images, 0)
        self.encoder.compile()
        self.decoder.compile(dynamic=True)
        mean, _, _ = self.encode(images)
        difference = float((mean - plain_mean).abs().max() / plain_mean.abs().max())
        # The compiled decoder takes the plain encoder's output, so that each half answers for itself.
        return difference, (self.decode(z, features) - plain).abs().flatten()

    def use_kernels(self) -> None:
        """Take the kernels of `model.kernels` from now on, on a GPU; the encoder's weights must not change any more."""
        # Triton comes with torch's builds for GPUs alone.
        from chexmask_u.model.kernels import FusedEncoder

        self.fused = FusedEncoder(self.encoder, compiled=True)

    def config(self) -> dict[str, Any]:
        # Upstream's other fields, such as the widths of its layers, are spelled in ways that no tensor tells.
        told = {"latents": LATENT_SIZE, "K": CHEBYSHEV_ORDER, "use_skip": self.decoder.SC_1 is not None}
        return super().config() | told


def _in_float32(mean: Tensor, log_var: Tensor, features: Features) -> tuple[Tensor, Tensor, Features]:
    """What an encoder gives, [B, 64] twice and its feature maps, whatever the format that it computed in."""
    return mean.float(), log_var.float(), Features(*(maps.float() for maps in features))
