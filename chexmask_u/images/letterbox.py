"""Original pixels <-> the 1024 frame: crop, centred pad, scale; exactly invertible for points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME

# Upstream's border crop keeps what is brighter than this grey value.
BORDER_GREY = 1


@dataclass(frozen=True)
class Letterbox:
    """What was done to an image: frame = (original - crop + pad) * scale on each axis.

    Coordinates are continuous, x then y, and scale about the image's corner, as the published landmarks do. Crop and
    pad are in original pixels; `scale` is frame pixels per original pixel.
    """

    crop_left: int
    crop_top: int
    crop_width: int
    crop_height: int
    pad_left: int
    pad_top: int
    scale: float

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Letterbox:
        """From the struct of a record's ``letterbox`` column."""
        return cls(**row)

    def to_row(self) -> dict[str, Any]:
        """As the struct of a record's ``letterbox`` column."""
        return asdict(self)

    def to_frame(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Points float [..., 2] in original pixels -> pixels of the 1024 frame."""
        return (np.asarray(points, np.float64) + self._shift()) * self.scale

    def to_original(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Points float [..., 2] in pixels of the 1024 frame -> original pixels."""
        return np.asarray(points, np.float64) / self.scale - self._shift()

    def spread_to_original(self, spread: NDArray[Any]) -> NDArray[np.float64]:
        """Standard deviations in frame pixels -> original pixels: they scale and do not shift."""
        return np.asarray(spread, np.float64) / self.scale

    def spread_to_frame(self, spread: NDArray[Any]) -> NDArray[np.float64]:
        """Standard deviations in original pixels -> frame pixels."""
        return np.asarray(spread, np.float64) * self.scale

    def covariance_to_original(self, covariance: NDArray[Any]) -> NDArray[np.float64]:
        """Covariances of x and y in pixels² of the frame -> original pixels²."""
        return np.asarray(covariance, np.float64) / self.scale**2

    def _shift(self) -> NDArray[np.float64]:
        return np.array([self.pad_left - self.crop_left, self.pad_top - self.crop_top], np.float64)


class BlankImageError(ValueError):
    """Nothing is left of an image once its border is cropped."""


def prepare(image: NDArray[np.uint8], *, crop_border: bool = False) -> tuple[NDArray[np.uint8], Letterbox]:
    """Crop, pad to a centred square and resize, as the published preparation does.

    Args:
        image: uint8 [H, W], grey.
        crop_border: drop the rows and columns at the border that hold no pixel above 1 (MIMIC-CXR-JPG and PadChest).

    Returns:
        uint8 [1024, 1024] and the Letterbox that maps between the two.

    Raises:
        BlankImageError: if `crop_border` leaves nothing.
    """
    top, left = 0, 0
    height, width = image.shape
    if crop_border:
        left, top, width, height = cv2.boundingRect((image > BORDER_GREY).astype(np.uint8))
        if not width or not height:
            raise BlankImageError(f"no pixel is brighter than {BORDER_GREY}")
        image = image[top : top + height, left : left + width]
    side = max(height, width)
    pad_left, pad_top = (side - width) // 2, (side - height) // 2
    if height != width:
        square = np.zeros((side, side), np.uint8)
        square[pad_top : pad_top + height, pad_left : pad_left + width] = image
        image = square
    if side != FRAME:
        image = np.asarray(cv2.resize(image, (FRAME, FRAME), interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.ascontiguousarray(image), Letterbox(left, top, width, height, pad_left, pad_top, FRAME / side)
