"""A U-Net with channel dropout in every block: Monte Carlo dropout on pixels, to compare with.

After Ronneberger, Fischer and Brox, "U-Net: Convolutional networks for biomedical image segmentation" (MICCAI 2015),
and Gal and Ghahramani (ICML 2016) for the draws. Other than there: convolutions keep the size, normalisation per image,
widths that a CPU can train, and a sigmoid per organ, since organs overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import ORGANS
from chexmask_u.model.dropout import kept
from chexmask_u.model.network import training_arithmetic
from chexmask_u.model.pixel import PixelNetwork, TrainingMasks, block, doubled

# Channels at each resolution, the whole one first; the original has 64 to 1024.
WIDTHS = (8, 16, 32, 64, 64)

# Channels of all blocks in the order in which they run, down and up again.
BLOCKS = (*WIDTHS, *WIDTHS[-2::-1])


class UNet(PixelNetwork):
    """A U-Net of five resolutions; a draw drops channels of all its blocks, by the chance `dropout.RATE`.

    Args:
        input_size: side S in pixels of the square images it takes; a multiple of 32, at least 64.
        variant: "unet".
    """

    family = "U-Net"
    # One per channel of each block.
    noise_size = sum(BLOCKS)
    has_posterior = False

    def __init__(self, input_size: int = 128, variant: str = "unet") -> None:
        super().__init__(input_size, variant)
        self.down = nn.ModuleList(block(before, width) for before, width in zip((1, *WIDTHS), WIDTHS, strict=False))
        self.up = nn.ModuleList(
            block(below + width, width) for below, width in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.organs = nn.Conv2d(WIDTHS[0], len(ORGANS), 1)

    def forward(self, images: Tensor, factors: Sequence[Tensor] | None = None) -> Tensor:
        """Logits float [B, 3, S, S]; each block's output is multiplied by its factors, float [B, channels], if any."""
        scaled = iter(factors) if factors is not None else None

        def run(layers: nn.Module, maps: Tensor) -> Tensor:
            maps = layers(maps)
            return maps if scaled is None else maps * next(scaled)[:, :, None, None]

        maps = run(self.down[0], images)
        passed = [maps]
        for layers in self.down[1:]:
            maps = run(layers, F.max_pool2d(maps, 2))
            passed.append(maps)
        for layers, beside in zip(self.up, passed[-2::-1], strict=True):
            maps = run(layers, torch.cat([doubled(maps), beside], dim=1))
        logits: Tensor = self.organs(maps)
        return logits

    def draws(self, image: Tensor, noise: Tensor) -> Iterator[Tensor]:
        for chunk in noise.split(self.draws_at_once()):
            yield self(image.expand(len(chunk), -1, -1, -1), kept(chunk).split(BLOCKS, dim=1)).sigmoid()

    def centre(self, images: Tensor) -> Tensor:
        logits: Tensor = self(images)
        return logits

    def training_masks(self, images: Tensor, masks: Tensor, noise: Tensor, precision: str = "float32") -> TrainingMasks:
        with training_arithmetic(precision, images.device):
            logits = self(images, kept(noise).split(BLOCKS, dim=1))
        return TrainingMasks((logits.float(),), images.new_zeros(()))
