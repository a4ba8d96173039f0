"""What is drawn on matplotlib axes, in original pixels: an image, outlines by organ, landmarks and their bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS
from chexmask_u.images.preparation import ReadImage
from chexmask_u.pictures.scale import BACKGROUND, BRIGHTNESS, LIMITS, OUTLINES, colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAND = 0.3

# Side in pixels of the layer that a band is painted in.
_LAYER = 1024

# Fractions of a pixel, in bits, that OpenCV places a disc to.
_BITS = 4


def show_image(axes: Axes, image: ReadImage | NDArray[Any] | None, height: int, width: int) -> None:
    """The image, dimmed, or a dark ground without one.

    Args:
        axes: to draw on.
        image: as it was prepared; or grey [height, width] or colour [height, width, 3], original pixels.
        height, width: of the original image.
    """
    from matplotlib.patches import Rectangle

    axes.set_facecolor(BACKGROUND)
    if isinstance(image, ReadImage):
        (left, top), (right, bottom) = image.letterbox.to_original(np.array([[0, 0], [FRAME, FRAME]]))
        extent = (left, right, bottom, top)
        axes.imshow(image.image, "gray", aspect="auto", interpolation="bilinear", vmin=0, vmax=255, extent=extent)
    elif image is not None:
        axes.imshow(image, "gray", extent=(0, width, height, 0))
    if image is not None:
        dimmed = Rectangle((0, 0), width, height, facecolor="black", edgecolor="none", alpha=1 - BRIGHTNESS, zorder=0.5)
        axes.add_patch(dimmed)
    axes.set(xlim=(0, width), ylim=(height, 0))


def show_outlines(axes: Axes, landmarks: NDArray[Any], width: float = 1.4) -> None:
    """The closed contour of each organ of landmarks [120, 2], in its own colour."""
    for organ, nodes in LANDMARKS.items():
        ring = np.vstack([landmarks[nodes], landmarks[nodes][:1]])
        axes.plot(*ring.T, color="black", alpha=0.45, linewidth=2 * width, solid_joinstyle="round", zorder=2)
        axes.plot(*ring.T, color=OUTLINES[organ], linewidth=width, solid_joinstyle="round", zorder=2)


def show_nodes(
    axes: Axes,
    landmarks: NDArray[Any],
    pixels: NDArray[Any],
    size: float = 15,
    limits: tuple[float, float] = LIMITS,
) -> None:
    """Landmarks [120, 2] as dots in the colours of their pixels [120] of the 1024 frame."""
    x, y = landmarks.T
    axes.scatter(x, y, s=size, color=colours(pixels, limits), edgecolors="white", linewidths=0.3, zorder=4)


def show_ellipses(
    axes: Axes,
    landmarks: NDArray[Any],
    std: NDArray[Any],
    pixels: NDArray[Any],
    limits: tuple[float, float] = LIMITS,
) -> None:
    """An ellipse of one standard deviation [120, 2], original pixels, at each landmark, coloured by `pixels` [120]."""
    from matplotlib.collections import EllipseCollection

    upright, (width, height), edge = np.zeros(len(landmarks)), 2 * std.T, colours(pixels, limits)
    place: dict[str, Any] = {"offsets": landmarks, "offset_transform": axes.transData}
    ellipses = EllipseCollection(width, height, upright, units="xy", **place)
    ellipses.set(zorder=3, facecolor=edge * [1, 1, 1, 0.45], edgecolor=edge)
    axes.add_collection(ellipses)


def show_band(
    axes: Axes,
    landmarks: NDArray[Any],
    pixels: NDArray[Any],
    scale: float,
    height: int,
    width: int,
    limits: tuple[float, float] = LIMITS,
) -> None:
    """A disc of so many pixels around each landmark, all together one veil: it shows from afar what is unsure.

    Where discs overlap the smallest is seen.

    Args:
        axes: to draw on.
        landmarks: [120, 2], original pixels.
        pixels: [120], of the 1024 frame.
        scale: pixels of the 1024 frame per original pixel.
        height, width: of the original image.
        limits: of the colours.
    """
    zoom = _LAYER / max(height, width)
    layer = np.zeros((round(height * zoom), round(width * zoom), 4), np.uint8)
    paint = np.rint(255 * colours(pixels, limits)).astype(int)
    for node in np.argsort(-pixels):
        x, y = np.rint(landmarks[node] * zoom * 2**_BITS).astype(int).tolist()
        radius = round(float(pixels[node]) / scale * zoom * 2**_BITS)
        cv2.circle(layer, (x, y), radius, paint[node].tolist(), cv2.FILLED, cv2.LINE_8, _BITS)
    axes.imshow(layer, aspect="auto", alpha=_BAND, extent=(0, width, height, 0), zorder=1)
    axes.set(xlim=(0, width), ylim=(height, 0))
