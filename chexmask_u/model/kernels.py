"""The encoder's first blocks as kernels in Triton, which normalise what they read and measure what they write.

A residual block is two launches of one kernel. Each reads its input, normalises it by one scale and shift a channel,
convolves it, and leaves the moments of its result, each tile's own, which `fold` joins in float64 to the next scale and
shift. The first launch also measures the shortcut's 1 x 1 convolution without writing it; the second begins with that
shortcut, takes the 2 x 2 maximum and measures it for the block behind. So the maps between two normalisations go to
memory and back, and nothing else does, which is what `bench.limits` counts as the least.

A thread takes squares of 2 x 2 outputs: of each channel it reads the 4 x 4 pixels that they see once, and multiplies
each with every weight that it meets, in float32 and without tensor cores. All sums are over an image's own pixels, in
an order that its size fixes: its numbers are the same in any batch, bit for bit.

Nothing takes these kernels by itself, since no GPU has run them yet. They are compared with the plain form in Triton's
interpreter and compiled for one (tests/model/test_kernels.py), and where there is a GPU by tests/model/test_gpu.py;
`bench --device cuda` times them there, which `HybridGNet.use_kernels` lets it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.model.encoder import Encoder, Features, ImageNorm, ResidualBlock

# Blocks that have kernels. Those of 128 channels are a quarter of the arithmetic, and what libraries do well.
LEVELS = 4

# Values that a thread sums up at a time: with what it reads they fit the 255 registers that it may have.
_SUMS = 128

# Channels out of a program at most, warps of it, threads of a warp, and outputs of a square.
_WRITTEN, _WARPS, _THREADS, _SQUARE = 16, 4, 32, 4

# Tiles whose moments are joined at a time.
_JOINED = 64

# Of the moments of a tile: mean, sum of squared deviations from it, number of pixels.
_MOMENTS = 3


class Scales(NamedTuple):
    """What a normalisation multiplies each channel of each image by, and adds: float32 [B, C] both."""

    scale: Tensor
    shift: Tensor


class Block:
    """A residual block whose channels differ in number, with the 2 x 2 maximum behind it.

    Args:
        block: float32; weights of its convolutions are copied.
    """

    def __init__(self, block: ResidualBlock) -> None:
        # nn.Sequential's parts have no types of their own.
        parts: Any = block.block
        skip: Any = block.skip
        self.norm1, _, self.conv1, self.norm2, _, self.conv2 = parts
        projection, self.shortcut_norm = skip
        # Channels out last: a program takes some of them.
        self.weight1, self.weight2, self.shortcut = (
            conv.weight.detach().permute(1, 2, 3, 0).contiguous() for conv in (self.conv1, self.conv2, projection)
        )

    def __call__(self, x: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
        """The block of x float32 [B, C, H, W], contiguous, whose `norm1` multiplies by and adds `scales`.

        Returns:
            The 2 x 2 maximum float32 [B, C', H / 2, W / 2], rounded down, and its moments, as `fold` takes them.
        """
        hidden, moments, of_shortcut = self.first(x, scales)
        return self.second(hidden, fold(moments, self.norm2), x, fold(of_shortcut, self.shortcut_norm))

    def first(self, x: Tensor, scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
        """First convolution float32 [B, C', H, W], its moments, and those of the shortcut's convolution."""
        batch, _, height, width = x.shape
        out = x.new_empty(batch, self.conv1.out_channels, height, width)
        moments, of_shortcut = (_empty_moments(out) for _ in range(2))
        self._launch(x, scales, self.weight1, self.conv1, out, moments, x, None, of_shortcut)
        return out, moments, of_shortcut

    def second(self, hidden: Tensor, scales: Scales, x: Tensor, shortcut: Scales) -> tuple[Tensor, Tensor]:
        """What the block returns, from the first convolution and the scales of both normalisations that are left."""
        batch, channels, height, width = hidden.shape
        out = x.new_empty(batch, channels, height // 2, width // 2)
        moments = _empty_moments(hidden)
        self._launch(hidden, scales, self.weight2, self.conv2, out, moments, x, shortcut, moments)
        return out, moments

    def _launch(
        self,
        x: Tensor,
        scales: Scales,
        weight: Tensor,
        conv: nn.Conv2d,
        out: Tensor,
        moments: Tensor,
        block_input: Tensor,
        shortcut: Scales | None,
        of_shortcut: Tensor,
    ) -> None:
        written, squares = tile(conv.out_channels)
        convolve_kernel[moments.shape[1], x.shape[0], conv.out_channels // written](
            x,
            *scales,
            weight,
            conv.bias,
            out,
            moments,
            block_input,
            self.shortcut,
            *(shortcut or scales),
            of_shortcut,
            *x.shape[2:],
            CHANNELS=x.shape[1],
            BLOCK_CHANNELS=block_input.shape[1],
            OUT=conv.out_channels,
            WRITTEN=written,
            SQUARES=squares,
            SECOND=shortcut is not None,
            num_warps=_WARPS,
        )


class FusedEncoder:
    """What an encoder computes, its first `LEVELS` blocks by kernels; for use where no gradient is kept.

    Args:
        encoder: on a GPU, float32; its weights must not change any more.
        compiled: whether torch compiles the blocks behind.
    """

    def __init__(self, encoder: Encoder, compiled: bool = False) -> None:
        self.encoder = encoder
        self.blocks = [Block(getattr(encoder, f"dconv_down{level}")) for level in range(1, LEVELS + 1)]
        self.behind = torch.compile(self._behind, dynamic=True) if compiled else self._behind

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Features]:
        """As `Encoder.forward`: float32 [B, 1, S, S] in [0, 1] -> mean, log variance, Features."""
        features: Features = self.behind(self.pooled(images))
        return *self.encoder.latents(features), features

    def _behind(self, x: Tensor) -> Features:
        conv5: Tensor = getattr(self.encoder, f"dconv_down{LEVELS + 1}")(x)
        conv6: Tensor = getattr(self.encoder, f"dconv_down{LEVELS + 2}")(F.max_pool2d(conv5, 2))
        return Features(conv5, conv6)

    def pooled(self, images: Tensor) -> Tensor:
        """The 2 x 2 maximum of the last block that has kernels."""
        x = images.contiguous()
        norm = self.blocks[0].norm1
        # By the image, not by the batch, whose size could choose another order of the sum.
        variance, mean = (torch.stack(of) for of in zip(*(torch.var_mean(one, correction=0) for one in x), strict=True))
        scale = norm.weight / torch.sqrt(variance + norm.eps)[:, None]
        scales = Scales(scale, norm.bias - mean[:, None] * scale)
        for block, behind in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            x, moments = block(x, scales)
            if behind is not None:
                scales = fold(moments, behind.norm1)
        return x


def fold(moments: Tensor, norm: ImageNorm) -> Scales:
    """The scales that a normalisation comes to for what has these moments, float32 [B, tiles, 3, C]."""
    batch, tiles, _, channels = moments.shape
    scale, shift = moments.new_empty(2, batch, channels)
    _fold[batch,](moments, norm.weight, norm.bias, scale, shift, tiles, norm.eps, CHANNELS=channels, JOINED=_JOINED)
    return Scales(scale, shift)


def tile(channels_out: int) -> tuple[int, int]:
    """Channels out and squares of a program."""
    written = min(_WRITTEN, channels_out)
    return written, _SUMS // (_SQUARE * written) * _THREADS * _WARPS


def _empty_moments(out: Tensor) -> Tensor:
    """Room for the moments of a convolution's result [B, C, H, W], float32 [B, tiles, 3, C]."""
    batch, channels, height, width = out.shape
    squares = triton.cdiv(height, 2) * triton.cdiv(width, 2)
    return out.new_empty(batch, triton.cdiv(squares, tile(channels)[1]), _MOMENTS, channels)


@triton.jit
def convolve_kernel(
    x: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    moments: tl.tensor,
    block_input: tl.tensor,
    shortcut: tl.tensor,
    shortcut_scale: tl.tensor,
    shortcut_shift: tl.tensor,
    shortcut_moments: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    CHANNELS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
    OUT: tl.constexpr,  # noqa: N803
    WRITTEN: tl.constexpr,  # noqa: N803
    SQUARES: tl.constexpr,  # noqa: N803
    SECOND: tl.constexpr,  # noqa: N803
) -> None:
    """A tile of squares of one image, `WRITTEN` of its channels out: program (tile, image, part of the channels).

    Its sums are [WRITTEN, SQUARES] for each place in a square: a and b in its upper row, c and d in the lower one.
    """
    tile, image, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    across = (width + 1) // 2
    square = tile * SQUARES + tl.arange(0, SQUARES)
    there = square < across * ((height + 1) // 2)
    top, left = square // across * 2, square % across * 2
    beside, below = there & (left + 1 < width), there & (top + 1 < height)
    channel = part * WRITTEN + tl.arange(0, WRITTEN)
    place = (image * tl.num_programs(0) + tile) * 3 * OUT + channel

    a = tl.zeros([WRITTEN, SQUARES], tl.float32) + tl.load(bias + channel)[:, None]
    if SECOND:
        a += tl.load(shortcut_shift + image * OUT + channel)[:, None]
    b, c, d = a, a, a
    pixels = block_input + image * BLOCK_CHANNELS * height * width
    if SECOND:
        shortcut_by = tl.load(shortcut_scale + image * OUT + channel)
        for source in range(BLOCK_CHANNELS):
            ours = pixels + source * height * width
            w = (tl.load(shortcut + source * OUT + channel) * shortcut_by)[:, None]
            a += w * _pixel(ours, top, left, height, width, there)[None, :]
            b += w * _pixel(ours, top, left + 1, height, width, there)[None, :]
            c += w * _pixel(ours, top + 1, left, height, width, there)[None, :]
            d += w * _pixel(ours, top + 1, left + 1, height, width, there)[None, :]
    for source in range(CHANNELS):
        ours = x + (image * CHANNELS + source) * height * width
        by, plus = tl.load(scale + image * CHANNELS + source), tl.load(shift + image * CHANNELS + source)
        seen = ()
        for pixel in tl.static_range(16):
            row, column = top + pixel // 4 - 1, left + pixel % 4 - 1
            seen += (_normal(ours, row, column, height, width, there, by, plus),)  # type: ignore[assignment]
        for tap in tl.static_range(9):
            w = tl.load(weight + (source * 9 + tap) * OUT + channel)[:, None]
            a += w * seen[tap // 3 * 4 + tap % 3][None, :]
            b += w * seen[tap // 3 * 4 + tap % 3 + 1][None, :]
            c += w * seen[tap // 3 * 4 + tap % 3 + 4][None, :]
            d += w * seen[tap // 3 * 4 + tap % 3 + 5][None, :]

    if SECOND:
        largest = tl.maximum(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 0.0)
        whole = (beside & below)[None, :] & (channel < OUT)[:, None]
        target = out + (image * OUT + channel)[:, None] * (height // 2) * (width // 2)
        tl.store(target + (top // 2 * (width // 2) + left // 2)[None, :], largest, mask=whole)
        _measure(moments + place, largest, largest, largest, largest, beside & below, there & False, there & False, OUT)
    else:
        target = out + (image * OUT + channel)[:, None] * height * width + (top * width + left)[None, :]
        known = (channel < OUT)[:, None]
        tl.store(target, a, mask=there[None, :] & known)
        tl.store(target + 1, b, mask=beside[None, :] & known)
        tl.store(target + width, c, mask=below[None, :] & known)
        tl.store(target + width + 1, d, mask=(beside & below)[None, :] & known)
        _measure(moments + place, a, b, c, d, there, beside, below, OUT)
        a = tl.zeros([WRITTEN, SQUARES], tl.float32)
        b, c, d = a, a, a
        for source in range(BLOCK_CHANNELS):
            ours = pixels + source * height * width
            w = tl.load(shortcut + source * OUT + channel)[:, None]
            a += w * _pixel(ours, top, left, height, width, there)[None, :]
            b += w * _pixel(ours, top, left + 1, height, width, there)[None, :]
            c += w * _pixel(ours, top + 1, left, height, width, there)[None, :]
            d += w * _pixel(ours, top + 1, left + 1, height, width, there)[None, :]
        _measure(shortcut_moments + place, a, b, c, d, there, beside, below, OUT)


@triton.jit
def _pixel(
    x: tl.tensor, row: tl.tensor, column: tl.tensor, height: tl.tensor, width: tl.tensor, there: tl.tensor
) -> tl.tensor:
    """A pixel of each square's surroundings: [SQUARES], zero outside the image."""
    inside = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return tl.load(x + row * width + column, mask=inside, other=0.0)


@triton.jit
def _normal(
    x: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    there: tl.tensor,
    by: tl.tensor,
    plus: tl.tensor,
) -> tl.tensor:
    """The same, normalised; zero outside the image, where padding is, behind the normalisation and not before it."""
    inside = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    value = tl.load(x + row * width + column, mask=inside, other=0.0)
    return tl.where(inside, tl.maximum(value * by + plus, 0.0), 0.0)


@triton.jit
def _measure(
    moments: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    there: tl.tensor,
    beside: tl.tensor,
    below: tl.tensor,
    OUT: tl.constexpr,  # noqa: N803
) -> None:
    """Store the moments of a tile: of a, of b beside it, of c below it and of d where both are."""
    both = beside & below
    number = there.to(tl.float32) + beside.to(tl.float32) + below.to(tl.float32) + both.to(tl.float32)
    count = tl.sum(number, axis=0)
    total = tl.where(there[None, :], a, 0.0) + tl.where(beside[None, :], b, 0.0)
    total += tl.where(below[None, :], c, 0.0) + tl.where(both[None, :], d, 0.0)
    # A tile of an odd side's last squares has no whole one.
    mean = tl.sum(total, axis=1) / tl.maximum(count, 1.0)
    a, b = tl.where(there[None, :], a - mean[:, None], 0.0), tl.where(beside[None, :], b - mean[:, None], 0.0)
    c, d = tl.where(below[None, :], c - mean[:, None], 0.0), tl.where(both[None, :], d - mean[:, None], 0.0)
    tl.store(moments, mean)
    tl.store(moments + OUT, tl.sum(a * a + b * b + c * c + d * d, axis=1))
    tl.store(moments + 2 * OUT, mean * 0.0 + count)


@triton.jit
def _fold(
    moments: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    tiles: tl.tensor,
    eps: tl.tensor,
    CHANNELS: tl.constexpr,  # noqa: N803
    JOINED: tl.constexpr,  # noqa: N803
) -> None:
    """Scale and shift of an image from the moments of its tiles (Chan, Golub and LeVeque 1979), in float64."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    ours = moments + image * tiles * 3 * CHANNELS + channel[None, :]
    pixels = tl.zeros([CHANNELS], tl.float64)
    total = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, tiles, JOINED):
        tile = first + tl.arange(0, JOINED)[:, None]
        inside = (tile < tiles) & (channel < CHANNELS)[None, :]
        mean = tl.load(ours + tile * 3 * CHANNELS, mask=inside, other=0.0).to(tl.float64)
        count = tl.load(ours + (tile * 3 + 2) * CHANNELS, mask=inside, other=0.0).to(tl.float64)
        pixels += tl.sum(count, axis=0)
        total += tl.sum(count * mean, axis=0)
    centre = total / pixels
    scatter = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, tiles, JOINED):
        tile = first + tl.arange(0, JOINED)[:, None]
        inside = (tile < tiles) & (channel < CHANNELS)[None, :]
        mean = tl.load(ours + tile * 3 * CHANNELS, mask=inside, other=0.0).to(tl.float64)
        within = tl.load(ours + (tile * 3 + 1) * CHANNELS, mask=inside, other=0.0).to(tl.float64)
        count = tl.load(ours + (tile * 3 + 2) * CHANNELS, mask=inside, other=0.0).to(tl.float64)
        scatter += tl.sum(within + count * (mean - centre[None, :]) * (mean - centre[None, :]), axis=0)
    by = tl.load(weight + channel).to(tl.float64) / tl.sqrt(scatter / pixels + eps)
    tl.store(scale + image * CHANNELS + channel, by.to(tl.float32))
    tl.store(shift + image * CHANNELS + channel, (tl.load(bias + channel).to(tl.float64) - centre * by).to(tl.float32))
