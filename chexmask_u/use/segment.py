"""One image, one picture: masks, landmarks, measurements and doubts of a radiograph, without a manifest or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u import record, storage
from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.calibration import columns
from chexmask_u.calibration.calibration import Calibration, chosen
from chexmask_u.images import memory
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.images.preparation import ReadImage
from chexmask_u.images.spacing import Spacing
from chexmask_u.model.device import choose
from chexmask_u.model.network import Network
from chexmask_u.model.predict import Prediction
from chexmask_u.pictures import segmented
from chexmask_u.pictures.scale import Shown
from chexmask_u.record import ReadError
from chexmask_u.settings import AppSettings, SegmentSettings
from chexmask_u.steps.mask import organ_mask, to_original
from chexmask_u.steps.predict import implausible, predict_in_memory
from chexmask_u.steps.read import read
from chexmask_u.use import doubts
from chexmask_u.use.analysis import by_region, landmark_radius, landmark_uncertainty
from chexmask_u.use.measurements import Measurement, measure
from chexmask_u.weight_files import DEMO, load_model, say_if_demonstration


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """What the network makes of one image; a notebook shows it as a picture.

    Attributes:
        record_id: names the draws, together with the seed.
        image: as it was prepared, and how that maps to the original.
        record: as in a release's landmark config, with radii and `ood_score` where there is a calibration; what
            `trusted_landmarks`, `draw_record` and others take.
        masks: by organ, uint8 {0, 1} [height, width], original pixels.
        draws: float32 [N, 120, 2], original pixels.
        measurements: by name; see `use.measurements`.
        warnings: what speaks against taking it as it is, in words.
    """

    record_id: str
    image: ReadImage
    record: Mapping[str, Any]
    masks: Mapping[str, NDArray[np.uint8]]
    draws: NDArray[np.float32]
    measurements: Mapping[str, Measurement]
    warnings: tuple[str, ...]

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """Mean of the draws, float32 [120, 2], x then y, original pixels."""
        return np.asarray(self.record["landmarks_mean"])

    @property
    def std(self) -> NDArray[np.float32]:
        """Standard deviation of the draws, float32 [120, 2], original pixels.

        It is how far the network agrees with itself, which may be less than its error.
        """
        return np.asarray(self.record["landmarks_std"])

    @property
    def uncertainty(self) -> float:
        """Mean of `std` over landmarks and axes, pixels of the 1024 frame."""
        return float(self.record["uncertainty"])

    @property
    def radius(self) -> NDArray[np.float32] | None:
        """Distance within which the annotated landmark lies in 90% of cases, float32 [120], original pixels.

        That is measured on images such as those of the calibration, and promised for no others. None without one.
        """
        radius = self.record.get("landmarks_radius")
        return None if radius is None else np.asarray(radius)

    @property
    def ood_score(self) -> float | None:
        """Percentile among known frontal chest radiographs, 0 to 100; None without a calibration that knows some."""
        return self.record.get("ood_score")

    @property
    def mean_radius(self) -> float | None:
        """Mean of `radius`, pixels of the 1024 frame."""
        return None if self.radius is None else float(self.radius.mean() * self.image.letterbox.scale)

    @property
    def spacing(self) -> Spacing | None:
        """Millimetres per pixel, where a DICOM file tells."""
        return self.image.spacing

    @property
    def label_map(self) -> NDArray[np.uint8]:
        """uint8 [height, width]: 0 outside, 1 right lung, 2 left lung, 3 heart, which wins where it meets a lung."""
        labels = np.zeros((self.image.height, self.image.width), np.uint8)
        for label, organ in enumerate(ORGANS, start=1):
            labels[self.masks[organ] > 0] = label
        return labels

    def __repr__(self) -> str:
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"Segmentation({self.record_id!r}, {self.image.width} x {self.image.height} pixels,"
            f" cardiothoracic ratio {self.measurements['cardiothoracic_ratio']}, {self.trust()}{warned})"
        )

    def _repr_png_(self) -> bytes:
        return segmented.encode(self.picture(), ".png")

    def trust(self) -> str:
        """Spread, radius and score in a few words."""
        words = [f"uncertainty {self.uncertainty:.1f} px"]
        words += [] if self.mean_radius is None else [f"radius {self.mean_radius:.0f} px"]
        words += [] if self.ood_score is None else [f"ood_score {self.ood_score:.0f}"]
        return ", ".join(words)

    def picture(self) -> NDArray[np.uint8]:
        """Contours by organ and landmarks coloured by their radius, or by their std where there is no calibration.

        Returns:
            uint8 [rows, columns, 3], RGB.
        """
        pixels, shown = shown_pixels(self.record)
        ratio = self.measurements["cardiothoracic_ratio"].value
        calibrated = shown == "radius"
        return segmented.draw(
            self.image,
            self.landmarks,
            pixels,
            shown,
            title=PurePosixPath(self.record_id).name,
            note=f"cardiothoracic ratio {ratio:.2f}, {self.trust()}{'' if calibrated else ', no calibration'}",
            warning="; ".join(self.warnings),
        )


def segment(
    path: str | Path,
    model: str | Network = DEMO,
    n_samples: int = 50,
    seed: int = 0,
    source: str = "folder",
    record_id: str | None = None,
    calibration: str | Calibration | None = None,
) -> Segmentation:
    """Contours, masks and measurements of one image, the same as `generate` and `release` make of it.

    Args:
        path: PNG, JPEG or DICOM, as a path or an fsspec URL.
        model: from `load_model`, or what that takes.
        n_samples: draws N.
        seed: fixes the draws, together with the record's id.
        source: dataset that the image is of, and is prepared as; any name for your own.
        record_id: default: "source/file name", as `manifest folder` names an image that lies in no folder below.
        calibration: of the weights, from `load_calibration`, or what that takes; "none" for none. Default: the one that
            lies beside the weights, if `model` names them or they are the bundled ones.

    Raises:
        ReadError: with the file and the reason, if it gives no record.
        CheckpointError: if the weights cannot be loaded.
        InputError: if the calibration is none, of other weights, or of many more draws.
    """
    uri = storage.normalise(storage.as_text(path, "path"))
    image_id = PurePosixPath(uri).name
    row = manifest_row(uri, source, image_id) | ({} if record_id is None else {"record_id": record_id})
    network = model if isinstance(model, Network) else _loaded(model)
    own = _calibration(network, DEMO if isinstance(model, Network) else model, calibration, n_samples)
    (result,) = segment_rows([row], network, n_samples=n_samples, seed=seed, calibration=own)
    if isinstance(result, ReadError):
        raise ReadError(result.reason, f"{storage.redact(str(path))}: {result}") from result
    return result


def _calibration(
    model: Network, weights: str, calibration: str | Calibration | None, samples: int
) -> Calibration | None:
    """The calibration that is given for a network, or its weights' own; see `segment`.

    Raises:
        InputError: if it is none, of other weights, or of many more draws.
    """
    sha256 = model.sha256 or ""
    if isinstance(calibration, Calibration):
        calibration.check_weights(sha256, "calibration")
        calibration.check_draws(samples, "calibration")
        return calibration
    return chosen(calibration, weights, sha256, samples)


def load(settings: SegmentSettings | AppSettings) -> tuple[Network, Calibration | None]:
    """The network that a verb's settings name, and the calibration that is used with it.

    Raises:
        InputError: if there is no such device, or the calibration is none, of other weights, or of many more draws.
        CheckpointError: if the weights cannot be loaded.
    """
    device = choose(settings.device)
    model = load_model(settings.weights, device=device, sha256=settings.weights_sha256)
    if device == "cpu":
        memory.keep_freed()
    # Visitors of a page choose how many draws they want.
    samples = settings.samples if isinstance(settings, SegmentSettings) else None
    calibration = chosen(settings.calibration, settings.weights, model.sha256 or "", samples)
    say_if_demonstration(settings.weights)
    return model, calibration


def manifest_row(uri: str, source: str, image_id: str) -> dict[str, str]:
    """The manifest's row of an image, as `manifest folder` writes it."""
    return {"record_id": f"{source}/{image_id}", "uri": uri, "source": source, "image_id": image_id}


def read_rows(rows: Sequence[dict[str, str]], *, max_side: int = 10_000) -> list[ReadImage | ReadError]:
    """The prepared image of each manifest row, as the read step makes it, or the reason why there is none.

    Args:
        rows: of a manifest.
        max_side: longest side in pixels that is decoded.
    """
    table = read(pa.Table.from_pylist(rows, schema=record.MANIFEST), max_side=max_side)
    return [
        ReadImage(
            np.frombuffer(pixels.as_buffer(), np.uint8).reshape(FRAME, FRAME),
            row["height"],
            row["width"],
            Letterbox.from_row(row["letterbox"]),
            Spacing.from_row(row["spacing"]),
        )
        if row["status"] == record.OK
        else ReadError(row["reason"], row["error"] + storage.nearest(row["uri"]))
        for row, pixels in zip(table.drop_columns("image").to_pylist(), table["image"], strict=True)
    ]


def segment_rows(
    rows: Sequence[dict[str, str]],
    model: Network,
    *,
    n_samples: int = 50,
    seed: int = 0,
    max_side: int = 10_000,
    calibration: Calibration | None = None,
    unsure: float | None = None,
) -> Iterator[Segmentation | ReadError]:
    """One segmentation per manifest row, in their order, or the reason why there is none.

    All images are read, and predicted, before the first is given.

    Args:
        rows: of a manifest.
        model: from `load_model`.
        n_samples, seed: as `predict` takes them.
        max_side: longest side in pixels that is decoded.
        calibration: of the weights; None gives no radii.
        unsure: pixels of the 1024 frame, see `doubts.unsure`.
    """
    images = read_rows(rows, max_side=max_side)
    yield from segment_images(
        rows, images, model, n_samples=n_samples, seed=seed, calibration=calibration, unsure=unsure
    )


def segment_images(
    rows: Sequence[Mapping[str, str]],
    images: Sequence[ReadImage | ReadError],
    model: Network,
    *,
    n_samples: int = 50,
    seed: int = 0,
    calibration: Calibration | None = None,
    unsure: float | None = None,
) -> Iterator[Segmentation | ReadError]:
    """As `segment_rows`, of images that `read_rows` gave, whose pixels may have been changed since."""
    there = {index: image for index, image in enumerate(images) if isinstance(image, ReadImage)}
    pixels = [image.image for image in there.values()]
    outcome = predict_in_memory(
        model,
        np.stack(pixels) if pixels else np.zeros((0, FRAME, FRAME), np.uint8),
        [rows[index]["record_id"] for index in there],
        n_samples,
        seed,
        with_draws=True,
    )
    faults = implausible(outcome.prediction)
    places = {index: place for place, index in enumerate(there)}
    for index, (row, image) in enumerate(zip(rows, images, strict=True)):
        if isinstance(image, ReadError):
            yield image
            continue
        place = places[index]
        if place in outcome.too_big:
            yield ReadError("out_of_memory", outcome.too_big[place])
        elif place in faults:
            yield ReadError("invalid_prediction", faults[place])
        else:
            try:
                yield _segmentation(row, image, outcome.prediction, outcome.draws[place], place, calibration, unsure)
            except Exception as error:
                yield ReadError("internal", storage.explain(error))


def _segmentation(
    row: Mapping[str, str],
    image: ReadImage,
    prediction: Prediction,
    draws: NDArray[np.float32],
    index: int,
    calibration: Calibration | None,
    unsure: float | None,
) -> Segmentation:
    """Of one image of a prediction, and its draws [N, 120, 2] in pixels of the 1024 frame."""
    made = _record(row, image, prediction, index, calibration)
    landmarks = made["landmarks_mean"]
    drawn = image.letterbox.to_original(draws).astype(np.float32)
    pixels, shown = shown_pixels(made)
    return Segmentation(
        record_id=row["record_id"],
        image=image,
        record=made,
        masks={organ: organ_mask(landmarks, organ, image.height, image.width) for organ in ORGANS},
        draws=drawn,
        measurements=measure(landmarks, drawn, image.spacing),
        warnings=(
            *doubts.out_of_proportion(image.spacing),
            *doubts.unusual(made.get("ood_score")),
            *doubts.implausible(landmarks, image.letterbox, image.height, image.width),
            *doubts.unsure(by_region(pixels), shown, unsure),
        ),
    )


def _record(
    row: Mapping[str, str], image: ReadImage, prediction: Prediction, index: int, calibration: Calibration | None
) -> dict[str, Any]:
    """A record's columns, as the mask step and a release with that calibration make them."""
    made: dict[str, Any] = {
        "record_id": row["record_id"],
        "source": row["source"],
        "image_id": row["image_id"],
        "height": image.height,
        "width": image.width,
        **to_original(image.letterbox, {name: values[index] for name, values in vars(prediction).items()}),
        "uncertainty": float(prediction.landmarks_std[index].mean()),
        "latent_mean": prediction.latent_mean[index],
        "latent_std": prediction.latent_std[index],
        "latent_uncertainty": float(prediction.latent_std[index].mean()),
        "letterbox": image.letterbox.to_row(),
    }
    return made if calibration is None else made | columns.of_record(made, calibration)


def shown_pixels(made: Mapping[str, Any]) -> tuple[NDArray[np.float64], Shown]:
    """Radius of each landmark of a record, float64 [120], pixels of the 1024 frame, or its std where it has none."""
    if "landmarks_radius" in made:
        return landmark_radius(made), "radius"
    return landmark_uncertainty(made), "std"


@cache
def _loaded(weights: str) -> Network:
    """Loaded once, for whoever segments one image after the other."""
    return load_model(weights)
