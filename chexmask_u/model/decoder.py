"""Graph decoder: latent draws -> landmarks, with or without image-to-graph skip connections (IGSC)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import COARSE_RING_SIZES, LATENT_SIZE, N_COARSE, RING_SIZES
from chexmask_u.model.encoder import CHANNELS, Features
from chexmask_u.model.graph import RingChebConv, ring_upsampling, window_lookup

CHEBYSHEV_ORDER = 6
COARSE_FEATURES = 16
FINE_FEATURES = 32

# What a skip connection adds to a node: the looked-up image features and the position they were looked up at.
SKIP_FEATURES = CHANNELS[-1] + 2


class Decoded(NamedTuple):
    """Landmarks float [B, N, 120, 2] and, with IGSC, the positions both skip blocks predict, all in the unit square.

    ``pos1`` is float [B, N, 60, 2] on the coarse graph and ``pos2`` float [B, N, 120, 2]; None without IGSC.
    """

    landmarks: Tensor
    pos1: Tensor | None
    pos2: Tensor | None


def node_norm(x: Tensor) -> Tensor:
    """Normalise each node over its features, without parameters (upstream's instance norm on [B, nodes, features])."""
    return F.layer_norm(x, x.shape[-1:])


class SkipConnection(nn.Module):
    """Predict a position per node, look the image features up there and append both to the node."""

    def __init__(self, features: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.graphConv_pre = RingChebConv(features, 2, sizes, order=1, bias=False)

    def forward(self, x: Tensor, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        position = self.graphConv_pre(x)
        # Upstream's RoIAlign passes no gradient to its boxes: positions learn from their own loss term alone.
        window = window_lookup(position.detach().flatten(1, 2), feature_map)
        window = window.view(*position.shape[:3], -1).to(x.dtype)
        return torch.cat([x, window, position], dim=-1), position


class Decoder(nn.Module):
    """Latents float [B, N, 64] -> Decoded. Draws of one image share its feature maps."""

    upsampling: Tensor

    def __init__(self, skip: bool) -> None:
        super().__init__()

        def conv(in_features: int, out_features: int, sizes: tuple[int, ...]) -> RingChebConv:
            return RingChebConv(in_features, out_features, sizes, CHEBYSHEV_ORDER)

        added = SKIP_FEATURES if skip else 0
        self.dec_lin = nn.Linear(LATENT_SIZE, N_COARSE * COARSE_FEATURES)
        self.graphConv_up6 = conv(COARSE_FEATURES, COARSE_FEATURES, COARSE_RING_SIZES)
        self.graphConv_up5 = conv(COARSE_FEATURES, COARSE_FEATURES, COARSE_RING_SIZES)
        self.SC_1 = SkipConnection(COARSE_FEATURES, COARSE_RING_SIZES) if skip else None
        self.graphConv_up4 = conv(COARSE_FEATURES + added, FINE_FEATURES, COARSE_RING_SIZES)
        self.graphConv_up3 = conv(FINE_FEATURES, FINE_FEATURES, RING_SIZES)
        self.SC_2 = SkipConnection(FINE_FEATURES, RING_SIZES) if skip else None
        self.graphConv_up2 = conv(FINE_FEATURES + added, FINE_FEATURES, RING_SIZES)
        self.graphConv_up1 = RingChebConv(FINE_FEATURES, 2, RING_SIZES, order=1, bias=False)
        self.register_buffer("upsampling", ring_upsampling(COARSE_RING_SIZES), persistent=False)

    def forward(self, z: Tensor, features: Features) -> Decoded:
        pos1 = pos2 = None
        x = F.relu(self.dec_lin(z)).unflatten(-1, (N_COARSE, COARSE_FEATURES))
        x = F.relu(node_norm(self.graphConv_up6(x)))
        x = F.relu(node_norm(self.graphConv_up5(x)))
        if self.SC_1 is not None:
            x, pos1 = self.SC_1(x, features.conv6)
        x = F.relu(node_norm(self.graphConv_up4(x)))
        x = self.upsampling @ x
        x = F.relu(node_norm(self.graphConv_up3(x)))
        if self.SC_2 is not None:
            x, pos2 = self.SC_2(x, features.conv5)
        x = F.relu(node_norm(self.graphConv_up2(x)))
        return Decoded(self.graphConv_up1(x), pos1, pos2)
