"""HybridGNet: encode an image once, decode it many times."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from chexmask_u.model.decoder import Decoded, Decoder
from chexmask_u.model.encoder import DOWNSAMPLING, Encoder, Features

Variant = Literal["skip", "noskip"]


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
        """Posterior of a batch.

        Args:
            images: float32 [B, 1, S, S], grey in [0, 1].

        Returns:
            mean float32 [B, 64], log variance float32 [B, 64], and the feature maps that `decode` takes.
        """
        mean, log_var, features = self.encoder(images)
        return mean, log_var, features

    def decode_all(self, z: Tensor, features: Features) -> Decoded:
        """Landmarks and the skip blocks' positions, which training needs too."""
        decoded: Decoded = self.decoder(z, features)
        return decoded

    def decode(self, z: Tensor, features: Features) -> Tensor:
        """Landmarks float32 [B, N, 120, 2] (x then y, unit square) of latent draws float32 [B, N, 64]."""
        return self.decode_all(z, features).landmarks
