"""Encode a batch once, draw N latents per record, decode them, and reduce to mean and standard deviation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral
from threading import Barrier, local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LATENT_SIZE, N_LANDMARKS
from chexmask_u.model.draws import KEPT
from chexmask_u.model.network import Network
from chexmask_u.model.spread import across_and_along

Staged = NDArray[np.uint8] | torch.Tensor
"""Images uint8 [B, 1024, 1024] where the network takes them from, see `stage`."""

_DTYPES: dict[type, torch.dtype] = {np.uint8: torch.uint8, np.float32: torch.float32}


@dataclass(frozen=True, repr=False)
class Prediction:
    """Landmarks float32 [B, 120, 2] in pixels of the 1024 frame and latents float32 [B, 64], as mean and std.

    `landmarks_std` is the predictive uncertainty: the standard deviation over the draws (ddof = 0). It is how far the
    draws lie apart, which may be less than how far they lie from the truth. `landmarks_xy` float32
    [B, 120] is the covariance of x and y over the same draws, in pixels².

    `landmarks_across` and `landmarks_along` float32 [B, 120] are the standard deviations of the draws across and along
    the mean contour, in which a rare draw, one that lies farther than `anatomy.RARE` median distances from the draws'
    middle, counts as if it lay so far (winsorised: Dixon and Tukey, Technometrics 10 (1968), 83-98). Medians are the
    lower of two middle values, so that of one or two draws nothing is told. One such draw of fifty can double the std
    of all landmarks of an image. `latent_std` is the posterior's sigma.
    """

    landmarks_mean: NDArray[np.float32]
    landmarks_std: NDArray[np.float32]
    landmarks_xy: NDArray[np.float32]
    landmarks_across: NDArray[np.float32]
    landmarks_along: NDArray[np.float32]
    latent_mean: NDArray[np.float32]
    latent_std: NDArray[np.float32]

    @classmethod
    def of_nothing(cls, images: int) -> Prediction:
        """NaN in place of a prediction of so many images."""
        points, nodes, latents = (
            np.full((images, *shape), np.nan, np.float32)
            for shape in ((N_LANDMARKS, 2), (N_LANDMARKS,), (LATENT_SIZE,))
        )
        return cls(points, points, nodes, nodes, nodes, latents, latents)

    @classmethod
    def join(cls, parts: Sequence[Prediction]) -> Prediction:
        """The predictions of several batches, at least one, as one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __repr__(self) -> str:
        arrays = (f"{field.name} float32 {list(getattr(self, field.name).shape)}" for field in fields(self))
        return f"Prediction({', '.join(arrays)})"


def latent_noise(record_id: str, n_samples: int, seed: int, size: int = LATENT_SIZE) -> NDArray[np.float32]:
    """Standard normal noise float32 [n_samples, size] that depends on (seed, record_id) alone.

    A Philox counter stream keyed by a hash of both gives uniform numbers, of which the inverse normal distribution
    makes normal ones; so the first ten draws of fifty are the ten of ten, on any device, worker or retry.
    """
    digest = hashlib.sha256(f"{seed}\n{record_id}".encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    bits = stream.random_raw(n_samples * size)
    # 52 bits and a half step keep a uniform number strictly between 0 and 1 in float64.
    bits >>= np.uint64(12)
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    normal = torch.special.ndtri(torch.from_numpy(uniform))
    return normal.to(torch.float32).numpy().reshape(n_samples, size)


def predict(
    model: Network,
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
        TypeError: if the model, the images or the names are something else, such as a path or one name for all, or
            n_samples or seed is no whole number.
        ValueError: if the shapes, the dtype or the number of names do not fit, or n_samples < 1.
    """
    return _predict(model, images, record_ids, n_samples, seed, with_draws=False)[0]


def predict_draws(
    model: Network,
    images: NDArray[np.uint8],
    record_ids: Sequence[str],
    n_samples: int = 50,
    seed: int = 0,
) -> tuple[Prediction, NDArray[np.float32]]:
    """What `predict` gives, and the draws that it is of: float32 [B, N, 120, 2], pixels of the 1024 frame."""
    return _predict(model, images, record_ids, n_samples, seed, with_draws=True)


def _predict(
    model: Network,
    images: NDArray[np.uint8],
    record_ids: Sequence[str],
    n_samples: int,
    seed: int,
    with_draws: bool,
) -> tuple[Prediction, NDArray[np.float32]]:
    """The prediction and its draws, which are none (float32 [0, N, 120, 2]) unless asked for."""
    if not isinstance(model, Network):
        raise TypeError(f"model must be what chexmask_u.load_model gives, not a {type(model).__name__}")
    check_batch(images, record_ids, n_samples, seed)
    return predict_staged(model, stage(model, images), record_ids, n_samples, seed, with_draws=with_draws)


def stage(model: Network, images: NDArray[np.uint8]) -> Staged:
    """Bring images to where the network takes them from: a GPU's memory. A CPU reads them where they are.

    May be called while another thread predicts: what a GPU is to fetch is copied once, into pinned memory that this
    thread keeps for its next batch, and fetched beside what the GPU computes.

    Args:
        model: from `load_model`.
        images: uint8 [B, 1024, 1024]; may be read-only.

    Returns:
        What `predict_staged` takes, until this thread calls `stage` again.
    """
    if not model.computes_batches or not len(images):
        return images
    if len(images) == 1:
        # What was compiled for batches would be compiled once more for one image.
        images = np.broadcast_to(images, (2, *images.shape[1:]))
    on_gpu = model.device.type == "cuda"
    if _kept.host is None or len(_kept.host) < len(images) or _kept.host.is_pinned() != on_gpu:
        # Before the new one is made, of which there may then be room.
        _kept.host = None
        _kept.host = torch.empty(images.shape, dtype=torch.uint8, pin_memory=on_gpu)
    host = _kept.host[: len(images)]
    np.copyto(host.numpy(), images)
    if not on_gpu:
        return host
    # The default stream's turn would come only after what another batch has queued there.
    copies = _copies(model.device)
    with torch.cuda.stream(copies):
        staged = host.to(model.device, non_blocking=True)
    copies.synchronize()
    return staged


class _Kept(local):
    """Each thread's memory, of the size of its largest batch, that images are copied to on their way to a GPU."""

    host: torch.Tensor | None = None


_kept = _Kept()


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def predict_staged(
    model: Network,
    staged: Staged,
    record_ids: Sequence[str],
    n_samples: int,
    seed: int,
    *,
    with_draws: bool = False,
    noise: NDArray[np.float32] | None = None,
) -> tuple[Prediction, NDArray[np.float32]]:
    """What `predict_draws` gives, of images that `stage` brought to the same network; draws only if asked for.

    Noise float32 [B, N, noise_size] is each record's `latent_noise`, which is made here where it is not given.
    """
    if not record_ids:
        return Prediction.of_nothing(0), np.zeros((0, n_samples, N_LANDMARKS, 2), np.float32)

    def noise_of(row: int) -> NDArray[np.float32]:
        return latent_noise(record_ids[row], n_samples, seed, model.noise_size) if noise is None else noise[row]

    def flat_of(images: Staged, rows: Sequence[int]) -> NDArray[np.float32]:
        return _reduce(model, images, lambda: np.stack([noise_of(row) for row in rows]), with_draws)

    rows = range(len(record_ids))
    if model.computes_batches:
        flat = flat_of(staged, [0, 0] if len(rows) == 1 else rows)[: len(rows)]
    else:
        # One by one where a GPU takes all at once: beyond an image, more of them only take more memory.
        flat = np.concatenate(_side_by_side(lambda row: flat_of(staged[row : row + 1], [row]), rows))
    parts = np.split(flat, np.cumsum(KEPT), axis=1)
    centre, std, covariance, usual_std, usual_covariance, mean, sigma, draws = parts
    centre, std, usual_std = (points.reshape(-1, N_LANDMARKS, 2) for points in (centre, std, usual_std))
    across, along = across_and_along(centre, usual_std, usual_covariance)
    prediction = Prediction(
        landmarks_mean=centre,
        landmarks_std=std,
        landmarks_xy=covariance,
        landmarks_across=across.astype(np.float32),
        landmarks_along=along.astype(np.float32),
        latent_mean=mean,
        latent_std=sigma,
    )
    return prediction, draws.reshape(-1, n_samples, N_LANDMARKS, 2)


def check_batch(images: Any, record_ids: Any, n_samples: Any, seed: Any) -> None:
    """Raise if these are no prepared images with a name each, as `predict` says."""
    if not isinstance(images, np.ndarray):
        raise TypeError(
            f"images must be a uint8 array [B, {FRAME}, {FRAME}], not a {type(images).__name__};"
            " of a file, chexmask_u.read_image(path).image[None] is one"
        )
    if isinstance(record_ids, str) or not all(isinstance(record_id, str) for record_id in record_ids):
        raise TypeError(f"record_ids must be a list of names, one per image, not {_named(record_ids)}")
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (FRAME, FRAME):
        raise ValueError(f"images must be uint8 [B, {FRAME}, {FRAME}], not {images.dtype} {list(images.shape)}")
    if len(record_ids) != len(images):
        raise ValueError(f"{len(images)} images need as many record_ids, not {len(record_ids)}")
    for name, value in (("n_samples", n_samples), ("seed", seed)):
        if not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, not {value!r}")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, not {n_samples}")


def _named(record_ids: Any) -> str:
    """What is wrong with names that are no list of strings, in few words."""
    if isinstance(record_ids, str):
        return f"{record_ids!r}"
    return f"one with a {next(type(one).__name__ for one in record_ids if not isinstance(one, str))} in it"


def _side_by_side(compute: Callable[[int], NDArray[np.float32]], parts: Sequence[int]) -> list[NDArray[np.float32]]:
    """Compute the parts in as many threads as torch may use, in which torch starts no more.

    Threads that share an image wait for each other after every operation; beside other work on the same cores, that
    took nine times as long.
    """
    threads = torch.get_num_threads()
    if min(threads, len(parts)) == 1:
        return [compute(part) for part in parts]
    pool = _threads(threads)
    torch.set_num_threads(1)
    try:
        return list(pool.map(compute, parts))
    finally:
        torch.set_num_threads(threads)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """So many threads, which stay: one that starts when memory runs out may never say that it did not."""
    # In some builds of torch the number is each thread's own.
    pool = ThreadPoolExecutor(count, "image", initializer=torch.set_num_threads, initargs=(1,))
    all_there = Barrier(count + 1)
    for _ in range(count):
        pool.submit(all_there.wait)
    all_there.wait()
    return pool


def _reduce(
    model: Network, images: Staged, noise: Callable[[], NDArray[np.float32]], with_draws: bool
) -> NDArray[np.float32]:
    """What `Draws.kept` gives of a batch.

    The noise is made once the encoder has begun, which a GPU does not wait for.
    """
    with torch.inference_mode():
        grey = model.grey(images if isinstance(images, torch.Tensor) else _on_device(images, model.device))
        draws = model.sample(grey, lambda: _on_device(noise(), model.device))
        # One copy from the device for all results.
        flat: NDArray[np.float32] = draws.kept(with_draws).cpu().numpy()
    return flat


def _on_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of the array on the device; pinned memory lets a GPU fetch it while the host goes on."""
    host = torch.empty(array.shape, dtype=_DTYPES[array.dtype.type], pin_memory=device.type == "cuda")
    np.copyto(host.numpy(), array)
    return host.to(device, non_blocking=True)
