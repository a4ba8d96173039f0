"""Step: a replica of the network on its device, which predicts prepared images batch by batch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from chexmask_u import record, storage
from chexmask_u.anatomy import FRAME, LATENT_SIZE, N_LANDMARKS
from chexmask_u.columns import landmark_array, latent_array, node_array, replace
from chexmask_u.images import memory
from chexmask_u.model.compiling import described, once_a_machine
from chexmask_u.model.device import choose
from chexmask_u.model.network import Network
from chexmask_u.model.precision import Precision
from chexmask_u.model.predict import Prediction, predict_staged, stage
from chexmask_u.weight_files import WeightFile, load_model

# A compiled network's latents may differ from the plain one's by this share of their largest value.
COMPILED_TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.1}

# Pixels of the 1024 frame by which a compiled decoder's coordinates may differ from the plain one's, of the same draws
# and feature maps, at the quantile: a lookup on the border of a cell may go to its neighbour, so not all of them.
COMPILED_SHIFT, COMPILED_SHIFT_QUANTILE = 0.05, 0.99

# Images and draws that a compiled network is checked with. Torch takes two sizes that are equal there for one and the
# same, and compiles again where they are not; few maps have sides of these.
CHECKED_IMAGES, CHECKED_DRAWS = 3, 37

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

_NO_TURN = nullcontext()

_Number = TypeVar("_Number", np.uint8, np.float32)


class Predictor:
    """Step: `record.READ` or `record.READY` -> `record.PREDICTED`; a class because the weights need a lifetime.

    Noise that is not there yet is drawn here: the same, in the time of the process that holds the network.

    Threads may call it side by side. One of them computes at a time, while others bring their images to the device or
    turn results into columns.

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
        memory.keep_freed()
        self.model = load_model(weights, device=device, sha256=sha256)
        self.model.precision = precision
        if device == "cpu":
            # As `model.fast` wants its weights, which it would otherwise convert for every image.
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device_name = device
        if device.startswith("cuda"):
            self.device_name = torch.cuda.get_device_name()
            with once_a_machine(described(self.model)):
                compiled = _compiles(self.model)
            if not compiled:
                self.model = load_model(weights, device=device, sha256=sha256)
                self.model.precision = precision
                # Part of every record and of the report, where a run that is slow for it is noticed.
                self.device_name += NOT_COMPILED
        self.samples = samples
        self.seed = seed
        # Two batches that compute at once would take twice the memory, and precision is set for the whole process.
        self._computing = Lock()

    def __call__(self, batch: pa.Table) -> pa.Table:
        status, reason, error = (batch[name].to_pylist() for name in ("status", "reason", "error"))
        record_ids = batch["record_id"].to_pylist()
        rows = [row for row, value in enumerate(status) if value == record.OK]
        names = [record_ids[row] for row in rows]
        images = _stacked(batch["image"], np.uint8, (FRAME, FRAME))
        noise = None
        if "noise" in batch.column_names:
            noise = _stacked(batch["noise"], np.float32, (self.samples, self.model.noise_size))
        outcome = predict_in_memory(
            self.model, images, names, self.samples, self.seed, turn=self._computing, noise=noise
        )
        prediction = outcome.prediction

        results: dict[str, list[Any]] = {field.name: [None] * len(status) for field in fields(Prediction)}
        uncertainty: list[float | None] = [None] * len(status)
        latent_uncertainty: list[float | None] = [None] * len(status)
        spread, latent_spread = (_row_means(of) for of in (prediction.landmarks_std, prediction.latent_std))
        faults = implausible(prediction)
        for index, row in enumerate(rows):
            if index in outcome.too_big:
                status[row], reason[row], error[row] = record.FAILED, "out_of_memory", outcome.too_big[index]
                continue
            if index in faults:
                status[row], reason[row], error[row] = record.FAILED, "invalid_prediction", faults[index]
                continue
            for name, values in results.items():
                values[row] = getattr(prediction, name)[index]
            uncertainty[row], latent_uncertainty[row] = spread[index], latent_spread[index]
        seconds = outcome.seconds / max(1, len(rows))
        predicted = set(rows)
        return replace(
            batch,
            record.PREDICTED,
            status=status,
            reason=reason,
            error=error,
            landmarks_mean=landmark_array(results["landmarks_mean"]),
            landmarks_std=landmark_array(results["landmarks_std"]),
            **{name: node_array(results[name]) for name in record.NODE_COLUMNS},
            uncertainty=uncertainty,
            latent_mean=latent_array(results["latent_mean"]),
            latent_std=latent_array(results["latent_std"]),
            latent_uncertainty=latent_uncertainty,
            device=[self.device_name if row in predicted else None for row in range(len(status))],
            predict_seconds=[seconds if row in predicted else None for row in range(len(status))],
        )


def _stacked(column: pa.ChunkedArray, dtype: type[_Number], shape: tuple[int, ...]) -> NDArray[_Number]:
    """Arrays [n, *shape] of those rows that have one, read where they lie in a block's buffer."""
    found = []
    for chunk in column.chunks:
        _, offsets, values = chunk.buffers()
        # A row without one takes no bytes, so that the others lie side by side.
        first, last = np.frombuffer(offsets, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
        if last > first:
            found.append(np.frombuffer(values, np.uint8)[first:last].view(dtype).reshape(-1, *shape))
    if not found:
        return np.zeros((0, *shape), dtype)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _row_means(values: NDArray[np.float32]) -> list[float]:
    """Mean of each row's numbers of an array [B, ...]."""
    means: list[float] = values.reshape(len(values), -1).mean(axis=1).tolist() if len(values) else []
    return means


def _compiles(model: Network) -> bool:
    """Have torch compile the network, for any batch size, and check it against its plain form.

    Returns:
        Whether the model may be used; if not, the reason was printed.
    """
    rng = np.random.Generator(np.random.Philox(0))
    try:
        # Made as those of a prediction are, or what is made otherwise would be compiled for once more.
        with torch.inference_mode():
            images, noise = (
                torch.from_numpy(values).to(model.device)
                for values in (
                    rng.integers(0, 256, (CHECKED_IMAGES, FRAME, FRAME), np.uint8),
                    rng.standard_normal((CHECKED_IMAGES, CHECKED_DRAWS, LATENT_SIZE), np.float32),
                )
            )
            difference, moved = model.compile_checked(model.grey(images), noise)
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


@dataclass(frozen=True)
class Outcome:
    """What became of a batch.

    Attributes:
        prediction: NaN for each image that does not even fit alone.
        draws: that it is of, float32 [B, N, 120, 2], NaN likewise; B = 0 where they were not asked for.
        too_big: what was said of images that do not fit, by their index.
        seconds: that the network computed, from its call to the results.
    """

    prediction: Prediction
    draws: NDArray[np.float32]
    too_big: dict[int, str]
    seconds: float


def predict_in_memory(
    model: Network,
    images: NDArray[np.uint8],
    record_ids: Sequence[str],
    n_samples: int,
    seed: int,
    *,
    with_draws: bool = False,
    turn: AbstractContextManager[Any] = _NO_TURN,
    noise: NDArray[np.float32] | None = None,
) -> Outcome:
    """`predict`, in halves where memory does not suffice, and so on down to one image.

    Args:
        model, images, record_ids, n_samples, seed: as `predict` takes them.
        with_draws: whether its draws are wanted too.
        turn: entered while the network computes, but not while images are brought to it.
        noise: as `predict_staged` takes it.
    """
    try:
        staged = stage(model, images)
        with turn:
            start = time.perf_counter()
            prediction, draws = predict_staged(
                model, staged, record_ids, n_samples, seed, with_draws=with_draws, noise=noise
            )
            return Outcome(prediction, draws, {}, time.perf_counter() - start)
    except (RuntimeError, MemoryError) as error:
        problem = storage.explain(error)
        if not _is_out_of_memory(error):
            raise
    # Not in the handler: until it ends, the exception holds the tensors of what did not fit.
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(images) == 1:
        draws = np.full((int(with_draws), n_samples, N_LANDMARKS, 2), np.nan, np.float32)
        return Outcome(Prediction.of_nothing(1), draws, {0: problem}, 0.0)
    half = len(images) // 2
    first, second = (
        predict_in_memory(
            model,
            images[part],
            record_ids[part],
            n_samples,
            seed,
            with_draws=with_draws,
            turn=turn,
            noise=None if noise is None else noise[part],
        )
        for part in (slice(half), slice(half, None))
    )
    return Outcome(
        Prediction.join([first.prediction, second.prediction]),
        np.concatenate([first.draws, second.draws]),
        first.too_big | {half + index: text for index, text in second.too_big.items()},
        first.seconds + second.seconds,
    )


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether a prediction failed because there was no memory for it, on whatever device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def implausible(prediction: Prediction) -> dict[int, str]:
    """Why the numbers of some records cannot be kept, by their index."""
    finite = np.ones(len(prediction.landmarks_mean), bool)
    for field in fields(Prediction):
        values = getattr(prediction, field.name)
        finite &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    least, most = (end(prediction.landmarks_mean, axis=(1, 2)) for end in (np.min, np.max))
    near = (least >= -FAR_OUTSIDE) & (most <= FRAME + FAR_OUTSIDE)
    return {
        index: f"landmarks span {least[index]:.0f} to {most[index]:.0f} px of the {FRAME} frame"
        if finite[index]
        else "a landmark or latent is not a finite number"
        for index in np.flatnonzero(~(finite & near)).tolist()
    }
