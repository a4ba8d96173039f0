"""Draws of a batch, and what is kept of them: their moments, with and without rare draws, made where they lie."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chexmask_u.anatomy import FRAME, LATENT_SIZE, N_LANDMARKS, RARE

# Numbers of an image's mean, std and covariance of landmarks, std and covariance without rare draws, mean and sigma of
# latents.
_SPREAD = (2 * N_LANDMARKS, N_LANDMARKS)
KEPT = (2 * N_LANDMARKS, *_SPREAD, *_SPREAD, LATENT_SIZE, LATENT_SIZE)


class Draws(NamedTuple):
    """Draws of a batch: landmarks float32 [B, N, 120, 2], x then y, unit square; and what they were drawn of.

    ``mean`` and ``sigma``, float32 [B, 64], are the latents' posterior, or where a variant has none, mean and standard
    deviation (ddof = 0) of the latents over the draws.
    """

    landmarks: Tensor
    mean: Tensor
    sigma: Tensor

    def kept(self, with_draws: bool) -> Tensor:
        """What `KEPT` counts, side by side, landmarks in pixels of the 1024 frame: float32 [B, their sum].

        The draws come behind, N * 120 * 2 more, where they are asked for.
        """
        drawn = self.landmarks * FRAME
        centre, *spread = _moments(drawn)
        _, *usual_spread = _moments(without_rare(drawn))
        results = [centre, *spread, *usual_spread, self.mean, self.sigma, *([drawn] if with_draws else [])]
        return torch.cat([one.flatten(1) for one in results], dim=1)


def _moments(drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and std [B, 120, 2] and covariance of x and y [B, 120] of draws [B, N, 120, 2]; ddof = 0."""
    std, centre = torch.std_mean(drawn, dim=1, correction=0)
    offset = drawn - centre.unsqueeze(1)
    return centre, std, (offset[..., 0] * offset[..., 1]).mean(dim=1)


def without_rare(drawn: Tensor) -> Tensor:
    """Draws [B, N, 120, 2] as offsets from their middle, none of which is longer than `RARE` of their median lengths.

    The middle is each coordinate's median; of an even number of draws the lower one.
    """
    offset = drawn - drawn.median(dim=1, keepdim=True).values
    length = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
    limit = RARE * length.median(dim=1, keepdim=True).values
    # Where most draws are one, the others count as that one.
    return offset * (limit / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
