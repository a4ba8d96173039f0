"""Arithmetic of inference: which number format the encoder's convolutions take, whatever torch's own defaults are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["float32", "tf32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def without_tf32() -> None:
    """Have this process compute float32 as such on a GPU from now on, in the backward pass and other threads too."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in `precision` inside; torch's own default takes TF32 for the convolutions of a float32 network.

    Contract of a default: no landmark's mean moves by 0.5 px, and no image's mean std changes by 2%, against the plain
    form in float32, on 200 radiographs with the demonstration weights and on the golden image with the golden ones.
    Largest deviations (float32: of the fast form; TF32: emulated; golden: with skips):

    - ``float32``, the only one that holds it: 0.0003 px and 0.001%; golden 0.011 px. An image's numbers do not depend
      on its batch, order or worker within 0.01 px.
    - ``tf32``, products of 10-bit mantissas, NVIDIA GPUs alone: 0.2 px and 0.2%, single nodes' std 7%; golden 38 px.
    - ``bfloat16``, convolutions and what lies between them with 7-bit mantissas: 4.8 px and 1.2%, single nodes' std
      25%; golden 192 px. On a CPU slower than float32.

    A kernel chosen for another batch size rounds elsewhere, so the latter two keep an image's numbers between batches
    only to about the same deviations.

    Raises:
        ValueError: if the device cannot, or there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision tf32 needs an NVIDIA GPU, not {device.type}; take float32")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        if device.type != "cuda":
            yield
            return
        # These belong to the whole process, so they are left alone where several threads come here.
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        products = torch.backends.cuda.matmul
        before = convolutions.fp32_precision, products.fp32_precision
        convolutions.fp32_precision = products.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        try:
            yield
        finally:
            convolutions.fp32_precision, products.fp32_precision = before
