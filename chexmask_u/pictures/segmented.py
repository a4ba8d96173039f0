"""The picture of one image: contours by organ, and every landmark in the colour of its radius or spread."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.images.preparation import ReadImage
from chexmask_u.pictures.contours import show_band, show_image, show_nodes, show_outlines
from chexmask_u.pictures.scale import BACKGROUND, LIMITS, OUTLINES, UNIT, WORDS, Shown, pixel_scale, ticks_between

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Pixels of the picture: the image's longer side, the bands above and below it, the margin and the colour bar.
_SIDE, _TOP, _BOTTOM, _MARGIN, _BAR = 960, 46, 62, 14, 250
_DPI = 100
# Words need so much, however narrow an image is.
_LEAST_WIDTH = 560
# Width of an average character, for each point of its size.
_PIXELS_PER_POINT = 0.8

_INK, _MUTED, _WARNING = "#eef1f2", "#9aa4a9", "#ffcc66"


def draw(
    image: ReadImage,
    landmarks: NDArray[Any],
    pixels: NDArray[Any],
    shown: Shown,
    *,
    title: str,
    note: str,
    warning: str,
) -> NDArray[np.uint8]:
    """Draw it: uint8 [rows, columns, 3], red, green, blue.

    Args:
        image: as it was prepared.
        landmarks: [120, 2], original pixels.
        pixels: [120], of the 1024 frame.
        shown: what they are.
        title, note: above the image, on the left and on the right; the title is cut where it is too long.
        warning: below the image, cut likewise; "" for none.
    """
    # Only who draws waits for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = _SIDE / max(image.height, image.width)
    shown_width, shown_height = image.width * scale, image.height * scale
    width, height = max(shown_width, _LEAST_WIDTH) + 2 * _MARGIN, shown_height + _TOP + _BOTTOM
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    left = (width - shown_width) / 2
    axes = figure.add_axes((left / width, _BOTTOM / height, shown_width / width, shown_height / height))
    show_image(axes, image, image.height, image.width)
    show_band(axes, landmarks, pixels, image.letterbox.scale, image.height, image.width)
    show_outlines(axes, landmarks)
    show_nodes(axes, landmarks, pixels)
    axes.set_axis_off()

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
    _write(figure, right - _BAR / 2, 11, f"{WORDS[shown]}, {UNIT}", 7.5, _MUTED, "center")
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


def _draw_scale(axes: Axes) -> None:
    assert axes.figure is not None
    colour_bar = axes.figure.colorbar(pixel_scale(), cax=axes, orientation="horizontal")
    colour_bar.outline.set_visible(False)
    axes.minorticks_off()
    ticks = ticks_between(LIMITS)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
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
