"""One image, one picture: masks, landmarks, measurements and doubts of a radiograph, without a manifest or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u import record, storage
from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.images.preparation import ReadImage
from chexmask_u.images.spacing import Spacing
from chexmask_u.model.network import Network
from chexmask_u.model.predict import Prediction, predict_draws
from chexmask_u.record import ReadError
from chexmask_u.settings import UNSURE
from chexmask_u.steps.mask import organ_mask
from chexmask_u.steps.predict import implausible, is_out_of_memory
from chexmask_u.steps.read import read
from chexmask_u.use import doubts, picture
from chexmask_u.use.analysis import landmark_uncertainty, region_uncertainty
from chexmask_u.use.measurements import Measurement, measure
from chexmask_u.weight_files import load_model


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """What the network makes of one image; a notebook shows it as a picture.

    Attributes:
        record_id: names the draws, together with the seed.
        image: as it was prepared, and how that maps to the original.
        masks: by organ, uint8 {0, 1} [height, width], original pixels.
        landmarks: mean of the draws, float32 [120, 2], x then y, original pixels.
        std: standard deviation of the draws, float32 [120, 2], original pixels: how far the network agrees with itself,
            which may be less than its error.
        draws: float32 [N, 120, 2], original pixels.
        uncertainty: mean of `std` over landmarks and axes, pixels of the 1024 frame.
        spacing: millimetres per pixel, where a DICOM file tells.
        measurements: by name; see `use.measurements`.
        warnings: what speaks against taking it as it is, in words.
    """

    record_id: str
    image: ReadImage
    masks: dict[str, NDArray[np.uint8]]
    landmarks: NDArray[np.float32]
    std: NDArray[np.float32]
    draws: NDArray[np.float32]
    uncertainty: float
    spacing: Spacing | None
    measurements: dict[str, Measurement]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"Segmentation({self.record_id!r}, {self.image.width} x {self.image.height} pixels,"
            f" cardiothoracic ratio {self.measurements['cardiothoracic_ratio']},"
            f" uncertainty {self.uncertainty:.1f} px{warned})"
        )

    def _repr_png_(self) -> bytes:
        return picture.encode(self.picture(), ".png")

    @property
    def record(self) -> dict[str, Any]:
        """As a record of a release's landmark config, which `trusted_landmarks`, `draw_record` and others take."""
        return _record(self.image, self.landmarks, self.std, self.uncertainty)

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """uint8 [height, width]: 0 outside, 1 right lung, 2 left lung, 3 heart, which wins where it meets a lung."""
        labels = np.zeros((self.image.height, self.image.width), np.uint8)
        for label, organ in enumerate(ORGANS, start=1):
            labels[self.masks[organ] > 0] = label
        return labels

    def picture(self) -> NDArray[np.uint8]:
        """Contours by organ and landmarks coloured by their standard deviation: uint8 [rows, columns, 3], RGB."""
        ratio = self.measurements["cardiothoracic_ratio"].value
        note = f"cardiothoracic ratio {ratio:.2f}    uncertainty {self.uncertainty:.1f} px"
        std = landmark_uncertainty(self.record)
        return picture.draw(
            self.image,
            self.landmarks,
            std,
            title=PurePosixPath(self.record_id).name,
            note=note,
            warning="; ".join(self.warnings),
        )


def segment(
    path: str | Path,
    model: str | Network = "demo",
    n_samples: int = 50,
    seed: int = 0,
    source: str = "folder",
    record_id: str | None = None,
) -> Segmentation:
    """Contours, masks and measurements of one image, the same as `generate` makes of it.

    Args:
        path: PNG, JPEG or DICOM, as a path or an fsspec URL.
        model: from `load_model`, or what that takes.
        n_samples: draws N.
        seed: fixes the draws, together with the record's id.
        source: dataset that the image is of, and is prepared as; any name for your own.
        record_id: default: "source/file name", as `manifest folder` names an image that lies in no folder below.

    Raises:
        ReadError: with the file and the reason, if it gives no record.
        CheckpointError: if the weights cannot be loaded.
    """
    uri = storage.normalise(storage.as_text(path, "path"))
    image_id = PurePosixPath(uri).name
    row = manifest_row(uri, source, image_id) | ({} if record_id is None else {"record_id": record_id})
    network = model if isinstance(model, Network) else _loaded(model)
    (result,) = segment_rows([row], network, n_samples=n_samples, seed=seed)
    if isinstance(result, ReadError):
        raise ReadError(result.reason, f"{storage.redact(str(path))}: {result}") from result
    return result


def manifest_row(uri: str, source: str, image_id: str) -> dict[str, str]:
    """The manifest's row of an image, as `manifest folder` writes it."""
    return {"record_id": f"{source}/{image_id}", "uri": uri, "source": source, "image_id": image_id}


def segment_rows(
    rows: Sequence[dict[str, str]],
    model: Network,
    *,
    n_samples: int = 50,
    seed: int = 0,
    max_side: int = 10_000,
    unsure: float = UNSURE,
) -> Iterator[Segmentation | ReadError]:
    """One segmentation per manifest row, in their order, or the reason why there is none.

    All images are read, and predicted, before the first is given.

    Args:
        rows: of a manifest.
        model: from `load_model`.
        n_samples, seed: as `predict` takes them.
        max_side: longest side in pixels that is decoded.
        unsure: pixels of the 1024 frame, see `doubts.unsure`.
    """
    table = read(pa.Table.from_pylist(rows, schema=record.MANIFEST), max_side=max_side)
    told = table.drop_columns("image").to_pylist()
    images = {
        index: ReadImage(
            np.frombuffer(table["image"][index].as_buffer(), np.uint8).reshape(FRAME, FRAME),
            row["height"],
            row["width"],
            Letterbox.from_row(row["letterbox"]),
            Spacing.from_row(row["spacing"]),
        )
        for index, row in enumerate(told)
        if row["status"] == record.OK
    }
    names = [told[index]["record_id"] for index in images]
    predicted = dict(zip(images, _predict(model, list(images.values()), names, n_samples, seed), strict=True))
    for index, row in enumerate(told):
        if index not in images:
            yield ReadError(row["reason"], row["error"])
            continue
        result = predicted[index]
        if isinstance(result, ReadError):
            yield result
            continue
        try:
            yield _segmentation(row["record_id"], images[index], *result, unsure)
        except Exception as error:
            yield ReadError("internal", storage.explain(error))


def _predict(
    model: Network, images: Sequence[ReadImage], record_ids: Sequence[str], n_samples: int, seed: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]] | ReadError]:
    """Mean and std float32 [120, 2] and draws float32 [N, 120, 2] of each image, pixels of the 1024 frame."""
    if not images:
        return []
    stacked = np.stack([image.image for image in images])
    try:
        prediction, draws = predict_draws(model, stacked, record_ids, n_samples, seed)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = storage.explain(error)
    else:
        return [_checked(prediction, draws, index) for index in range(len(images))]
    # Not in the handler: until it ends, the exception holds the tensors of what did not fit.
    if len(images) == 1:
        return [ReadError("out_of_memory", problem)]
    each = zip(images, record_ids, strict=True)
    return [_predict(model, [image], [record_id], n_samples, seed)[0] for image, record_id in each]


def _checked(
    prediction: Prediction, draws: NDArray[np.float32], index: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]] | ReadError:
    """Mean, std and draws of one image of a batch, whose draws are float32 [B, N, 120, 2]; see `_predict`."""
    problem = implausible(prediction, index)
    if problem:
        return ReadError("invalid_prediction", problem)
    return prediction.landmarks_mean[index], prediction.landmarks_std[index], draws[index]


def _segmentation(
    record_id: str,
    image: ReadImage,
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    draws: NDArray[np.float32],
    unsure: float,
) -> Segmentation:
    """From mean and std [120, 2] and draws [N, 120, 2] in pixels of the 1024 frame."""
    letterbox = image.letterbox
    # As a record stores them: of what was rounded to float32 afterwards, others would draw another border.
    landmarks = letterbox.to_original(mean).astype(np.float32)
    spread = letterbox.spread_to_original(std).astype(np.float32)
    drawn = letterbox.to_original(draws).astype(np.float32)
    uncertainty = float(std.mean())
    regions = region_uncertainty(_record(image, landmarks, spread, uncertainty))
    return Segmentation(
        record_id=record_id,
        image=image,
        masks={organ: organ_mask(landmarks, organ, image.height, image.width) for organ in ORGANS},
        landmarks=landmarks,
        std=spread,
        draws=drawn,
        uncertainty=uncertainty,
        spacing=image.spacing,
        measurements=measure(landmarks, drawn, image.spacing),
        warnings=(
            *doubts.implausible(landmarks, letterbox, image.height, image.width),
            *doubts.unsure(regions, unsure),
        ),
    )


def _record(
    image: ReadImage, landmarks: NDArray[np.float32], std: NDArray[np.float32], uncertainty: float
) -> dict[str, Any]:
    """A record's columns, with landmarks and their std [120, 2] in original pixels."""
    return {
        "height": image.height,
        "width": image.width,
        "letterbox": image.letterbox.to_row(),
        "landmarks_mean": landmarks,
        "landmarks_std": std,
        "uncertainty": uncertainty,
    }


@cache
def _loaded(weights: str) -> Network:
    """Loaded once, for whoever segments one image after the other."""
    return load_model(weights)
