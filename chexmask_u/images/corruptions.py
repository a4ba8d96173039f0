"""Prepared radiographs made worse, or into something else, by a stated amount: pure functions of pixels and severity.

Images are uint8 [H, W], grey, and are never changed in place. What is random is fixed by a seed. Points are x then y in
pixels of the image, measured from its corner as landmarks are, so that the middle of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]

Half = Literal["left", "right", "upper", "lower"]


def generator(words: str) -> np.random.Generator:
    """Random numbers that depend on the words alone, on any machine."""
    digest = hashlib.sha256(words.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def cover(image: Image, corners: ArrayLike, side: int, grey: int = 0) -> Image:
    """Hide squares.

    Args:
        image: uint8 [H, W].
        corners: upper left corners [K, 2], x then y, whole pixels; what lies outside the image is cut off.
        side: of the squares, in pixels.
        grey: what they are filled with.
    """
    covered = image.copy()
    for left, top in np.asarray(corners, np.int64).reshape(-1, 2):
        covered[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = grey
    return covered


def corners_around(points: ArrayLike, side: int) -> NDArray[np.int64]:
    """Upper left corners [K, 2] of squares of that side in pixels around points [K, 2]."""
    return np.rint(np.asarray(points, np.float64).reshape(-1, 2) - side / 2).astype(np.int64)


def is_covered(points: ArrayLike, corners: ArrayLike, side: int) -> NDArray[np.bool_]:
    """Whether each of the points [..., 2] lies in one of the squares [K, 2]: bool [...]; NaN lies in none."""
    away = np.asarray(points, np.float64)[..., None, :] - np.asarray(corners, np.float64).reshape(-1, 2)
    return np.asarray(((away >= 0) & (away < side)).all(axis=-1).any(axis=-1), np.bool_)


def add(image: Image, grey: NDArray[np.floating]) -> Image:
    """Add grey levels [H, W] to an image, rounded and clipped to 0 to 255."""
    return np.rint(image + grey).clip(0, 255).astype(np.uint8)


def noise(image: Image, std: float, seed: int = 0) -> Image:
    """Gaussian noise of a standard deviation in grey levels; of one seed, the same field whatever its strength."""
    field = generator(f"noise\n{seed}").standard_normal(image.shape, np.float32)
    return add(image, field * np.float32(std))


def blur(image: Image, std: float) -> Image:
    """Blur by a Gaussian of a standard deviation in pixels; 0 changes nothing."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), std), np.uint8) if std else image.copy()


def contrast(image: Image, factor: float) -> Image:
    """Scale the distance of every grey level to the image's mean; 1 changes nothing, 0 leaves one grey."""
    mean = float(image.mean())
    return np.rint(mean + (image - mean) * factor).clip(0, 255).astype(np.uint8)


def gamma(image: Image, exponent: float) -> Image:
    """Raise grey, in [0, 1], to a power: below 1 brightens, above 1 darkens."""
    return np.rint(255 * (image / np.float32(255)) ** np.float32(exponent)).astype(np.uint8)


def blend(image: Image, other: Image, share: float) -> Image:
    """Lay another image of the same size over one: `share` of the other, 0 to 1.

    Raises:
        ValueError: if the sizes differ.
    """
    if image.shape != other.shape:
        raise ValueError(f"images to blend must be of one size, not {list(image.shape)} and {list(other.shape)}")
    return np.rint((1 - share) * image.astype(np.float32) + share * other.astype(np.float32)).astype(np.uint8)


def rotation(degrees: float, side: int) -> NDArray[np.float64]:
    """Matrix [2, 3] of points that turns around the middle of an image of that side; positive is anticlockwise."""
    return np.asarray(cv2.getRotationMatrix2D((side / 2, side / 2), degrees, 1.0), np.float64)


def cropping(share: float, side: int) -> NDArray[np.float64]:
    """Matrix [2, 3] of points that enlarges the middle of an image, `share` of its side, to the whole.

    Raises:
        ValueError: if the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    middle = side / 2
    return np.array([[1 / share, 0, middle - middle / share], [0, 1 / share, middle - middle / share]])


def move(image: Image, matrix: NDArray[np.float64]) -> Image:
    """An image moved by a matrix [2, 3] of points; black comes in from outside."""
    # Pixels of OpenCV are counted from the middle of the first one.
    pixels = matrix.copy()
    pixels[:, 2] += pixels[:, :2].sum(axis=1) / 2 - 0.5
    return np.asarray(cv2.warpAffine(image, pixels, image.shape[::-1]), np.uint8)


def move_points(points: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Points [..., 2] moved by a matrix [2, 3], as `move` moves the image that they lie in."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def rotate(image: Image, degrees: float) -> Image:
    """Turn a square image around its middle; positive is anticlockwise. Points go along by `rotation`."""
    return move(image, rotation(degrees, len(image)))


def crop(image: Image, share: float) -> Image:
    """Enlarge the middle of a square image, `share` of its side, to the whole. Points go along by `cropping`."""
    return move(image, cropping(share, len(image)))


def invert(image: Image) -> Image:
    """Black for white."""
    return 255 - image


def mirror(image: Image) -> Image:
    """Left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


def upside_down(image: Image) -> Image:
    """Mirrored from top to bottom."""
    return np.ascontiguousarray(image[::-1])


def quarter_turn(image: Image, turns: int = 1) -> Image:
    """Turned by so many right angles to the left."""
    return np.ascontiguousarray(np.rot90(image, turns))


def hide_half(image: Image, half: Half) -> Image:
    """One half, as it is seen, made black."""
    height, width = image.shape
    rows, columns = {
        "left": (slice(None), slice(0, width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "upper": (slice(0, height // 2), slice(None)),
        "lower": (slice(height // 2, None), slice(None)),
    }[half]
    hidden = image.copy()
    hidden[rows, columns] = 0
    return hidden


@dataclass(frozen=True)
class Corruption:
    """A corruption that grows with one number.

    Attributes:
        apply: image, severity, seed -> image.
        unit: of the severity.
        levels: severities from the one that changes nothing to one that leaves little of the image.
    """

    apply: Callable[[Image, float, int], Image]
    unit: str
    levels: tuple[float, ...]


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption(noise, "std in grey levels of 255", (0, 10, 20, 40, 80, 120, 160, 255)),
    "blur": Corruption(lambda image, std, _: blur(image, std), "std in pixels", (0, 2, 4, 8, 16, 32)),
    "contrast": Corruption(
        lambda image, lost, _: contrast(image, 1 - lost), "share taken away", (0, 0.3, 0.6, 0.8, 0.9, 0.95, 1)
    ),
    "gamma": Corruption(lambda image, power, _: gamma(image, power), "exponent", (1, 1.5, 2, 3, 5, 8)),
    "rotation": Corruption(lambda image, degrees, _: rotate(image, degrees), "degrees", (0, 5, 10, 20, 45)),
    "cropping": Corruption(
        lambda image, lost, _: crop(image, 1 - lost), "share of the side cut away", (0, 0.1, 0.2, 0.4, 0.6)
    ),
}
"""Corruptions by name, each with the severities at which it is looked at; `blend` takes a second image and is apart."""

ALTERATIONS: dict[str, Callable[[Image], Image]] = {
    "inverted": invert,
    "upside down": upside_down,
    "turned left": quarter_turn,
    "turned right": lambda image: quarter_turn(image, -1),
    "left half hidden": lambda image: hide_half(image, "left"),
    "right half hidden": lambda image: hide_half(image, "right"),
    "upper half hidden": lambda image: hide_half(image, "upper"),
    "lower half hidden": lambda image: hide_half(image, "lower"),
    "mirrored": mirror,
}
"""What makes a radiograph one that should not be in a dataset; uint8 [H, W] -> the same."""
