"""A U-Net with channel dropout in its inner blocks: Monte Carlo dropout on pixels, to compare with.

After Ronneberger, Fischer and Brox, "U-Net: Convolutional networks for biomedical image segmentation" (MICCAI 2015),
and Gal and Ghahramani (ICML 2016) for the draws; only inner blocks drop, as Kendall, Badrinarayanan and Cipolla
("Bayesian SegNet", BMVC 2017) found best. Other than there: convolutions keep the size, normalisation per image, widths
that a CPU can train, and a sigmoid per organ, since organs overlap.
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

# Resolutions whose blocks drop nothing: with so few channels a dropped one makes all of an image unsure.
_WHOLE = 2

# Channels of the blocks that drop some, in the order in which they run, down and up again.
DROPPED = (*WIDTHS[_WHOLE:], *WIDTHS[-2 : _WHOLE - 1 : -1])


class UNet(PixelNetwork):
    """A U-Net of five resolutions; a draw drops channels of the blocks at the three coarsest, each by `dropout.RATE`.

    Args:
        input_size: side S in pixels of the square images it takes; a multiple of 32, at least 64.
        variant: "unet".
    """

    family = "U-Net"
    # One per channel of those blocks.
    noise_size = sum(DROPPED)
    has_posterior = False

    def __init__(self, input_size: int = 128, variant: str = "unet") -> None:
        super().__init__(input_size, variant)
        self.down = nn.ModuleList(block(before, width) for before, width in zip((1, *WIDTHS), WIDTHS, strict=False))
        self.up = nn.ModuleList(
            block(below + width, width) for below, width in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.organs = nn.Conv2d(WIDTHS[0], len(ORGANS), 1)

    def forward(self, images: Tensor, factors: Sequence[Tensor] | None = None) -> Tensor:
        """Logits float [B, 3, S, S]; factors [B, channels], if any, multiply what the blocks of `DROPPED` give."""
        scales = iter(() if factors is None else (one[:, :, None, None] for one in factors))
        maps = images
        passed: list[Tensor] = []
        for depth, layers in enumerate(self.down):
            maps = layers(F.max_pool2d(maps, 2) if depth else maps)
            if depth >= _WHOLE:
                maps = maps * next(scales, 1)
            passed.append(maps)
        for layers, beside in zip(self.up, passed[-2::-1], strict=True):
            # After the last of `DROPPED` there are no more.
            maps = layers(torch.cat([doubled(maps), beside], dim=1)) * next(scales, 1)
        logits: Tensor = self.organs(maps)
        return logits

    def draws(self, image: Tensor, noise: Tensor) -> Iterator[Tensor]:
        for chunk in noise.split(self.draws_at_once()):
            yield self(image.expand(len(chunk), -1, -1, -1), kept(chunk).split(DROPPED, dim=1)).sigmoid()

    def centre(self, images: Tensor) -> Tensor:
        logits: Tensor = self(images)
        return logits

    def training_masks(self, images: Tensor, masks: Tensor, noise: Tensor, precision: str = "float32") -> TrainingMasks:
        with training_arithmetic(precision, images.device):
            logits = self(images, kept(noise).split(DROPPED, dim=1))
        return TrainingMasks((logits.float(),), images.new_zeros(()))
