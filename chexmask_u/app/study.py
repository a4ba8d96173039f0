"""What the page's controls ask for, and what is computed for it; no browser, no gradio."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.images import corruptions
from chexmask_u.images.letterbox import prepare
from chexmask_u.images.preparation import ReadImage
from chexmask_u.model.network import Network
from chexmask_u.pictures.segmented import encode
from chexmask_u.record import ReadError
from chexmask_u.sources import synthetic
from chexmask_u.use.segment import Segmentation, manifest_row, read_rows, segment_images
from chexmask_u.use.segment_folder import as_table, told

SOURCE = "folder"
"""What images that somebody brings are prepared as, and named after: the default of `segment`."""

SAMPLES = (9, 3, 2, 6)
"""Which persons of the drawn population are offered as samples."""


@dataclass(frozen=True, eq=False)
class Case:
    """An image that somebody looks at.

    Attributes:
        name: of its file, without folders.
        image: as it was prepared.
    """

    name: str
    image: ReadImage

    @property
    def record_id(self) -> str:
        """As `segment` names a file of that name."""
        return f"{SOURCE}/{self.name}"


@dataclass(frozen=True)
class Choice:
    """What the controls say.

    Attributes:
        samples: draws N.
        seed: fixes the draws and the noise.
        side: of a black square that hides a part of the image, in pixels of the 1024 frame; 0 for none.
        x, y: its middle, likewise.
        noise: standard deviation of Gaussian noise, in grey levels of 255.
    """

    samples: int = 50
    seed: int = 0
    side: int = 0
    x: int = FRAME // 2
    y: int = FRAME // 2
    noise: float = 0.0

    @property
    def clean(self) -> Choice:
        """The same draws of the image as it is."""
        return Choice(self.samples, self.seed)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the page shows: the segmentation of the image as the controls change it, and how unsure the clean one is.

    Attributes:
        case, choice: what it is of.
        result: of the changed image.
        before: record of the image as it is, with the same draws.
    """

    case: Case
    choice: Choice
    result: Segmentation
    before: Mapping[str, Any]

    def under(self) -> NDArray[np.bool_]:
        """Which landmarks lie under the black square, bool [120]."""
        points = self.result.image.letterbox.to_frame(self.result.landmarks)
        corner = corruptions.corners_around((self.choice.x, self.choice.y), self.choice.side)
        return corruptions.is_covered(points, corner, self.choice.side)

    @property
    def stem(self) -> str:
        """What files made of it are called: by the image's name, and "changed" where the controls changed it."""
        stem = str(PurePosixPath(self.case.name).with_suffix(""))
        return stem if self.choice == self.choice.clean else f"{stem}-changed"


def opened(path: Path, name: str, max_side: int) -> Case:
    """A file that somebody brought, read in the sandbox as `read` reads it.

    Args:
        path: where it lies on this machine.
        name: what its owner calls it.
        max_side: longest side in pixels that is decoded.

    Raises:
        ReadError: with the reason why it gives no image.
    """
    (image,) = read_rows([manifest_row(str(path), SOURCE, name)], max_side=max_side)
    if isinstance(image, ReadError):
        raise image
    return Case(name, image)


@cache
def sample(number: int) -> Case:
    """The sample drawing of that number, counted from 0."""
    pixels = synthetic.draw(SAMPLES[number]).image
    image, letterbox = prepare(pixels)
    return Case(f"drawing-{number + 1}.png", ReadImage(image, pixels.shape[0], pixels.shape[1], letterbox))


def see(
    case: Case,
    choice: Choice,
    model: Network,
    calibration: Calibration | None = None,
    before: Mapping[str, Any] | None = None,
) -> Seen:
    """What `segment` says of an image that is changed as the controls say.

    Args:
        case, choice: what is looked at.
        model: from `load_model`.
        calibration: of its weights; None gives no radii.
        before: as an earlier look with the same draws had it, which spares a prediction.

    Raises:
        ReadError: if the network gives nothing of a chest, or there is too little memory.
    """
    result = _segment(case, choice, model, calibration)
    if before is None:
        clean = result if choice == choice.clean else _segment(case, choice.clean, model, calibration)
        before = clean.record
    return Seen(case, choice, result, before)


def changed(image: ReadImage, choice: Choice) -> ReadImage:
    """The image with noise, and behind a black square."""
    pixels = image.image
    if choice.noise:
        pixels = corruptions.noise(pixels, choice.noise, choice.seed)
    if choice.side:
        pixels = corruptions.cover(pixels, corruptions.corners_around((choice.x, choice.y), choice.side), choice.side)
    return replace(image, image=pixels)


def masks_zip(seen: Seen) -> bytes:
    """A ZIP file of a mask per organ and the label map, named and drawn as `segment` writes them."""
    result = seen.result
    masks = {organ: result.masks[organ] * np.uint8(255) for organ in ORGANS} | {"labels": result.label_map}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for kind, pixels in masks.items():
            archive.writestr(f"{seen.stem}.{kind}.png", encode(pixels, ".png"))
    return data.getvalue()


def csv(seen: Seen) -> bytes:
    """The table of one row that `segment` writes of an image."""
    row = {"image": seen.case.name, "record_id": seen.case.record_id, **told(seen.result)}
    return as_table([row]).encode()


def _segment(case: Case, choice: Choice, model: Network, calibration: Calibration | None) -> Segmentation:
    if calibration is not None and choice.samples < calibration.least_draws:
        calibration = None
    (result,) = segment_images(
        [manifest_row("", SOURCE, case.name)],
        [changed(case.image, choice)],
        model,
        n_samples=choice.samples,
        seed=choice.seed,
        calibration=calibration,
    )
    if isinstance(result, ReadError):
        raise result
    return result
