"""Step: a replica of the network on its device, which predicts prepared images batch by batch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from chexmask_u import record, storage
from chexmask_u.anatomy import FRAME, LATENT_SIZE, N_LANDMARKS
from chexmask_u.columns import landmark_array, latent_array, node_array, replace
from chexmask_u.images import memory
from chexmask_u.model.device import choose
from chexmask_u.model.network import Network
from chexmask_u.model.precision import Precision
from chexmask_u.model.predict import Prediction, predict, predict_draws
from chexmask_u.weight_files import WeightFile, load_model

# A compiled network's latents may differ from the plain one's by this share of their largest value.
COMPILED_TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.1}

# Pixels of the 1024 frame by which a compiled decoder's coordinates may differ from the plain one's, of the same draws
# and feature maps, at the quantile: a lookup on the border of a cell may go to its neighbour, so not all of them.
COMPILED_SHIFT, COMPILED_SHIFT_QUANTILE = 0.05, 0.99

# Added to the name of a GPU on which the network runs in its plain form.
NOT_COMPILED = ", not compiled"

# A mean landmark this many pixels outside the frame is a diverged network; nearer ones are kept and counted.
FAR_OUTSIDE = 8 * FRAME

# How torch says it, on CUDA and on the CPU, and the libraries below it.
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "DefaultCPUAllocator",
    "bad_alloc",
    "ALLOC_FAILED",
    "can't start new thread",
)


class Predictor:
    """Step: `record.READ` -> `record.PREDICTED`; a class because the weights need a lifetime.

    Args:
        weights, sha256: as `load_model` takes them.
        samples: draws per record.
        seed: fixes the draws together with the record id.
        device: "cpu", "cuda", or "auto" for CUDA where torch sees one.
        threads: images that a CPU computes side by side, at most the machine's cores; None for torch's own choice.
        precision: arithmetic of the encoder, see `model.precision`.

    Attributes:
        device_name: where the network runs, as records and reports say it: "cpu", or the GPU's name, with
            `NOT_COMPILED` where it runs there in its plain form.

    Raises:
        InputError: if there is no such device.
        ValueError: if the device does not have the precision.
    """

    def __init__(
        self,
        weights: str | WeightFile = "demo",
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
        device = choose(device)
        if device == "cpu":
            memory.keep_freed()
        self.model = load_model(weights, device=device, sha256=sha256)
        self.model.precision = precision
        if device == "cpu":
            # As `model.fast` wants its weights, which it would otherwise convert for every image.
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device_name = device
        if device.startswith("cuda"):
            self.device_name = torch.cuda.get_device_name()
            if not _compiles(self.model):
                self.model = load_model(weights, device=device, sha256=sha256)
                self.model.precision = precision
                # Part of every record and of the report, where a run that is slow for it is noticed.
                self.device_name += NOT_COMPILED
        self.samples = samples
        self.seed = seed

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        status, reason, error = (batch[name].to_pylist() for name in ("status", "reason", "error"))
        record_ids = batch["record_id"].to_pylist()
        rows = [row for row, value in enumerate(status) if value == record.OK]
        images = [np.frombuffer(batch["image"][row].as_buffer(), np.uint8).reshape(FRAME, FRAME) for row in rows]
        names = [record_ids[row] for row in rows]
        prediction, _, too_big = predict_in_memory(self.model, images, names, self.samples, self.seed)

        results: dict[str, list[Any]] = {field.name: [None] * len(status) for field in fields(Prediction)}
        uncertainty: list[float | None] = [None] * len(status)
        latent_uncertainty: list[float | None] = [None] * len(status)
        for index, row in enumerate(rows):
            if index in too_big:
                status[row], reason[row], error[row] = record.FAILED, "out_of_memory", too_big[index]
                continue
            problem = implausible(prediction, index)
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
            landmarks_xy=node_array(results["landmarks_xy"]),
            uncertainty=uncertainty,
            latent_mean=latent_array(results["latent_mean"]),
            latent_std=latent_array(results["latent_std"]),
            latent_uncertainty=latent_uncertainty,
            device=[self.device_name if row in predicted else None for row in range(len(status))],
            predict_seconds=[seconds if row in predicted else None for row in range(len(status))],
        )


def _compiles(model: Network) -> bool:
    """Have torch compile the network, for any batch size, and check it against its plain form.

    Returns:
        Whether the model may be used; if not, the reason was printed.
    """
    rng = np.random.Generator(np.random.Philox(0))
    size = model.input_size
    try:
        # Inference tensors as those of a prediction, or that would be compiled for once more.
        with torch.inference_mode():
            images, noise = (
                torch.from_numpy(values).to(model.device)
                for values in (
                    rng.random((3, 1, size, size), np.float32),
                    rng.standard_normal((3, 2, LATENT_SIZE), np.float32),
                )
            )
            difference, moved = model.compile_checked(images, noise)
        shift = float((moved * FRAME).quantile(COMPILED_SHIFT_QUANTILE))
    except Exception as error:  # whatever a compiler can raise: there may be none, or it may not know the device
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    else:
        # Written so that a difference which is not a number is a fault too.
        if difference <= COMPILED_TOLERANCE[model.precision] and shift <= COMPILED_SHIFT:
            return True
        reason = f"its latents differ by {difference:.1g} of their size, its landmarks by {shift:.1g} px"
    print(f"chexmask_u: the network is not compiled, only slower for it: {reason}", file=sys.stderr)
    return False


def predict_in_memory(
    model: Network,
    images: Sequence[NDArray[np.uint8]],
    record_ids: Sequence[str],
    n_samples: int,
    seed: int,
    *,
    with_draws: bool = False,
) -> tuple[Prediction, NDArray[np.float32], dict[int, str]]:
    """`predict`, in halves where memory does not suffice, and so on down to one image.

    Args:
        model, images, record_ids, n_samples, seed: as `predict` takes them.
        with_draws: whether its draws are wanted too.

    Returns:
        The prediction and its draws float32 [B, N, 120, 2], or none of them (B = 0), NaN for each image that does not
        even fit alone; and what was said of it by its index.
    """
    none = np.zeros((0, n_samples, N_LANDMARKS, 2), np.float32)
    try:
        stacked = np.stack(images) if images else np.zeros((0, FRAME, FRAME), np.uint8)
        if with_draws:
            return *predict_draws(model, stacked, record_ids, n_samples, seed), {}
        return predict(model, stacked, record_ids, n_samples, seed), none, {}
    except (RuntimeError, MemoryError) as error:
        problem = storage.explain(error)
        if not _is_out_of_memory(error):
            raise
    # Not in the handler: until it ends, the exception holds the tensors of what did not fit.
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(images) == 1:
        points = np.full((1, N_LANDMARKS, 2), np.nan, np.float32)
        latents = np.full((1, LATENT_SIZE), np.nan, np.float32)
        nowhere = Prediction(points, points, points[..., 0], latents, latents)
        return nowhere, np.full((1, *none.shape[1:]), np.nan, np.float32) if with_draws else none, {0: problem}
    half = len(images) // 2
    parts = [
        predict_in_memory(model, images[part], record_ids[part], n_samples, seed, with_draws=with_draws)
        for part in (slice(half), slice(half, None))
    ]
    (first, first_draws, failed), (second, second_draws, later) = parts
    failed |= {half + index: text for index, text in later.items()}
    return Prediction.join([first, second]), np.concatenate([first_draws, second_draws]), failed


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether a prediction failed because there was no memory for it, on whatever device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def implausible(prediction: Prediction, index: int) -> str | None:
    """Why a record's numbers cannot be kept, or None."""
    mean = prediction.landmarks_mean[index]
    if not all(np.isfinite(getattr(prediction, field.name)[index]).all() for field in fields(Prediction)):
        return "a landmark or latent is not a finite number"
    if mean.min() < -FAR_OUTSIDE or mean.max() > FRAME + FAR_OUTSIDE:
        return f"landmarks span {mean.min():.0f} to {mean.max():.0f} px of the {FRAME} frame"
    return None
