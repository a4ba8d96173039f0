"""Encode a batch once, draw N latents per record, decode them, and reduce to mean and standard deviation."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from chexmask_u import record, storage
from chexmask_u.anatomy import FRAME, LATENT_SIZE, N_LANDMARKS
from chexmask_u.columns import landmark_array, latent_array, replace
from chexmask_u.model import fast
from chexmask_u.model.checkpoint import load_model
from chexmask_u.model.dropout import DropoutNet, noise_size
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.precision import Precision

# Images encoded together on a CPU: they share a read of the linear layers' 67 MB, and few of them need little memory.
CPU_IMAGES = 4

# A compiled network's latents may differ from the plain one's by this share of their largest value.
COMPILED_TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.1}

# A mean landmark this many pixels outside the frame is a diverged network; nearer ones are kept and counted.
FAR_OUTSIDE = 8 * FRAME


# How torch says it, on CUDA and on the CPU, and the libraries below it.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "DefaultCPUAllocator", "bad_alloc", "ALLOC_FAILED")


@dataclass(frozen=True)
class Prediction:
    """Landmarks float32 [B, 120, 2] in pixels of the 1024 frame and latents float32 [B, 64], as mean and std.

    `landmarks_std` is the predictive uncertainty: the standard deviation over the draws (ddof = 0). `latent_std` is the
    posterior's sigma.
    """

    landmarks_mean: NDArray[np.float32]
    landmarks_std: NDArray[np.float32]
    latent_mean: NDArray[np.float32]
    latent_std: NDArray[np.float32]


def latent_noise(record_id: str, n_samples: int, seed: int, size: int = LATENT_SIZE) -> NDArray[np.float32]:
    """Standard normal noise float32 [n_samples, size] that depends on (seed, record_id) alone.

    A Philox counter stream keyed by a hash of both gives uniform numbers, of which the inverse normal distribution
    makes normal ones; so the first ten draws of fifty are the ten of ten, on any device, worker or retry.
    """
    digest = hashlib.sha256(f"{seed}\n{record_id}".encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    bits = stream.random_raw(n_samples * size)
    # 52 bits and a half step keep a uniform number strictly between 0 and 1 in float64.
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    normal = torch.special.ndtri(torch.from_numpy(uniform))
    return normal.to(torch.float32).numpy().reshape(n_samples, size)


def predict(
    model: HybridGNet,
    images: NDArray[np.uint8],
    record_ids: Sequence[str],
    n_samples: int = 50,
    seed: int = 0,
) -> Prediction:
    """Landmarks and their uncertainty for a batch of prepared images.

    Args:
        model: from `load_model`; computes in `model.precision`.
        images: uint8 [B, 1024, 1024], grey; resized to the model's input size where that differs.
        record_ids: B names; with `seed` they fix the draws, whatever the batch.
        n_samples: draws N per image (the paper and the published dataset use 50).
        seed: any whole number.

    Raises:
        ValueError: if the shapes, the type or the number of names do not fit, or n_samples < 1.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (FRAME, FRAME):
        raise ValueError(f"images must be uint8 [B, {FRAME}, {FRAME}], not {images.dtype} {list(images.shape)}")
    if len(record_ids) != len(images):
        raise ValueError(f"{len(images)} images need as many record_ids, not {len(record_ids)}")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, not {n_samples}")
    if not len(images):
        landmarks, latents = np.zeros((0, N_LANDMARKS, 2), np.float32), np.zeros((0, LATENT_SIZE), np.float32)
        return Prediction(landmarks, landmarks, latents, latents)
    at_once = CPU_IMAGES if model.device.type == "cpu" else len(images)
    parts = []
    for start in range(0, len(images), at_once):
        chunk = slice(start, start + at_once)
        size = noise_size(model.variant)
        noise = np.stack([latent_noise(record_id, n_samples, seed, size) for record_id in record_ids[chunk]])
        parts.append(_reduce(model, images[chunk], noise))
    flat = np.concatenate(parts)
    nodes = 2 * N_LANDMARKS
    return Prediction(
        landmarks_mean=flat[:, :nodes].reshape(-1, N_LANDMARKS, 2),
        landmarks_std=flat[:, nodes : 2 * nodes].reshape(-1, N_LANDMARKS, 2),
        latent_mean=flat[:, 2 * nodes : -LATENT_SIZE],
        latent_std=flat[:, -LATENT_SIZE:],
    )


def _reduce(model: HybridGNet, images: NDArray[np.uint8], noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean and std of landmarks, mean and sigma of latents, side by side: float32 [B, 120 * 2 * 2 + 64 * 2]."""
    with torch.inference_mode():
        grey = _on_device(images, model.device).unsqueeze(1).float().div_(255)
        if model.input_size != FRAME:
            size = (model.input_size, model.input_size)
            grey = F.interpolate(grey, size, mode="area")
        if isinstance(model, DropoutNet):
            drawn, latents = model.sample(grey, _on_device(noise, model.device))
            sigma, mean = torch.std_mean(latents, dim=1, correction=0)
        else:
            mean, log_var, features = model.encode(grey)
            sigma = torch.exp(log_var / 2)
            z = mean.unsqueeze(1) + _on_device(noise, model.device) * sigma.unsqueeze(1)
            drawn = model.decode(z, features)
        drawn = drawn * FRAME
        std, centre = torch.std_mean(drawn, dim=1, correction=0)
        # One copy from the device for all four results.
        flat: NDArray[np.float32] = torch.cat([centre.flatten(1), std.flatten(1), mean, sigma], dim=1).cpu().numpy()
    return flat


def _on_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on the device; pinned memory lets a GPU fetch it while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Predictor:
    """Step: `record.READ` -> `record.PREDICTED`; a class because the weights need a lifetime.

    Args:
        weights, sha256: as `load_model` takes them.
        samples: draws per record.
        seed: fixes the draws together with the record id.
        device: "cpu", "cuda", or "auto" for CUDA where torch sees one.
        threads: CPU threads that torch may use, at most the machine's cores; None leaves torch's own choice.
        precision: arithmetic of the encoder, see `model.precision`.

    Raises:
        ValueError: if the device does not have the precision.
    """

    def __init__(
        self,
        weights: str = "demo",
        *,
        sha256: str | None = None,
        samples: int = 50,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        if threads is not None:
            torch.set_num_threads(min(threads, os.cpu_count() or 1))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            fast.keep_freed_memory()
        self.model = load_model(weights, device=device, sha256=sha256)
        self.model.precision = precision
        if device.startswith("cuda") and not _compiles(self.model):
            self.model = load_model(weights, device=device, sha256=sha256)
            self.model.precision = precision
        self.samples = samples
        self.seed = seed
        self.device = torch.cuda.get_device_name() if device.startswith("cuda") else device

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        status, reason, error = (batch[name].to_pylist() for name in ("status", "reason", "error"))
        record_ids = batch["record_id"].to_pylist()
        rows = [row for row, value in enumerate(status) if value == record.OK]
        images = [np.frombuffer(batch["image"][row].as_buffer(), np.uint8).reshape(FRAME, FRAME) for row in rows]
        names = [record_ids[row] for row in rows]
        prediction, too_big = _predict_in_memory(self.model, images, names, self.samples, self.seed)

        results: dict[str, list[Any]] = {
            name: [None] * len(status) for name in ("landmarks_mean", "landmarks_std", "latent_mean", "latent_std")
        }
        uncertainty: list[float | None] = [None] * len(status)
        latent_uncertainty: list[float | None] = [None] * len(status)
        for index, row in enumerate(rows):
            if index in too_big:
                status[row], reason[row], error[row] = record.FAILED, "out_of_memory", too_big[index]
                continue
            problem = _implausible(prediction, index)
            if problem:
                status[row], reason[row], error[row] = record.FAILED, "invalid_prediction", problem
                continue
            for name, values in results.items():
                values[row] = getattr(prediction, name)[index]
            uncertainty[row] = float(prediction.landmarks_std[index].mean())
            latent_uncertainty[row] = float(prediction.latent_std[index].mean())
        seconds = (time.perf_counter() - start) / max(1, len(rows))
        predicted = set(rows)
        return replace(
            batch,
            record.PREDICTED,
            status=status,
            reason=reason,
            error=error,
            landmarks_mean=landmark_array(results["landmarks_mean"]),
            landmarks_std=landmark_array(results["landmarks_std"]),
            uncertainty=uncertainty,
            latent_mean=latent_array(results["latent_mean"]),
            latent_std=latent_array(results["latent_std"]),
            latent_uncertainty=latent_uncertainty,
            device=[self.device if row in predicted else None for row in range(len(status))],
            predict_seconds=[seconds if row in predicted else None for row in range(len(status))],
        )


def _compiles(model: HybridGNet) -> bool:
    """Have torch compile both halves of the network, for any batch size, and check the result against the plain form.

    Returns:
        Whether the model may be used; if not, the reason was printed.
    """
    images = np.random.Generator(np.random.Philox(0)).integers(0, 256, (3, FRAME, FRAME), dtype=np.uint8)

    def latents() -> NDArray[np.float32]:
        return predict(model, images, ["0", "1", "2"], n_samples=2).latent_mean

    try:
        plain = latents()
        model.encoder.compile(dynamic=True)
        model.decoder.compile(dynamic=True)
        difference = float(np.abs(latents() - plain).max() / np.abs(plain).max())
    except Exception as error:  # whatever a compiler can raise: there may be none, or it may not know the device
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    else:
        # Written so that a difference which is not a number is a fault too.
        if difference <= COMPILED_TOLERANCE[model.precision]:
            return True
        reason = f"its latents differ by {difference:.1g}"
    print(f"chexmask_u: the network is not compiled, only slower for it: {reason}", file=sys.stderr)
    return False


def _predict_in_memory(
    model: HybridGNet, images: Sequence[NDArray[np.uint8]], record_ids: Sequence[str], n_samples: int, seed: int
) -> tuple[Prediction, dict[int, str]]:
    """`predict`, in halves where memory does not suffice, and so on down to one image.

    Returns:
        The prediction, NaN for each image that does not even fit alone, and what was said of it by its index.
    """
    try:
        stacked = np.stack(images) if images else np.zeros((0, FRAME, FRAME), np.uint8)
        return predict(model, stacked, record_ids, n_samples, seed), {}
    except (RuntimeError, MemoryError) as error:
        problem = storage.explain(error)
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
    # Not in the handler: until it ends, the exception holds the tensors of what did not fit.
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(images) == 1:
        points = np.full((1, N_LANDMARKS, 2), np.nan, np.float32)
        latents = np.full((1, LATENT_SIZE), np.nan, np.float32)
        return Prediction(points, points, latents, latents), {0: problem}
    half = len(images) // 2
    first, first_failed = _predict_in_memory(model, images[:half], record_ids[:half], n_samples, seed)
    second, second_failed = _predict_in_memory(model, images[half:], record_ids[half:], n_samples, seed)
    together = {
        field.name: np.concatenate([getattr(first, field.name), getattr(second, field.name)])
        for field in fields(Prediction)
    }
    return Prediction(**together), first_failed | {half + index: text for index, text in second_failed.items()}


def _implausible(prediction: Prediction, index: int) -> str | None:
    """Why a record's numbers cannot be kept, or None."""
    mean, std = prediction.landmarks_mean[index], prediction.landmarks_std[index]
    latents = (prediction.latent_mean[index], prediction.latent_std[index])
    if not all(np.isfinite(values).all() for values in (mean, std, *latents)):
        return "a landmark or latent is not a finite number"
    if mean.min() < -FAR_OUTSIDE or mean.max() > FRAME + FAR_OUTSIDE:
        return f"landmarks span {mean.min():.0f} to {mean.max():.0f} px of the {FRAME} frame"
    return None
