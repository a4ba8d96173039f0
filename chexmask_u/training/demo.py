"""Train the bundled demonstration weights on drawings and, where given, on an annotated folder.

Run with ``python -m chexmask_u.training.demo --output chexmask_u/weights/demo.safetensors [--annotated FOLDER]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.encoder import Features
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.sources.synthetic import draw

SIDE = 256
HOLD_OUT_EVERY = 10
VALIDATION_DRAWINGS = 64

# Squared errors in the unit square are about 1e-4; scaled, gradients stay well above Adam's epsilon.
LOSS_SCALE = 1000.0
# One active latent then costs the landmarks about 1 px of noise, and a clear image is given a std of a few px.
KL_WEIGHT = 1e-5
KL_START = 1e-7
KL_RAMP = 0.3
PEAK_RATE = 1.5e-3
LAST_RATE = 1e-5
WARM_UP = 0.03


@dataclass(frozen=True)
class Settings:
    """Where to write, what to train on, and the budget; `main` describes each."""

    output: Path
    state: Path
    annotated: Path | None
    steps: int
    minutes: float
    drawings: int
    batch: int
    every: int
    seed: int


@dataclass(frozen=True)
class Examples:
    """``images`` uint8 [N, SIDE, SIDE]; ``landmarks`` float32 [N, 120, 2], x then y, unit square."""

    images: NDArray[np.uint8]
    landmarks: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)


def draw_examples(count: int, seed: int) -> Examples:
    """The first `count` people of the population `seed`."""
    drawings = [draw(index, seed, SIDE) for index in range(count)]
    return Examples(
        np.stack([drawing.image for drawing in drawings]),
        np.stack([drawing.landmarks for drawing in drawings]) / np.float32(SIDE),
    )


def read_annotated(folder: Path) -> tuple[Examples, Examples]:
    """Training and held-out examples of a folder with ``images/<name>.jpg`` and ``landmarks.npz``.

    The archive holds ``names`` [N] and ``landmarks`` [N, 120, 2] in pixels of the 1024 frame. Every tenth sorted name
    is held out.
    """
    with np.load(folder / "landmarks.npz") as archive:
        names, landmarks = archive["names"], archive["landmarks"].astype(np.float32) / FRAME
    order = np.argsort(names)
    images = []
    for name in names[order]:
        image = cv2.imread(str(folder / "images" / f"{name}.jpg"), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise FileNotFoundError(f"{folder / 'images'}: no readable {name}.jpg")
        images.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    held_out = np.arange(len(order)) % HOLD_OUT_EVERY == 0
    stacked, landmarks = np.stack(images).astype(np.uint8), landmarks[order]
    return Examples(stacked[~held_out], landmarks[~held_out]), Examples(stacked[held_out], landmarks[held_out])


def augment(
    rng: np.random.Generator, image: NDArray[np.uint8], landmarks: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Move, re-expose and partly cover one example; image float32 [SIDE, SIDE] in [0, 1], landmarks unit square."""
    angle = np.deg2rad(rng.normal(0.0, 4.0))
    zoom = np.exp(rng.uniform(-0.22, 0.12) + rng.uniform(-0.05, 0.05, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom
    offset = 0.5 - turn @ [0.5, 0.5] + rng.uniform(-0.05, 0.05, 2)
    landmarks = (landmarks @ turn.T + offset).astype(np.float32)
    # In pixels, whose centres lie at halves of the unit square's grid.
    pixels = np.concatenate([turn, (offset * SIDE + turn @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    moved = cv2.warpAffine(image, pixels, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=border)
    grey = moved.astype(np.float32) / 255

    if rng.random() < 0.3:
        low, high = np.percentile(grey, rng.uniform((0, 97), (3, 100)))
        grey = np.clip((grey - low) / max(high - low, 0.1), 0, 1).astype(np.float32)
    grey = grey ** np.float32(np.exp(rng.normal(0.0, 0.35)))
    grey = grey * np.float32(rng.uniform(0.65, 1.1)) + np.float32(rng.uniform(-0.08, 0.12))
    if rng.random() < 0.3:
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.2)).astype(np.float32)
    if rng.random() < 0.3:
        grey = grey + rng.standard_normal(grey.shape, np.float32) * np.float32(rng.uniform(0, 0.04))
    if rng.random() < 0.35:
        for _ in range(rng.integers(1, 4)):
            width, height = rng.integers(SIDE // 16, SIDE // 2, 2)
            left, top = rng.integers(-SIDE // 8, SIDE - SIDE // 8, 2).clip(0)
            grey[top : top + height, left : left + width] = rng.random()
    return grey.clip(0, 1), landmarks


def training_batch(rng: np.random.Generator, banks: Sequence[Examples], size: int) -> tuple[Tensor, Tensor]:
    """Equal shares of augmented examples of each bank: float32 [B, 1, SIDE, SIDE] and [B, 120, 2]."""
    pairs = []
    for bank in banks:
        for index in rng.integers(0, len(bank), size // len(banks)):
            pairs.append(augment(rng, bank.images[index], bank.landmarks[index]))
    images, landmarks = zip(*pairs, strict=True)
    return torch.from_numpy(np.stack(images)).unsqueeze(1), torch.from_numpy(np.stack(landmarks))


def coarse(landmarks: Tensor) -> Tensor:
    """Down-sampled targets [B, 60, 2]: each coarse node is the mean of its two fine nodes; rings have even sizes."""
    return 0.5 * (landmarks[:, 0::2] + landmarks[:, 1::2])


def loss_terms(model: HybridGNet, images: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Squared errors of landmarks and skip positions, summed, and the KL divergence, both batch means."""
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_var, features = model.encode(images.contiguous(memory_format=torch.channels_last))
    mean, log_var = mean.float(), log_var.float().clamp(-12, 6)
    noise = torch.randn(mean.shape, generator=generator)
    z = (mean + noise * (0.5 * log_var).exp()).unsqueeze(1)
    decoded = model.decode_all(z, Features(features.conv5.float(), features.conv6.float()))
    error = F.mse_loss(decoded.landmarks[:, 0], target)
    if decoded.pos1 is not None and decoded.pos2 is not None:
        error = error + F.mse_loss(decoded.pos2[:, 0], target) + F.mse_loss(decoded.pos1[:, 0], coarse(target))
    divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
    return error, divergence


def organ_masks(landmarks: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """One uint8 mask [1024, 1024] per organ from landmarks [120, 2] in the unit square."""
    masks = []
    for organ in ORGANS:
        mask = np.zeros((FRAME, FRAME), np.uint8)
        cv2.fillPoly(mask, [(landmarks[LANDMARKS[organ]] * FRAME).round().astype(np.int32)], (1,))
        masks.append(mask)
    return masks


@torch.inference_mode()
def score(model: HybridGNet, examples: Examples, cover: bool = False, draws: int = 20) -> str:
    """Errors in px of the 1024 frame, Dice per organ, and the predictive std, of the decoded posterior mean.

    With `cover`, a grey square hides the middle of the right lung, so that its effect on the std shows.
    """
    generator = torch.Generator().manual_seed(0)
    predicted, spread = [], []
    for image in examples.images:
        image = image.copy()
        if cover:
            image[SIDE // 3 : 3 * SIDE // 4, SIDE // 16 : SIDE // 2] = 128
        mean, log_var, features = model.encode(torch.from_numpy(image).float().div(255)[None, None])
        noise = torch.randn((draws, mean.shape[1]), generator=generator)
        z = torch.cat([mean[:, None], mean[:, None] + noise * (0.5 * log_var[:, None]).exp()], dim=1)
        landmarks = model.decode(z, features)[0]
        predicted.append(landmarks[0].numpy())
        spread.append(landmarks[1:].std(0, correction=0).mean().item() * FRAME)
    stacked = np.stack(predicted)
    offset = (stacked - examples.landmarks) * FRAME
    distance, squared = np.hypot(offset[..., 0], offset[..., 1]), np.square(offset).mean()
    dice = []
    for found, true in zip(stacked, examples.landmarks, strict=True):
        pairs = zip(organ_masks(found), organ_masks(true), strict=True)
        dice.append([2.0 * int((a & b).sum()) / max(int(a.sum()) + int(b.sum()), 1) for a, b in pairs])
    organs = " ".join(f"{organ} {value:.4f}" for organ, value in zip(ORGANS, np.mean(dice, axis=0), strict=True))
    return (
        f"n {len(examples)}, mean error {distance.mean():.2f} px, worst image {distance.mean(1).max():.2f} px, "
        f"MSE {squared:.1f} px^2, Dice {organs}, std {np.mean(spread):.2f} px"
    )


def learning_rate(progress: float) -> float:
    """One cycle: a short linear warm-up, then half a cosine; `progress` in [0, 1]."""
    if progress < WARM_UP:
        return PEAK_RATE * max(progress / WARM_UP, 0.02)
    fall = (progress - WARM_UP) / (1 - WARM_UP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + float(np.cos(np.pi * min(fall, 1.0))))


def kl_weight(progress: float) -> float:
    """A linear ramp, so that the latents learn the shapes before they are pressed to the prior."""
    return KL_START + (KL_WEIGHT - KL_START) * min(progress / KL_RAMP, 1.0)


class Training:
    """A model in training, with what it takes to stop and resume."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.model = HybridGNet(SIDE, "skip")
        self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lacks this one
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=PEAK_RATE)
        self.step = 0
        self.seconds = 0.0
        if settings.state.exists():
            state = torch.load(settings.state, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["spent"]
            print(f"resumed at step {self.step} from {settings.state}", flush=True)
        self.banks = [draw_examples(settings.drawings, settings.seed)]
        self.held_out = {"drawings": draw_examples(VALIDATION_DRAWINGS, settings.seed + 1)}
        if settings.annotated is not None:
            annotated, self.held_out["annotated"] = read_annotated(settings.annotated)
            self.banks.append(annotated)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, by steps or by time, whichever is further."""
        return max(self.step / self.settings.steps, self.seconds / (60 * self.settings.minutes))

    def run(self) -> None:
        """Train until the budget is spent; save and validate on the way and at the end."""
        generator = torch.Generator()
        terms: list[tuple[float, float]] = []
        started = time.monotonic() - self.seconds
        while self.progress < 1:
            # Keyed by the step, so that a resumed training sees what an uninterrupted one would.
            rng = np.random.default_rng([self.settings.seed, 2, self.step])
            generator.manual_seed(self.settings.seed * 1_000_003 + self.step)
            terms.append(self._update(*training_batch(rng, self.banks, self.settings.batch), generator))
            self.step, self.seconds = self.step + 1, time.monotonic() - started
            if self.step % 100 == 0:
                error, divergence = np.mean(terms, axis=0)
                terms.clear()
                print(f"step {self.step}, {self.seconds:.0f} s: error {error:.3e}, KL {divergence:.1f}", flush=True)
            if self.step % self.settings.every == 0 and self.progress < 1:
                self._save()
                self._validate()
        self._save()
        self._validate()

    def _update(self, images: Tensor, target: Tensor, generator: torch.Generator) -> tuple[float, float]:
        error, divergence = loss_terms(self.model, images, target, generator)
        self.optimiser.param_groups[0]["lr"] = learning_rate(self.progress)
        self.optimiser.zero_grad()
        loss = LOSS_SCALE * (error + kl_weight(self.progress) * divergence)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimiser.step()
        return error.item(), divergence.item()

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent": self.seconds,
        }
        # Written beside and moved: readers never see half a file.
        beside = self.settings.state.with_suffix(".partial")
        torch.save(state, beside)
        beside.replace(self.settings.state)
        beside = self.settings.output.with_suffix(".partial")
        digest = save_model(self.model, beside, dtype=torch.float16)
        beside.replace(self.settings.output)
        print(f"step {self.step}: saved {self.settings.output}, sha256 {digest}", flush=True)

    def _validate(self) -> None:
        for name, examples in self.held_out.items():
            print(f"step {self.step}, {name}: {score(self.model, examples)}", flush=True)
            print(f"step {self.step}, {name}, covered: {score(self.model, examples, cover=True)}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the settings and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="weights to write (.safetensors, float16)")
    parser.add_argument("--state", type=Path, help="training state to resume from [OUTPUT with .pt]")
    parser.add_argument("--annotated", type=Path, help="folder with images/*.jpg and landmarks.npz to mix in")
    parser.add_argument("--steps", type=int, default=10_000, help="optimiser steps at most")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="training time at most, resumes included")
    parser.add_argument("--drawings", type=int, default=4000, help="drawings to train on")
    parser.add_argument("--batch", type=int, default=8, help="images a step, half of them annotated where given")
    parser.add_argument("--every", type=int, default=1000, help="steps between states and validations")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    del args.threads
    args.state = args.state or args.output.with_suffix(".pt")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    Training(Settings(**vars(args))).run()


if __name__ == "__main__":
    main()
