"""The limit: what each part must compute and move, over what the machine was seen to compute and move."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chexmask_u.anatomy import COARSE_RING_SIZES, FRAME, LANDMARKS, LATENT_SIZE, N_COARSE, N_LANDMARKS, RING_SIZES
from chexmask_u.model.decoder import CHEBYSHEV_ORDER, COARSE_FEATURES, FINE_FEATURES, SKIP_FEATURES
from chexmask_u.model.encoder import CHANNELS, DOWNSAMPLING
from chexmask_u.model.precision import Precision, arithmetic

FLOAT32_BYTES = 4

# Cells of a feature map under the 3 x 3 bilinear taps of one lookup, which lie one cell apart.
WINDOW_CELLS = 16

# Large enough to stream from memory, to fill every core, and to hide what it takes to start.
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes to and from memory of one pass over an image, which cannot be split up."""

    flop: float
    bytes: float


@dataclass(frozen=True)
class Machine:
    """Rates that were measured: bytes read and written by a large copy, and matrix products by precision, a second."""

    bytes_per_second: float
    flop_per_second: dict[str, float]


def limit(passes: Iterable[Work], machine: Machine, precision: str) -> float:
    """Least seconds that passes take one after the other, each as long as the longer of computing and moving.

    The roofline model (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785).
    """
    rate = machine.flop_per_second[precision]
    return sum(max(work.flop / rate, work.bytes / machine.bytes_per_second) for work in passes)


def encoder_work(input_size: int, batch: int, value_bytes: int) -> list[Work]:
    """What encoding one image of a batch must do, from the layers' sizes (`model.encoder`).

    A normalisation needs the mean and variance of a whole map before its first value can be used, so the maps between
    two normalisations go to memory and back, and nothing else does: everything else of a block is taken as fused into
    its two convolutions, and the statistics as taken while a map is written. A block of `a` input and `b` output
    channels on P pixels is then two passes:

    - read the input (a P), first convolution (2 * 9 a b P FLOP), write (b P);
    - read that (b P) and the input again (a P), second convolution and the shortcut's 1 x 1 (2 * 9 b b P + 2 a b P
      FLOP), write the output (b P / 4 where only its 2 x 2 maximum is used; both sizes of conv5, all of conv6).

    A last pass reads conv6 and the matrices of mean and log variance, and multiplies.

    Args:
        input_size: side in pixels of the images that the network takes.
        batch: images that share one reading of the weights.
        value_bytes: of an activation and a weight.
    """
    passes = []
    side = input_size
    last = len(CHANNELS) - 1
    for level, (a, b) in enumerate(pairwise(CHANNELS), start=1):
        pixels = side * side
        # The image itself comes as one byte a pixel of the 1024 frame.
        read = FRAME * FRAME if level == 1 else a * pixels * value_bytes
        written = b * pixels * {last: 1.0, last - 1: 1.25}.get(level, 0.25) * value_bytes
        weights = (9 * a * b + 9 * b * b + (a * b if a != b else 0)) * value_bytes / batch
        inner = b * pixels * value_bytes
        shortcut = 2 * a * b * pixels if a != b else 0
        passes.append(Work(2 * 9 * a * b * pixels, read + inner + weights))
        passes.append(Work(2 * 9 * b * b * pixels + shortcut, inner + read + written))
        side //= 2
    flat = CHANNELS[-1] * (input_size // DOWNSAMPLING) ** 2
    outputs = 2 * LATENT_SIZE
    passes.append(Work(2 * flat * outputs, (flat + flat * outputs / batch) * value_bytes))
    return passes


def decoder_work(input_size: int, variant: str, samples: int, value_bytes: int) -> list[Work]:
    """What decoding the draws of one image must do, as one pass: nothing between its layers needs memory.

    FLOP of a draw: 2 * 64 * 960 for the first linear layer; 2 K a b n for a Chebyshev convolution of order K from `a`
    to `b` features on n nodes, and 3 (K - 1) b n to average and add up the neighbours' terms; 2 * 2 a n for a skip
    block's positions and 2 * 16 * 128 n for its lookups (16 cells under 3 x 3 taps). Bytes of an image: both feature
    maps once, the draws' latents, and the results.
    """
    skip = variant == "skip"
    nodes, coarse = sum(RING_SIZES), sum(COARSE_RING_SIZES)
    added = SKIP_FEATURES if skip else 0

    def chebyshev(a: int, b: int, n: int) -> int:
        return 2 * CHEBYSHEV_ORDER * a * b * n + 3 * (CHEBYSHEV_ORDER - 1) * b * n

    def lookup(a: int, n: int) -> int:
        return (2 * 2 * a + 2 * WINDOW_CELLS * CHANNELS[-1]) * n if skip else 0

    flop = (
        2 * LATENT_SIZE * N_COARSE * COARSE_FEATURES
        + 2 * chebyshev(COARSE_FEATURES, COARSE_FEATURES, coarse)
        + lookup(COARSE_FEATURES, coarse)
        + chebyshev(COARSE_FEATURES + added, FINE_FEATURES, coarse)
        + chebyshev(FINE_FEATURES, FINE_FEATURES, nodes)
        + lookup(FINE_FEATURES, nodes)
        + chebyshev(FINE_FEATURES + added, FINE_FEATURES, nodes)
        + 2 * FINE_FEATURES * 2 * nodes
    )
    cells = (input_size // DOWNSAMPLING) ** 2 + (2 * input_size // DOWNSAMPLING) ** 2
    maps = CHANNELS[-1] * cells * value_bytes if skip else 0
    latents = (samples + 2) * LATENT_SIZE * FLOAT32_BYTES
    results = 2 * 2 * N_LANDMARKS * FLOAT32_BYTES
    return [Work(samples * flop, maps + latents + results)]


def read_work(file_bytes: float, pixels: float) -> list[Work]:
    """What reading one image must move: the file, its grey pixels out and in again, and the 1024 frame."""
    return [Work(0.0, file_bytes + 2 * pixels + FRAME * FRAME)]


def mask_work(landmarks: NDArray[Any]) -> list[Work]:
    """What the masks of landmarks [120, 2] must move: the pixels of the organs' bounding boxes, written and read."""
    boxes = [np.ptp(landmarks[points], axis=0) for points in LANDMARKS.values()]
    return [Work(0.0, 2.0 * sum(float(width * height) for width, height in boxes))]


def augment_work(side: int) -> list[Work]:
    """What augmenting one example must move: its grey pixels in, and values out."""
    return [Work(0.0, side * side * (1 + FLOAT32_BYTES))]


def copy_once(device: torch.device) -> tuple[Callable[[], object], float]:
    """A large copy within the device's memory, and the bytes that it reads and writes."""
    source = torch.ones(COPY_BYTES[device.type] // FLOAT32_BYTES, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * COPY_BYTES[device.type]


def multiply_once(device: torch.device, precision: Precision) -> tuple[Callable[[], object], float]:
    """A product of two large square matrices in a precision, and its FLOP (2 n^3)."""
    side = MATRIX_SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(first)

    def multiply() -> None:
        with arithmetic("float32" if precision == "bfloat16" else precision, device):
            torch.matmul(first, second, out=product)

    return multiply, 2.0 * side**3
