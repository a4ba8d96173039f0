"""Training: augmenting a radiograph on one core against the bare library calls, and a GPU's step, compiled or not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch

from chexmask_u.anatomy import FRAME, LATENT_SIZE, N_LANDMARKS
from chexmask_u.bench.predict import in_turn
from chexmask_u.bench.timing import Row, as_text, compare, one_thread
from chexmask_u.model.network import Network
from chexmask_u.model.precision import arithmetic
from chexmask_u.model.variants import build
from chexmask_u.settings import TrainSettings
from chexmask_u.sources.synthetic import draw
from chexmask_u.training.augment import augment
from chexmask_u.training.loss import Objective

# Examples whose mean is timed: what is done to one is drawn, too.
EXAMPLES = 16

# As the demonstration weights were trained, and all of it done to every example.
_AS_THE_DEMO = TrainSettings(drawings=1, output="unused", rotation=8.0, shift=0.05, contrast=0.5, degrade=0.3)
_CHOICES = {"as the demo's": _AS_THE_DEMO, "all of it": replace(_AS_THE_DEMO, degrade=1.0)}


def measure(repeats: int = 15, sides: tuple[int, ...] = (FRAME // 2, FRAME)) -> list[Row]:
    """A row per side and choice of settings, seconds of an example: moving it and looking its greys up are bare."""
    with one_thread():
        return [_measure(side, words, repeats) for side in sides for words in _CHOICES]


def _measure(side: int, words: str, repeats: int) -> Row:
    drawing = draw(0, side=side)
    landmarks = drawing.landmarks / np.float32(side)
    # As a batch has it: memory that is there.
    out = np.zeros((side, side), np.float32)
    still, greys = np.eye(2, 3), np.linspace(0, 1, 256, dtype=np.float32)

    def ours() -> None:
        for seed in range(EXAMPLES):
            augment(np.random.default_rng(seed), drawing.image, landmarks, _CHOICES[words], out)

    def bare() -> None:
        for _ in range(EXAMPLES):
            cv2.LUT(cv2.warpAffine(drawing.image, still, (side, side)), greys, dst=out)

    row = compare(f"augment, {side} x {side}, {words}", ours, bare, repeats=repeats, clock=time.thread_time)
    return row | {name: row[name] / EXAMPLES for name in ("seconds", "reference_seconds")} | {"side": side}


def steps(device: torch.device, side: int, batch: int, repeats: int) -> list[Row]:
    """Rows of a training step per precision, plain and compiled, seconds of an example; a plain step is bare."""
    rows: list[Row] = []
    for precision in ("float32", "bfloat16"):
        name = f"step, {side} x {side}, batch {batch}, {precision}"
        calls = {name: _step(device, side, batch, precision)}
        calls[f"{name}, compiled"] = _step(device, side, batch, precision, compiled=True)
        with arithmetic("float32", device):
            seconds = in_turn(calls, device, repeats)
        rows += [
            {"name": called, "seconds": own / batch, "reference_seconds": seconds[name] / batch}
            | {"ratio": own / seconds[name], "repeats": repeats, "batch": batch, "precision": precision}
            for called, own in seconds.items()
        ]
    return rows


def _step(device: torch.device, side: int, batch: int, precision: str, compiled: bool = False) -> Callable[[], object]:
    """One step of `training.loop` on examples that stay the same: forwards, backwards and Adam's."""
    torch.manual_seed(0)
    model = build(side, "skip").to(device)
    assert isinstance(model, Network)
    plain = Objective(model, precision)
    objective = torch.compile(plain) if compiled else plain
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    images = torch.rand(batch, 1, side, side, device=device)
    target = torch.rand(batch, N_LANDMARKS, 2, device=device)
    noise = torch.randn(batch, LATENT_SIZE, device=device)

    def step() -> None:
        optimiser.zero_grad()
        objective(images, target, noise).total(1e-4).backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    print(as_text(measure()))
