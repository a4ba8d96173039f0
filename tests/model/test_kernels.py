"""Kernels give what the plain form gives, in Triton's interpreter; `test_gpu.py` compares them on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from chexmask_u.model.encoder import Encoder, ResidualBlock

triton = pytest.importorskip("triton", reason="triton is not installed")

# Triton chooses what its functions are when it is imported, which torch may have done in this process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="is run by test_kernels_hold_in_tritons_interpreter")


def in_interpreter(marked: str) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, __file__]
    done = subprocess.run(words, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
def test_kernels_hold_in_tritons_interpreter() -> None:
    in_interpreter("not slow")


@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kernels_of_more_channels_hold_in_tritons_interpreter() -> None:
    in_interpreter("slow")


@pytest.mark.skipif(INTERPRETED, reason="compiles")
@pytest.mark.slow
@pytest.mark.parametrize("second", [False, True])
def test_kernels_compile_for_a_gpu_that_is_not_there_and_keep_their_sums_in_registers(
    second: bool, tmp_path: Path
) -> None:
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from chexmask_u.model import kernels

    written, squares = kernels.tile(16)
    constants = {"CHANNELS": 16 if second else 8, "BLOCK_CHANNELS": 8, "OUT": 16, "SECOND": second}
    constants |= {"WRITTEN": written, "SQUARES": squares}
    names = kernels.convolve_kernel.arg_names
    signature = {name: "constexpr" if name in constants else "*fp32" for name in names}
    signature |= {"height": "i32", "width": "i32"}
    source = ASTSource(kernels.convolve_kernel, signature, constants)
    found = compiled(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(found.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    # Bytes of a thread: 128 sums of 4 bytes would be 512, and products by tl.dot in float32 took 7,000 and more.
    assert int(told.partition("STACK:")[2].split()[0]) < 256


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def of_random_weights(channels_in: int, channels_out: int) -> ResidualBlock:
    block = ResidualBlock(channels_in, channels_out)
    for weights in block.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return block


# Sides that fill no tile, odd ones, a single row; 8 to 16 channels are one program's, 16 to 32 are two.
@interpreted
@pytest.mark.parametrize(
    ("channels_in", "channels_out", "height", "width"),
    [
        (1, 8, 5, 7),
        pytest.param(1, 8, 48, 50, marks=pytest.mark.slow),
        pytest.param(8, 16, 5, 7, marks=pytest.mark.slow),
        pytest.param(8, 16, 1, 9, marks=pytest.mark.slow),
        pytest.param(16, 32, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_a_block_is_that_of_the_plain_form_alone_and_in_a_batch(
    channels_in: int, channels_out: int, height: int, width: int
) -> None:
    from chexmask_u.model import kernels

    block = of_random_weights(channels_in, channels_out)
    # A mean far from zero, as images have, and borders that normalisation would make other than zero.
    x = torch.randn(2, channels_in, height, width) + 3
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    fused = kernels.Block(block)
    scale = fused.norm1.weight / torch.sqrt(variance + fused.norm1.eps)
    scales = kernels.Scales(scale, fused.norm1.bias - mean * scale)

    hidden, moments, of_shortcut = fused.first(x, scales)
    torch.testing.assert_close(hidden, block.block[:3](x), atol=1e-5, rtol=1e-5)
    for convolved, norm, measured in ((hidden, fused.norm2, moments), (block.skip[0](x), block.skip[1], of_shortcut)):
        found = kernels.fold(measured, norm)
        normal = convolved * found.scale[..., None, None] + found.shift[..., None, None]
        torch.testing.assert_close(normal, norm(convolved), atol=2e-5, rtol=1e-5)

    if min(height, width) < 2:
        return
    out, measured = fused(x, scales)
    expected = F.max_pool2d(block(x), 2)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)
    behind = kernels.fold(measured, kernels.ImageNorm(channels_out))
    variance, mean = torch.var_mean(expected.double(), dim=(2, 3), correction=0)
    torch.testing.assert_close(behind.scale.double(), 1 / torch.sqrt(variance + 1e-5), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(behind.shift.double(), -mean / torch.sqrt(variance + 1e-5), atol=1e-4, rtol=1e-4)

    alone, _ = fused(x[1:], kernels.Scales(*(part[1:] for part in scales)))
    assert torch.equal(alone[0], out[1])


@interpreted
@pytest.mark.slow
def test_an_encoder_whose_first_blocks_are_kernels_is_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from chexmask_u.model import kernels

    # The interpreter takes minutes for more channels; they are the same kernel's.
    monkeypatch.setattr(kernels, "LEVELS", 1)
    encoder = Encoder(64)
    images = torch.rand(2, 1, 64, 64)
    fused = kernels.FusedEncoder(encoder)
    torch.testing.assert_close(fused.pooled(images), F.max_pool2d(encoder.dconv_down1(images), 2), atol=1e-5, rtol=1e-5)
    assert torch.equal(fused.pooled(images[1:])[0], fused.pooled(images)[1])
