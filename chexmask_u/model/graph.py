"""Graph operations on rings: Chebyshev convolution, up-sampling, and the image window lookup of a skip connection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def ring_chebyshev(sizes: Sequence[int], order: int) -> Tensor:
    """Chebyshev polynomials of the scaled Laplacian of disjoint rings.

    On a ring the normalised Laplacian with lambda_max = 2, less the identity, is -(S + S^-1) / 2 with S the cyclic
    shift, and T_k of it is (-1)^k (S^k + S^-k) / 2 (cos(k t) in the Fourier basis).

    Returns:
        float32 [nodes, nodes, order]; entry [i, j, k] weighs node j in order k of node i.
    """
    total = sum(sizes)
    polynomials = torch.zeros(total, total, order)
    start = 0
    for size in sizes:
        node = torch.arange(size)
        for k in range(order):
            for shifted in ((node + k) % size, (node - k) % size):
                polynomials[start + node, start + shifted, k] += 0.5 * (-1) ** k
        start += size
    return polynomials


def ring_neighbours(sizes: Sequence[int], order: int) -> tuple[Tensor, Tensor]:
    """The same polynomials as what each node adds up.

    Returns:
        Columns int64 [nodes, 2 order - 1] of `ring_chebyshev`'s [nodes, nodes * order], and float32 [2 order - 1]:
        their values, alike for every node. On a ring as small as that a column may be there twice.
    """
    steps = torch.tensor([step for k in range(order) for step in ((k, -k) if k else (0,))])
    orders = steps.abs()
    node = torch.cat([start + (torch.arange(size)[:, None] + steps) % size for start, size in _rings(sizes)])
    return node * order + orders, (-1.0) ** orders * torch.where(orders == 0, 1.0, 0.5)


def _rings(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First node and size of each ring."""
    return [(sum(sizes[:index]), size) for index, size in enumerate(sizes)]


def ring_upsampling(sizes: Sequence[int]) -> Tensor:
    """Matrix float32 [2 n, n] that doubles each ring: even nodes copy, odd ones average their neighbours."""
    total = sum(sizes)
    matrix = torch.zeros(2 * total, total)
    start = 0
    for size in sizes:
        node = torch.arange(size)
        matrix[2 * (start + node), start + node] = 1.0
        matrix[2 * (start + node) + 1, start + node] = 0.5
        matrix[2 * (start + node) + 1, start + (node + 1) % size] = 0.5
        start += size
    return matrix


class RingChebConv(nn.Module):
    """Chebyshev graph convolution on disjoint rings, float [..., nodes, in] -> [..., nodes, out].

    Parameters are named as in upstream's state dict: one matrix ``lins.<k>.weight`` per order and an optional ``bias``.
    """

    polynomials: Tensor
    neighbours: Tensor
    shares: Tensor

    def __init__(
        self, in_features: int, out_features: int, sizes: Sequence[int], order: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(in_features, out_features, bias=False) for _ in range(order))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nodes = sum(sizes)
        # Columns run over (node, order), the layout in which one matrix product leaves all orders of a node.
        mixing = ring_chebyshev(sizes, order).reshape(nodes, nodes * order)
        self.register_buffer("polynomials", mixing, persistent=False)
        neighbours, shares = ring_neighbours(sizes, order)
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weights: list[Tensor] = list(self.lins.parameters())
        if len(weights) == 1:
            return F.linear(x, weights[0], self.bias)
        # Features first: they shrink to `out` per order, and node shifts commute with them.
        per_order = F.linear(x, torch.cat(weights)).unflatten(-1, (len(weights), -1)).flatten(-3, -2)
        # A core adds eleven rows up in a fifth of the time that the product takes, whose rows are zeros but for these.
        by_rows = x.device.type == "cpu" and not torch.is_grad_enabled()
        mixed = self._added_up(per_order) if by_rows else self.polynomials @ per_order
        return mixed if self.bias is None else mixed + self.bias

    def _added_up(self, per_order: Tensor) -> Tensor:
        """`polynomials` times float [..., nodes * order, out]."""
        rows, out = per_order.shape[-2:]
        table = per_order.reshape(-1, out)
        firsts = torch.arange(0, len(table), rows).view(-1, 1, 1)
        chosen = (firsts + self.neighbours).flatten(0, 1)
        shares = self.shares.to(table.dtype).expand(chosen.shape).contiguous()
        mixed = F.embedding_bag(chosen, table, mode="sum", per_sample_weights=shares)
        return mixed.view(*per_order.shape[:-2], -1, out)


def window_lookup(positions: Tensor, feature_map: Tensor) -> Tensor:
    """Mean of a 3x3 window of a feature map around each position, as RoIAlign with 3x3 taps gives it.

    The taps lie at p - 1, p and p + 1 of each axis, p being the position times the map's width or height. A tap below
    -1 or above the size counts as zero; one between there and the map is clamped to the border (RoIAlign's rules).
    Bilinear weights of the three taps of an axis fall on four neighbouring cells, so a window is 4x4 weighted cells.

    Args:
        positions: float [B, P, 2], x then y, unit square; may lie outside it.
        feature_map: float [B, C, H, W], shared by all positions of an image.

    Returns:
        float [B, P, C].
    """
    batch, channels, height, width = feature_map.shape
    columns, column_weights = _axis_cells(positions[..., 0], width)
    rows, row_weights = _axis_cells(positions[..., 1], height)
    image = torch.arange(batch, device=positions.device).view(batch, 1, 1, 1) * (height * width)
    cells = image + rows.unsqueeze(-1) * width + columns.unsqueeze(-2)
    weights = row_weights.unsqueeze(-1) * column_weights.unsqueeze(-2)
    # Contiguous rows: reshape alone leaves a strided view of a single image, which takes fifty times as long to read.
    table = feature_map.permute(0, 2, 3, 1).contiguous().view(batch * height * width, channels)
    looked_up = F.embedding_bag(
        cells.reshape(-1, 16), table, mode="sum", per_sample_weights=weights.reshape(-1, 16).to(table.dtype)
    )
    return looked_up.view(batch, -1, channels)


def _axis_cells(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices and weights, each [..., 4], of the cells that the three taps of one axis read."""
    centre = position * size
    # A diverged position must not overflow the integer index; beyond the border every tap is zero anyway.
    centre = centre.nan_to_num(nan=-4.0).clamp(-4.0, size + 4.0)
    low = centre.floor()
    fraction = centre - low
    offsets = torch.arange(-1, 2, device=position.device, dtype=position.dtype)
    taps = centre.unsqueeze(-1) + offsets
    inside = ((taps >= -1) & (taps <= size)).to(position.dtype) / 3
    below = inside * (1 - fraction).unsqueeze(-1)
    above = inside * fraction.unsqueeze(-1)
    weights = F.pad(below, (0, 1)) + F.pad(above, (1, 0))
    steps = torch.arange(-1, 3, device=position.device)
    cells = (low.long().unsqueeze(-1) + steps).clamp(0, size - 1)
    return cells, weights
