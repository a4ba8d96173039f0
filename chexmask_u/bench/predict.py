"""Measure the network: the published algorithm, this predictor over batches, precisions and draws, and its parts."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from chexmask_u.anatomy import LATENT_SIZE
from chexmask_u.bench.apart import Apart
from chexmask_u.bench.limits import (
    Machine,
    Work,
    copy_once,
    decoder_work,
    encoder_work,
    limit,
    multiply_once,
)
from chexmask_u.bench.reference import PublishedCode
from chexmask_u.bench.timing import Row
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.encoder import CHANNELS, DOWNSAMPLING
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.network import Network, reparameterised
from chexmask_u.model.precision import PRECISIONS, Precision
from chexmask_u.model.predict import latent_noise, predict
from chexmask_u.steps.predict import Predictor
from chexmask_u.weight_files import load_model

# What all else is compared with: the published algorithm, and its two halves.
REFERENCE = "published algorithm"
REFERENCE_ENCODER = "published algorithm, encoder alone"
REFERENCE_DECODER = "published algorithm, decoder alone"
REFERENCES = (REFERENCE, REFERENCE_ENCODER, REFERENCE_DECODER)

VALUE_BYTES: dict[Precision, int] = {"float32": 4, "tf32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Timed:
    """Something to time.

    Attributes:
        name: unique among what is timed together.
        reference: name of what it is compared with.
        call: does it once.
        images: that one call does.
        passes: what it must compute and move for one image.
        precision: whose rate bounds it.
        facts: what else the result says of it.
    """

    name: str
    reference: str
    call: Callable[[], object]
    images: int
    passes: Sequence[Work]
    precision: Precision
    facts: dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Batches, draws and precisions to time; the last batch is the one that the others are timed at."""

    batches: tuple[int, ...]
    draws: tuple[int, ...]
    precisions: tuple[Precision, ...]


def stretched(input_size: int, path: Path) -> None:
    """Save the demonstration weights resized to another input, for timing: landmarks lie on organs, but not well.

    Only the linear layers depend on the input's size; theirs are resized as images, so that their sums stay the same.
    Random weights would look up windows all in one corner, which no trained network does.
    """
    demo = load_model("demo")
    resized = HybridGNet(input_size=input_size, variant=demo.variant)
    side = input_size // DOWNSAMPLING
    state = demo.state_dict()
    for name in ("encoder.fc_mu.weight", "encoder.fc_logvar.weight"):
        matrix = state[name].view(LATENT_SIZE, CHANNELS[-1], demo.input_size // DOWNSAMPLING, -1)
        factor = (demo.input_size / input_size) ** 2
        state[name] = (F.interpolate(matrix, (side, side), mode="area") * factor).flatten(1)
    resized.load_state_dict(state)
    save_model(resized, path)


def precisions(device: str) -> tuple[Precision, ...]:
    """Those that a device has, the default one first."""
    return tuple(name for name in PRECISIONS if name != "tf32" or device == "cuda")


def cases(
    weights: str, device: str, published: Apart, images: NDArray[np.uint8], samples: int, sizes: Sizes
) -> list[Timed]:
    """What to time, the published algorithm first.

    Args:
        weights: as `load_model` takes them.
        device: "cpu" or "cuda".
        published: the published algorithm with the same weights, device and draws.
        images: uint8 [n, 1024, 1024]; repeated where a batch is larger.
        samples: draws N where they are not what is varied.
        sizes: what is varied.
    """
    steps = {
        precision: Predictor(weights, samples=samples, device=device, precision=precision)
        for precision in sizes.precisions
    }
    model = steps[sizes.precisions[0]].model
    batch = sizes.batches[-1]
    found = _references(published, model, samples)
    found += [_whole(steps["float32"], images, size, samples) for size in sizes.batches]
    found += [_whole(steps[precision], images, batch, samples) for precision in sizes.precisions[1:]]
    found += [_whole(steps["float32"], images, batch, draws) for draws in sizes.draws if draws != samples]
    found += [_encoder(_halved(steps[precision].model), images, batch) for precision in sizes.precisions]
    if device == "cuda":
        found += _with_kernels(weights, images, batch)
    found.append(_decoder(_halved(model), images, batch, samples))
    return found


def measure(
    timed: Sequence[Timed], device: str, repeats: int, code: PublishedCode | None = None
) -> tuple[list[Row], Machine]:
    """Time cases and the machine's own rates in turn, round by round, after a round that does not count.

    Args:
        timed: the cases.
        device: "cpu" or "cuda".
        repeats: rounds that count.
        code: what the published code itself took on this device, with which cases are compared where it was faster
            than the published algorithm as it is written here.

    Returns:
        A row per case: median seconds an image, those of its reference and of the limit, and the ratio of the first
        two, below 1 where the case is faster; and the machine's rates.
    """
    torch_device = torch.device(device)
    used = sorted({case.precision for case in timed})
    copy, copied = copy_once(torch_device)
    products = {precision: multiply_once(torch_device, precision) for precision in used}
    calls = {case.name: case.call for case in timed} | {"copy": copy}
    calls |= {f"product, {precision}": product for precision, (product, _) in products.items()}
    seconds = in_turn(calls, torch_device, repeats)
    machine = Machine(
        bytes_per_second=copied / seconds["copy"],
        flop_per_second={name: flop / seconds[f"product, {name}"] for name, (_, flop) in products.items()},
    )
    per_image = {case.name: seconds[case.name] / case.images for case in timed}
    known = {} if code is None else dict(zip(REFERENCES, (code.whole, code.encode, code.decode), strict=True))
    rows = []
    for case in timed:
        own = per_image[case.name]
        first = min(per_image[case.reference], known.get(case.reference, math.inf))
        least = limit(case.passes, machine, case.precision)
        rows.append(
            {"name": case.name, "seconds": own, "reference_seconds": first, "ratio": own / first, "repeats": repeats}
            | {"limit_seconds": least, "times_limit": own / least}
            | case.facts
        )
    return rows, machine


def in_turn(calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each call, over rounds in which every one has its turn; a GPU is waited for."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def work(model: Network, batch: int, samples: int) -> list[Work]:
    """What predicting one image of a batch must compute and move."""
    value_bytes = VALUE_BYTES[model.precision]
    # The decoder is float32 whatever the encoder is.
    decoding = decoder_work(model.input_size, model.variant, samples, VALUE_BYTES["float32"])
    return [*encoder_work(model.input_size, batch, value_bytes), *decoding]


def _references(published: Apart, model: Network, samples: int) -> list[Timed]:
    """The published algorithm on one image, whole and by halves."""
    encoding = encoder_work(model.input_size, 1, VALUE_BYTES["float32"])
    decoding = decoder_work(model.input_size, model.variant, samples, VALUE_BYTES["float32"])
    facts = {"batch": 1, "samples": samples, "precision": "float32"}
    return [
        Timed(REFERENCE, REFERENCE, published.predict, 1, [*encoding, *decoding], "float32", facts),
        Timed(REFERENCE_ENCODER, REFERENCE_ENCODER, published.encode, 1, encoding, "float32", facts),
        Timed(REFERENCE_DECODER, REFERENCE_DECODER, published.decode, 1, decoding, "float32", facts),
    ]


def _whole(step: Predictor, images: NDArray[np.uint8], batch: int, samples: int) -> Timed:
    model = step.model
    stacked = _repeat(images, batch)
    ids = [str(row) for row in range(batch)]
    return Timed(
        f"predict, batch {batch}, N = {samples}, {model.precision}",
        REFERENCE,
        lambda: predict(model, stacked, ids, samples),
        images=batch,
        passes=work(model, batch, samples),
        precision=model.precision,
        facts={"batch": batch, "samples": samples, "precision": model.precision, "device": step.device_name},
    )


def _halved(model: Network) -> HybridGNet:
    """The network, which has an encoder and a decoder to time apart, as all have that the published algorithm has."""
    assert isinstance(model, HybridGNet)
    return model


def _encoder(model: HybridGNet, images: NDArray[np.uint8], batch: int) -> Timed:
    grey = _grey(model, _repeat(images, batch))

    def encode() -> None:
        with torch.inference_mode():
            model.encode(grey)

    return Timed(
        f"encoder alone, batch {batch}, {model.precision}",
        REFERENCE_ENCODER,
        encode,
        images=batch,
        passes=encoder_work(model.input_size, batch, VALUE_BYTES[model.precision]),
        precision=model.precision,
        facts={"batch": batch, "precision": model.precision},
    )


def _with_kernels(weights: str, images: NDArray[np.uint8], batch: int) -> list[Timed]:
    """The encoder with kernels of our own, and how far they move its latents; nothing where they do not run."""
    model = _halved(load_model(weights, device="cuda"))
    timed = _encoder(model, images, batch)
    try:
        with torch.inference_mode():
            grey = _grey(model, _repeat(images, batch))
            plain, _, _ = model.encode(grey)
            model.use_kernels()
            moved = float((model.encode(grey)[0] - plain).abs().max() / plain.abs().max())
    # Whatever a compiler raises; all else is to be measured still.
    except Exception as error:
        print(f"bench: no kernels of our own ({type(error).__name__}: {error})", file=sys.stderr)
        return []
    return [replace(timed, name=f"{timed.name}, own kernels", facts=timed.facts | {"latents_moved_share": moved})]


def _decoder(model: HybridGNet, images: NDArray[np.uint8], batch: int, samples: int) -> Timed:
    with torch.inference_mode():
        mean, log_var, features = model.encode(_grey(model, _repeat(images, batch)))
        noise = torch.from_numpy(np.stack([latent_noise(str(row), samples, 0) for row in range(batch)]))
        z = reparameterised(mean, log_var, noise.to(model.device))

    def decode() -> None:
        with torch.inference_mode():
            model.decode(z, features)

    return Timed(
        f"decoder alone, batch {batch}, N = {samples}",
        REFERENCE_DECODER,
        decode,
        images=batch,
        passes=decoder_work(model.input_size, model.variant, samples, VALUE_BYTES["float32"]),
        precision="float32",
        facts={"batch": batch, "samples": samples, "precision": "float32"},
    )


def _grey(model: Network, images: NDArray[np.uint8]) -> torch.Tensor:
    """float32 [B, 1, S, S] in [0, 1] on the model's device; inference tensors, as `predict` makes them."""
    with torch.inference_mode():
        return model.grey(torch.from_numpy(images).to(model.device))


def _repeat(images: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images[np.arange(count) % len(images)])
