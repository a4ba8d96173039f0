"""Encoder inference on a CPU: what `encoder` computes, image by image, in strips of rows that stay in cache.

At 1024 x 1024 an activation of the first block takes 32 MiB. Computed whole, every operation moves it through memory,
and each result is fresh memory whose pages the system must first map, which alone is half of the plain form's time.
Strips of 4 MiB stay in cache and are allocated from what the last strip left. Statistics are gathered per strip about
the strip's own mean and put together in float64, so normalisation is one scale and shift; a shortcut's normalisation
follows from the covariance of its input and folds into the shortcut's matrix. The result is as near to
float64 as the plain form's, several times sooner (benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.model.encoder import CHANNELS, Encoder, Features, ImageNorm, ResidualBlock

# Values in a strip: 4 MiB. Twice as much leaves the cache; half as much pays for more calls.
STRIP_VALUES = 2**20

# Values, channels of neighbouring pixels, that are taken at once: the fewest that torch works on at full speed. A power
# of two, as numbers of channels are.
LANES = 64


class Moments(NamedTuple):
    """A strip's pixels: their number, mean float64 [C], and the sum of squared deviations [C] or products [C, C]."""

    pixels: int
    mean: Tensor
    scatter: Tensor


def applies(encoder: Encoder, images: Tensor) -> bool:
    """Whether `encode` can stand in for the plain form: at least one image, and float32 on a CPU."""
    tensors = (images, encoder.fc_mu.weight)
    return len(images) > 0 and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def encode(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor, Features]:
    """What `encoder(images)` returns, its feature maps channels-last; for use where no gradient is kept."""
    conv5, conv6 = zip(*(_feature_maps(encoder, image) for image in images), strict=True)
    features = Features(*(torch.stack(maps).permute(0, 3, 1, 2) for maps in (conv5, conv6)))
    return *encoder.latents(features), features


def _feature_maps(encoder: Encoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """conv5 and conv6 of one image float32 [1, S, S], as rows x columns x channels."""
    x = image.view(*image.shape[1:], 1)
    two_rows = 2 * x.shape[0] * CHANNELS[1]
    scratch = image.new_empty(2, max(STRIP_VALUES, two_rows) + two_rows)
    blocks = [getattr(encoder, f"dconv_down{level}") for level in range(1, len(CHANNELS))]
    for block in blocks[:-2]:
        x = _residual_block(block, x, True, scratch)
    conv5 = _residual_block(blocks[-2], x, False, scratch)
    return conv5, _residual_block(blocks[-1], _max_pool(conv5), False, scratch)


def _residual_block(block: ResidualBlock, x: Tensor, pooled: bool, scratch: Tensor) -> Tensor:
    """Output of a block, 2x2 max-pooled if asked, for x [H, W, C_in]."""
    _, width, in_channels = x.shape
    # nn.Sequential's parts have no types of their own.
    parts: Any = block.block
    skip: Any = block.skip
    norm1, _, conv1, norm2, _, conv2 = parts
    rows = max(2, STRIP_VALUES // (width * conv1.out_channels) // 2 * 2)
    strips = x.split(rows)
    projected = not isinstance(skip, nn.Identity)

    mean, spread = _combine([_moments(strip, scratch[1], products=projected) for strip in strips])
    scale, shift = _fold(norm1, mean, spread.diagonal() if projected else spread)
    # With one channel in, oneDNN has no fast kernel; two neighbouring columns make two channels.
    columns = 2 if in_channels == 1 else 1
    weight, bias = _weight_of_columns(conv1.weight, columns), conv1.bias.repeat(columns)
    hidden, moments = [], []
    for index in range(len(strips)):
        hidden.append(_convolve(_activate(strips, index, scale, shift, scratch[0]), weight, bias, columns))
        moments.append(_moments(hidden[-1], scratch[1], products=False))

    scale, shift = _fold(norm2, *_combine(moments))
    weight, bias = _weight_of_columns(conv2.weight, 1), conv2.bias
    if projected:
        matrix = skip[0].weight.flatten(1).double()
        variance = ((matrix @ spread) * matrix).sum(dim=1)
        shortcut_scale, shortcut_shift = _fold(skip[1], matrix @ mean, variance)
        shortcut, bias = (matrix.T * shortcut_scale).float(), bias + shortcut_shift.float()
    out = []
    for index, strip in enumerate(strips):
        y = _convolve(_activate(hidden, index, scale, shift, scratch[0]), weight, bias, 1)
        if projected:
            y.view(-1, y.shape[-1]).addmm_(strip.view(-1, in_channels), shortcut)
        else:
            y += strip
        out.append((_max_pool(y) if pooled else y).relu_())
    return torch.cat(out)


def _moments(strip: Tensor, scratch: Tensor, products: bool) -> Moments:
    """Moments of a strip's pixels about their own mean, which keeps digits where the mean is far from zero."""
    channels = strip.shape[-1]
    pixels = strip.numel() // channels
    lanes = strip.view(-1, _lanes(strip))
    mean = lanes.sum(dim=0).view(-1, channels).double().sum(dim=0) / pixels
    centre = mean.float()
    deviations = scratch[: strip.numel()].view(lanes.shape)
    torch.sub(lanes, centre.repeat(lanes.shape[1] // channels), out=deviations)
    if products:
        # Row by row: longer sums in float32 lose digits that float64 then adds to.
        by_row = deviations.view(strip.shape)
        return Moments(pixels, centre.double(), (by_row.mT @ by_row).double().sum(dim=0))
    squares = deviations.mul_(deviations).sum(dim=0)
    return Moments(pixels, centre.double(), squares.view(-1, channels).double().sum(dim=0))


def _lanes(strip: Tensor) -> int:
    """How many values of a row of a strip [R, W, C] are taken at once: a divisor of the row, whole pixels."""
    _, width, channels = strip.shape
    return max(channels, gcd(width * channels, LANES))


def _combine(parts: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    """Mean [C] and variance [C] or covariance [C, C] of all strips together (Chan, Golub and LeVeque 1979)."""
    share = torch.tensor([part.pixels for part in parts], dtype=torch.float64)
    share, total = share / share.sum(), share.sum()
    means = torch.stack([part.mean for part in parts])
    mean = share @ means
    apart = means - mean
    between = (share * apart.T) @ apart
    scatter = torch.stack([part.scatter for part in parts]).sum(dim=0) / total
    return mean, scatter + (between if scatter.ndim == 2 else between.diagonal())


def _fold(norm: ImageNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 [C], that a normalisation with these statistics is."""
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def _activate(strips: Sequence[Tensor], index: int, scale: Tensor, shift: Tensor, scratch: Tensor) -> Tensor:
    """relu(strip * scale + shift) with one more row above and below: the neighbours' rows, or zeros at the border."""
    height, width, channels = strips[index].shape
    out = scratch[: (height + 2) * width * channels].view(height + 2, width, channels)
    lanes = _lanes(strips[index])
    scale, shift = (values.float().repeat(lanes // channels) for values in (scale, shift))

    def apply(source: Tensor, target: Tensor) -> None:
        torch.addcmul(shift, source.view(-1, lanes), scale, out=target.view(-1, lanes))

    apply(strips[index], out[1:-1])
    if index > 0:
        apply(strips[index - 1][-1], out[0])
    if index < len(strips) - 1:
        apply(strips[index + 1][0], out[-1])
    out.relu_()
    if index == 0:
        out[0].zero_()
    if index == len(strips) - 1:
        out[-1].zero_()
    return out


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, columns: int) -> Tensor:
    """3x3 convolution of a strip [R + 2, W, C_in] to [R, W, C_out], with `columns` columns at a time as channels."""
    rows, width, channels = x.shape
    channels_last = x.view(1, rows, width // columns, columns * channels).permute(0, 3, 1, 2)
    y = F.conv2d(channels_last, weight, bias, padding=(0, 1))
    return y.permute(0, 2, 3, 1).reshape(rows - 2, width, -1)


def _weight_of_columns(weight: Tensor, columns: int) -> Tensor:
    """Weight of the same 3x3 convolution with `columns` neighbouring columns as channels, channels-last."""
    if columns == 1:
        return weight.contiguous(memory_format=torch.channels_last)
    out_channels, in_channels, height, taps = weight.shape
    spread = weight.new_zeros(columns, out_channels, columns, in_channels, height, taps)
    for column in range(columns):
        for tap in range(taps):
            group, source = divmod(column + tap - 1, columns)
            spread[column, :, source, :, :, group + 1] = weight[..., tap]
    joined = spread.view(columns * out_channels, columns * in_channels, height, taps)
    return joined.contiguous(memory_format=torch.channels_last)


def _max_pool(x: Tensor) -> Tensor:
    """2x2 max pooling of [H, W, C]."""
    x = torch.maximum(x[0::2], x[1::2])
    return torch.maximum(x[:, 0::2], x[:, 1::2])
