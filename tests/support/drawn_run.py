"""`chexmask-u` whose images and network are drawn, for tests at full scale: `python tests/drawn_run.py VERB ...`.

Objects, decoding and the network are replaced inside the workers; what surrounds them is the product's own code. An
image is 8 x 8 pixels where a real one is 1 MiB, since 690 GB of empty pixels would prove nothing. What a record becomes
hangs on its id alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u import cli, pipeline
from chexmask_u.anatomy import FRAME, LANDMARKS, LATENT_SIZE, N_LANDMARKS
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.images.preparation import ReadImage
from chexmask_u.model.predict import Prediction
from chexmask_u.model.spread import across_and_along
from chexmask_u.record import ReadError

SIDE = 8

# Images that fail, in ten thousand; the last one is the network's doing.
FATES = {"missing": 10, "damaged": 5, "timeout": 3, "invalid_prediction": 5}

# Width and height in pixels, as the sources' images may have them: drawn, not measured.
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "chestx-ray8": ((1024, 1024),),
    "chexpert": ((2320, 2828), (2828, 2320), (2022, 2022), (2320, 2828)),
    "mimic-cxr-jpg": ((2544, 3056), (3056, 2544), (2544, 3056), (2022, 2022)),
    "padchest": ((2494, 2048), (3016, 2992), (4248, 3480), (2142, 2142)),
    "vindr-cxr": ((2336, 2836), (2880, 2304), (3072, 3072), (2304, 2880)),
}

# Most pixels of black border that preparation crops on a side.
BORDERS = {"mimic-cxr-jpg": 60, "padchest": 120}

# Centre and half axes of each organ, pixels of the 1024 frame.
_ELLIPSES = {"right_lung": (330, 480, 150, 330), "left_lung": (720, 480, 140, 320), "heart": (560, 690, 170, 130)}
_WAVES = 4


def stream(record_id: str, purpose: str) -> np.random.Generator:
    """Numbers that hang on a record's id alone, as the product's own draws do."""
    digest = hashlib.sha256(f"{purpose}\n{record_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def fate(record_id: str) -> str | None:
    """Why the record's image fails, or None."""
    lot = int(stream(record_id, "fate").integers(10_000))
    for reason, share in FATES.items():
        if lot < share:
            return reason
        lot -= share
    return None


def uri(record_id: str) -> str:
    """Where the image of a record would be; the workers find its id in it."""
    return f"/drawn/{record_id}"


def _record_id(uri: str) -> str:
    return uri.removeprefix("/drawn/")


def fetch(uri: str, *, max_bytes: int) -> bytes:
    """In place of the storage: the object's bytes are its URI."""
    if fate(_record_id(uri)) == "missing":
        raise ReadError("missing", f"{uri}: no such object")
    return uri.encode()


class Decoder:
    """In place of the child process that decodes."""

    def read(self, data: bytes, *, source: str, **_: Any) -> ReadImage:
        record_id = _record_id(data.decode())
        reason = fate(record_id)
        if reason in ("damaged", "timeout"):
            raise ReadError(reason, f"{reason} as drawn")
        lots = stream(record_id, "size")
        width, height = SIZES[source][int(lots.integers(len(SIZES[source])))]
        left, top, right, bottom = (int(lot) for lot in lots.integers(0, BORDERS.get(source, 0) + 1, 4))
        kept_width, kept_height = width - left - right, height - top - bottom
        side = max(kept_width, kept_height)
        pads = (side - kept_width) // 2, (side - kept_height) // 2
        letterbox = Letterbox(left, top, kept_width, kept_height, *pads, FRAME / side)
        return ReadImage(np.zeros((SIDE, SIDE), np.uint8), height, width, letterbox)


def _shapes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean contours [240] and the ways in which they vary [ways, 240]: shift, and waves along each contour."""
    mean = np.zeros((N_LANDMARKS, 2))
    ways = []
    for organ, (x, y, half_width, half_height) in _ELLIPSES.items():
        part = LANDMARKS[organ]
        angle = np.linspace(0, 2 * np.pi, part.stop - part.start, endpoint=False)
        direction = np.stack([half_width * np.cos(angle), half_height * np.sin(angle)], axis=1)
        mean[part] = direction + np.array([x, y])
        for wave in range(_WAVES):
            way = np.zeros((N_LANDMARKS, 2))
            way[part] = 0.1 / (wave + 1) * np.cos(wave * angle)[:, None] * direction
            ways.append(way.ravel())
    for axis in (0, 1):
        way = np.zeros((N_LANDMARKS, 2))
        way[:, axis] = 25
        ways.append(way.ravel())
    return mean.ravel(), np.stack(ways)


MEAN, WAYS = _shapes()


def draw(
    model: Any, images: Any, record_ids: Sequence[str], n_samples: int, seed: int, **_: Any
) -> tuple[Prediction, NDArray[np.float32]]:
    """In place of `predict_staged`: contours of the size and roughness of real ones, of no draws."""
    points = N_LANDMARKS * 2
    numbers = np.zeros((len(record_ids), len(WAYS) + 2 * points + 2 * LATENT_SIZE + 1))
    for row, record_id in enumerate(record_ids):
        numbers[row] = stream(record_id, "landmarks").standard_normal(numbers.shape[1])
        if fate(record_id) == "invalid_prediction":
            numbers[row] = np.nan
    ways, mean, std, latent, sigma, spread = np.split(
        numbers, np.cumsum([len(WAYS), points, points, LATENT_SIZE, LATENT_SIZE]), axis=1
    )
    frame = (-1, N_LANDMARKS, 2)
    landmarks_std = np.exp(1.2 + 0.4 * spread + 0.3 * std).reshape(frame)
    landmarks_mean = (MEAN + ways @ WAYS + 0.5 * mean).reshape(frame)
    covariance = 0.5 * landmarks_std.prod(axis=2)
    parts = (landmarks_mean, landmarks_std, covariance, *across_and_along(landmarks_mean, landmarks_std, covariance))
    prediction = Prediction(*(part.astype(np.float32) for part in (*parts, latent, np.exp(0.2 * sigma - 1))))
    return prediction, np.zeros((0, n_samples, N_LANDMARKS, 2), np.float32)


def read(batch: pa.Table, **settings: Any) -> pa.Table:
    """The product's own step, over drawn objects."""
    import importlib

    # Here in the worker the product is as it is installed.
    from chexmask_u.pipeline import _complete_and_read

    reading = importlib.import_module("chexmask_u.steps.read")
    reading.fetch, reading.sandbox.shared = fetch, Decoder()
    return _complete_and_read(batch, **settings)


class Predictor:
    """The product's own step, weights and all, with a drawing in place of the network's answer."""

    def __init__(self, **settings: Any) -> None:
        from chexmask_u.runs.replica import CountingPredictor
        from chexmask_u.steps import predict as predictor

        predictor.FRAME, predictor.predict_staged = SIDE, draw
        self.step = CountingPredictor(**settings)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self.step(batch)


if __name__ == "__main__":
    # Ray sends what this module defines by value, since no worker could import it.
    for name, replacement in (("_complete_and_read", read), ("CountingPredictor", Predictor)):
        if not hasattr(pipeline, name):
            raise AttributeError(f"chexmask_u.pipeline has no {name} any more to replace")
        setattr(pipeline, name, replacement)
    sys.exit(cli.main())
