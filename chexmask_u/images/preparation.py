"""Bytes of an image file -> uint8 1024x1024, as its source is prepared, and how that maps to the original."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u import sources
from chexmask_u.images.decode import decode_with_spacing
from chexmask_u.images.letterbox import BlankImageError, Letterbox, prepare
from chexmask_u.images.spacing import Spacing
from chexmask_u.record import ReadError
from chexmask_u.sources.base import Preparation


@dataclass(frozen=True)
class ReadImage:
    """A prepared image uint8 [1024, 1024], its original size in pixels, and how one maps to the other.

    `spacing` is that of the original pixels, where a DICOM file tells.
    """

    image: NDArray[np.uint8]
    height: int
    width: int
    letterbox: Letterbox
    spacing: Spacing | None = None


def read_bytes(data: bytes, *, source: str, max_side: int, preparation: Preparation = "published") -> ReadImage:
    """Decode and prepare an image file's bytes as `source` is prepared, with or without its lossy compression.

    Raises:
        ReadError: with the reason why not.
    """
    recipe = sources.get(source)
    image, spacing = decode_with_spacing(
        data, max_side=max_side, dicom_standard=recipe.dicom_standard, full_range=recipe.full_range
    )
    try:
        prepared, letterbox = prepare(image, crop_border=recipe.crop_border)
    except BlankImageError as error:
        raise ReadError("blank", str(error)) from error
    if recipe.jpeg_quality is not None and preparation == "published":
        prepared = _through_jpeg(prepared, recipe.jpeg_quality)
    return ReadImage(prepared, image.shape[0], image.shape[1], letterbox, spacing)


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What is read of an image uint8 [H, W] that was saved as JPEG of that quality."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)
