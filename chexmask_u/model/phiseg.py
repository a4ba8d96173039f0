"""PHiSeg: masks from latents at several resolutions, the finer ones given the coarser ones.

After Baumgartner, Tezcan, Chaitanya, Hötker, Muehlematter, Schawkat, Becker, Donati and Konukoglu, "PHiSeg: Capturing
uncertainty in medical image segmentation" (MICCAI 2019), written from the paper. Five latent levels with two channels
each; level l (from 1) has the resolution S / 2^(l + 1) and stands for the masks at S / 2^(l - 1). The divergence of
level l counts 4^(l - 1) times, since it has so many times fewer latents than level 1.

Other than there: normalisation per image, where the paper's is the batch's; widths that a CPU can train (8 to 32, where
the paper begins at 32); and a sigmoid per organ, since organs overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import ORGANS
from chexmask_u.model.network import training_arithmetic
from chexmask_u.model.pixel import PixelNetwork, TrainingMasks, block, doubled

LEVELS = 5
LATENT_CHANNELS = 2

# Resolutions above the finest latents': those are a quarter of the image's.
_ABOVE = 2

# Channels at each resolution, the whole one first.
WIDTHS = (8, 16, 32, 32, 32, 32, 32)

# Least standard deviation of a latent: of a prior that is certain the divergence would be infinite.
_LEAST_SIGMA = 1e-3


class Normal(NamedTuple):
    """Mean and standard deviation of a level's latents, float [B, 2, s, s] each."""

    mean: Tensor
    sigma: Tensor


class Ladder(nn.Module):
    """Prior or posterior: the features of its input at each resolution, and of each level its latents' distribution."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            block(before, width) for before, width in zip((in_channels, *WIDTHS), WIDTHS, strict=False)
        )
        self.join = nn.ModuleList(
            block(width + (LATENT_CHANNELS if level < LEVELS - 1 else 0), width)
            for level, width in enumerate(WIDTHS[_ABOVE:])
        )
        self.latents = nn.ModuleList(nn.Conv2d(width, 2 * LATENT_CHANNELS, 1) for width in WIDTHS[_ABOVE:])

    def features(self, maps: Tensor) -> list[Tensor]:
        """Features of the levels, the finest first: float [B, c, s, s] each."""
        found = []
        for depth, layers in enumerate(self.down):
            maps = layers(F.avg_pool2d(maps, 2) if depth else maps)
            found.append(maps)
        return found[_ABOVE:]

    def at(self, level: int, features: Tensor, coarser: Tensor | None) -> Normal:
        """The distribution of a level's latents, given those of the next coarser one, float [B, 2, s / 2, s / 2]."""
        if coarser is not None:
            features = torch.cat([features, doubled(coarser)], dim=1)
        mean, spread = self.latents[level](self.join[level](features)).float().chunk(2, dim=1)
        return Normal(mean, F.softplus(spread) + _LEAST_SIGMA)


class Likelihood(nn.Module):
    """Latents of all levels -> logits of the masks, at as many resolutions, each adding detail to the coarser one's."""

    def __init__(self) -> None:
        super().__init__()
        widths = WIDTHS[_ABOVE:]
        self.start = nn.ModuleList(block(LATENT_CHANNELS, width) for width in widths)
        self.merge = nn.ModuleList(block(width + below, width) for width, below in pairwise(widths))
        # To the resolution of the masks, which is four times that of the latents.
        self.twice = nn.ModuleList(block(width, WIDTHS[1]) for width in widths)
        self.fourfold = nn.ModuleList(block(WIDTHS[1], WIDTHS[0]) for _ in widths)
        self.organs = nn.ModuleList(nn.Conv2d(WIDTHS[0], len(ORGANS), 1) for _ in widths)

    def forward(self, latents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Logits float [B, 3, S / 2^l, S / 2^l] of latents float [B, 2, s, s], both the finest first."""
        found: list[Tensor] = []
        maps: Tensor | None = None
        for level in reversed(range(LEVELS)):
            start = self.start[level](latents[level])
            maps = start if maps is None else self.merge[level](torch.cat([start, doubled(maps)], dim=1))
            detail = self.fourfold[level](doubled(self.twice[level](doubled(maps))))
            logits = self.organs[level](detail).float()
            found.insert(0, logits + doubled(found[0]) if found else logits)
        return tuple(found)


class PHiSeg(PixelNetwork):
    """A hierarchical conditional variational autoencoder of masks.

    Args:
        input_size: side S in pixels of the square images it takes; a multiple of 64.
        variant: "phiseg".
    """

    family = "PHiSeg"
    multiple = 2 ** (len(WIDTHS) - 1)
    has_posterior = True

    def __init__(self, input_size: int = 128, variant: str = "phiseg") -> None:
        super().__init__(input_size, variant)
        self.noise_size = self.noise_at(input_size)
        self.prior = Ladder(1)
        self.posterior = Ladder(1 + len(ORGANS))
        self.likelihood = Likelihood()

    @classmethod
    def noise_at(cls, input_size: int) -> int:
        return sum(LATENT_CHANNELS * side**2 for side in latent_sides(input_size))

    def draws(self, image: Tensor, noise: Tensor) -> Iterator[Tensor]:
        features = self.prior.features(image)
        for chunk in noise.split(self.draws_at_once()):
            shared = [maps.expand(len(chunk), -1, -1, -1) for maps in features]
            yield self.likelihood(self._latents(shared, chunk))[0].sigmoid()

    def centre(self, images: Tensor) -> Tensor:
        """Logits of the prior's means."""
        nothing = images.new_zeros(len(images), self.noise_size)
        logits: Tensor = self.likelihood(self._latents(self.prior.features(images), nothing))[0]
        return logits

    def training_masks(self, images: Tensor, masks: Tensor, noise: Tensor, precision: str = "float32") -> TrainingMasks:
        """A draw of the posterior, in which both nets see the same coarser latents."""
        # Around 0, which also stands for an organ that is not annotated.
        unknown = len(ORGANS) - masks.shape[1]
        seen = torch.cat([images, F.pad(masks - 0.5, (0, 0, 0, 0, 0, unknown))], dim=1)
        with training_arithmetic(precision, images.device):
            prior, posterior = self.prior.features(images), self.posterior.features(seen)
            latents, divergence = self._posterior(prior, posterior, noise)
            return TrainingMasks(self.likelihood(latents), divergence)

    def _posterior(
        self, prior: Sequence[Tensor], posterior: Sequence[Tensor], noise: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """A draw of all levels' latents, the finest first, and the weighted divergence, of both nets' features."""
        numbers = self._by_level(noise)
        latents: list[Tensor] = []
        divergence = noise.new_zeros(())
        for level in reversed(range(LEVELS)):
            coarser = latents[0] if latents else None
            q = self.posterior.at(level, posterior[level], coarser)
            p = self.prior.at(level, prior[level], coarser)
            divergence = divergence + 4**level * kl_divergence(q, p)
            latents.insert(0, q.mean + q.sigma * numbers[level])
        return latents, divergence

    def _latents(self, features: Sequence[Tensor], noise: Tensor) -> list[Tensor]:
        """A draw of the prior: latents of all levels, the finest first, of its features and noise [n, noise_size]."""
        numbers = self._by_level(noise)
        latents: list[Tensor] = []
        for level in reversed(range(LEVELS)):
            p = self.prior.at(level, features[level], latents[0] if latents else None)
            latents.insert(0, p.mean + p.sigma * numbers[level])
        return latents

    def _by_level(self, noise: Tensor) -> list[Tensor]:
        """Noise [n, noise_size] as the latents of each level, the finest first: [n, 2, s, s]."""
        sides = latent_sides(self.input_size)
        parts = noise.split([LATENT_CHANNELS * side**2 for side in sides], dim=1)
        return [part.unflatten(1, (LATENT_CHANNELS, side, side)) for part, side in zip(parts, sides, strict=True)]


def latent_sides(input_size: int) -> tuple[int, ...]:
    """Side in latents of each level's square, the finest first."""
    return tuple(input_size >> (_ABOVE + level) for level in range(LEVELS))


def kl_divergence(q: Normal, p: Normal) -> Tensor:
    """KL(q || p) in nats, summed over a level's latents, mean over images; a scalar."""
    ratio = (q.sigma / p.sigma).square()
    each = 0.5 * (ratio + ((q.mean - p.mean) / p.sigma).square() - 1 - ratio.log())
    return each.sum(dim=(1, 2, 3)).mean()
