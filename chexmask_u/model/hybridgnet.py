"""HybridGNet: encode an image once, decode it many times."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from chexmask_u.model import fast
from chexmask_u.model.decoder import Decoded, Decoder
from chexmask_u.model.encoder import DOWNSAMPLING, Encoder, Features
from chexmask_u.model.precision import Precision, arithmetic

Variant = Literal["skip", "noskip", "dropout"]

# Draws decoded at once: on a CPU as many as stay in cache, elsewhere 0.7 GiB (a draw's largest activation is 92 kB).
CPU_DRAWS = 50
DEVICE_DRAWS = 8192


class HybridGNet(nn.Module):
    """Variational encoder and graph decoder of HybridGNet (Gaggion et al.), with upstream's parameter names.

    Args:
        input_size: side S in pixels of the square images it takes; a multiple of 32, at least 64.
        variant: "skip" with image-to-graph skip connections, "noskip" without.

    Raises:
        ValueError: if the size or variant is not one of those.
    """

    sha256: str | None = None
    """Digest of the weight file this model was loaded from; None for a model that was never saved."""

    precision: Precision = "float32"
    """Arithmetic of the encoder where no gradient is kept; training chooses its own. The decoder is always float32."""

    def __init__(self, input_size: int = 1024, variant: Variant = "skip") -> None:
        super().__init__()
        # At a single cell conv6 has no variance to be normalised by.
        if input_size < 2 * DOWNSAMPLING or input_size % DOWNSAMPLING:
            raise ValueError(f"input_size must be a multiple of {DOWNSAMPLING} from 64 on, not {input_size}")
        if variant not in ("skip", "noskip"):
            raise ValueError(f"variant must be 'skip' or 'noskip', not {variant!r}")
        self.input_size = input_size
        self.variant: Variant = variant
        self.encoder = Encoder(input_size)
        self.decoder = Decoder(skip=variant == "skip")

    @property
    def device(self) -> torch.device:
        return self.encoder.fc_mu.weight.device

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
            mean, log_var, features = self.encoder(images)
        if self.precision == "bfloat16":
            mean, log_var, features = mean.float(), log_var.float(), Features(*(maps.float() for maps in features))
        return mean, log_var, features

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
