"""The picture of one image: contours by organ, and every landmark in the colour of its standard deviation."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS
from chexmask_u.images.preparation import ReadImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

LIMITS = (1.0, 50.0)
"""Standard deviations, in pixels of the 1024 frame, where the logarithmic colours begin and end, in every picture."""

OUTLINES = {"right_lung": "#56b4e9", "left_lung": "#e69f00", "heart": "#ff8ac4"}
"""Colours of the contours, which colour-blind people tell apart too (after Okabe and Ito)."""

_TICKS = (1, 2, 5, 10, 20, 50)

# Pixels of the picture: the image's longer side, the bands above and below it, the margin and the colour bar.
_SIDE, _TOP, _BOTTOM, _MARGIN, _BAR = 960, 46, 62, 14, 250
_DPI = 100
# Words need so much, however narrow an image is.
_LEAST_WIDTH = 560
# Width of an average character, for each point of its size.
_PIXELS_PER_POINT = 0.8

_BACKGROUND, _INK, _MUTED, _WARNING = "#101214", "#eef1f2", "#9aa4a9", "#ffcc66"

# Bone and diaphragm are near white: dimmed, every colour stands out from them.
_WHITE = 255 / 0.72


def std_scale(limits: tuple[float, float] = LIMITS) -> ScalarMappable:
    """Colours of standard deviations in pixels of the 1024 frame, between two limits."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    # The darkest fifth of viridis would vanish in a radiograph.
    colours = LinearSegmentedColormap.from_list("uncertainty", colormaps["viridis"](np.linspace(0.2, 1, 256)))
    return ScalarMappable(LogNorm(*limits, clip=True), colours)


def draw(
    image: ReadImage,
    landmarks: NDArray[np.float32],
    std: NDArray[np.float64],
    *,
    title: str,
    note: str,
    warning: str,
) -> NDArray[np.uint8]:
    """Draw it: uint8 [rows, columns, 3], red, green, blue.

    Args:
        image: as it was prepared.
        landmarks: [120, 2], original pixels.
        std: [120], pixels of the 1024 frame.
        title, note: above the image, on the left and on the right; the title is cut where it is too long.
        warning: below the image, cut likewise; "" for none.
    """
    # Only who draws waits for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = _SIDE / max(image.height, image.width)
    shown_width, shown_height = image.width * scale, image.height * scale
    width, height = max(shown_width, _LEAST_WIDTH) + 2 * _MARGIN, shown_height + _TOP + _BOTTOM
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    left = (width - shown_width) / 2
    axes = figure.add_axes((left / width, _BOTTOM / height, shown_width / width, shown_height / height))
    _draw_contours(axes, image, landmarks, std)

    right, above = width - _MARGIN, height - _TOP / 2
    _write(figure, right, above, note, 8.5, _MUTED, "right")
    _write(figure, _MARGIN, above, title, 9.5, _INK, room=right - _MARGIN - _length(note, 8.5))
    x: float = _MARGIN
    for organ, colour in OUTLINES.items():
        name = organ.replace("_", " ")
        _write(figure, x, _BOTTOM - 20, name, 8.5, colour)
        x += 10 + _length(name, 8.5)
    _write(figure, _MARGIN, 14, warning, 8, _WARNING, room=right - _BAR - 2 * _MARGIN)

    colour_bar = figure.add_axes(((right - _BAR) / width, (_BOTTOM - 24) / height, _BAR / width, 8 / height))
    _draw_scale(colour_bar)
    _write(figure, right - _BAR / 2, 11, f"std of a landmark, pixels of the {FRAME} frame", 7.5, _MUTED, "center")
    with warnings.catch_warnings():
        # A name may have letters that the font lacks.
        warnings.simplefilter("ignore", UserWarning)
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def encode(pixels: NDArray[np.uint8], suffix: Literal[".png", ".jpg"]) -> bytes:
    """A file of pixels uint8 [rows, columns], grey, or [rows, columns, 3], red, green, blue."""
    # At JPEG's usual half resolution of colours thin lines would fade.
    full_colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(suffix, ordered, full_colour if suffix == ".jpg" else [])
    return data.tobytes()


def _draw_contours(axes: Axes, image: ReadImage, landmarks: NDArray[np.float32], std: NDArray[np.float64]) -> None:
    """Draw the image and what is on it, in original pixels."""
    from matplotlib.collections import EllipseCollection

    (left, top), (right, bottom) = image.letterbox.to_original(np.array([[0, 0], [FRAME, FRAME]]))
    extent = (left, right, bottom, top)
    axes.imshow(image.image, "gray", aspect="auto", interpolation="bilinear", vmin=0, vmax=_WHITE, extent=extent)
    for organ, nodes in LANDMARKS.items():
        ring = np.vstack([landmarks[nodes], landmarks[nodes][:1]])
        axes.plot(*ring.T, color="black", alpha=0.45, linewidth=2.8, solid_joinstyle="round")
        axes.plot(*ring.T, color=OUTLINES[organ], linewidth=1.4, solid_joinstyle="round")
    colours = std_scale().to_rgba(std)
    # A disc of one standard deviation shows from afar where the network is unsure, and hides behind a sure landmark.
    size, upright = 2 * std / image.letterbox.scale, np.zeros_like(std)
    discs = EllipseCollection(size, size, upright, units="xy", offsets=landmarks, offset_transform=axes.transData)
    discs.set(facecolor=colours, alpha=0.4, zorder=3)
    axes.add_collection(discs)
    x, y = landmarks.T
    axes.scatter(x, y, s=15, color=colours, edgecolors="white", linewidths=0.3, zorder=4)
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))
    axes.set_axis_off()


def _draw_scale(axes: Axes) -> None:
    assert axes.figure is not None
    colour_bar = axes.figure.colorbar(std_scale(), cax=axes, orientation="horizontal")
    colour_bar.outline.set_visible(False)
    axes.minorticks_off()
    axes.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
    axes.tick_params(colors=_MUTED, labelsize=7.5, length=0, pad=3)


def _write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    points: float,
    colour: str,
    align: Literal["left", "center", "right"] = "left",
    room: float = np.inf,
) -> None:
    """Write a line whose middle is at a height, in pixels from the lower left; cut where it would take more room."""
    from matplotlib.transforms import IdentityTransform

    if _length(text, points) > room:
        text = text[: max(0, int(room / _length("x", points)) - 1)] + "…"
    # A "$" in a name is no formula.
    style: dict[str, Any] = {"va": "center", "parse_math": False, "transform": IdentityTransform()}
    figure.text(x, y, text, fontsize=points, color=colour, ha=align, **style)


def _length(text: str, points: float) -> float:
    """Pixels that a text takes, more or less."""
    return _PIXELS_PER_POINT * points * len(text)
