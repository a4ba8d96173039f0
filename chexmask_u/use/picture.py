"""The picture of one image: contours by organ, and every landmark in the colour of its standard deviation."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS
from chexmask_u.images.preparation import ReadImage

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

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
_BACKGROUND, _INK, _MUTED, _WARNING = "#101214", "#eef1f2", "#9aa4a9", "#ffcc66"

# Bone and diaphragm are near white: dimmed, every colour stands out from them.
_WHITE = 255 / 0.72

# Characters of a line of warnings, by a picture's width in pixels beside the colour bar.
_PIXELS_PER_CHARACTER = 6.2


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
        title, note: above the image, on the left and on the right.
        warning: below the image, cut where it is too long; "" for none.
    """
    # Only who draws waits for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

    scale = _SIDE / max(image.height, image.width)
    inner_width, inner_height = image.width * scale, image.height * scale
    width, height = max(inner_width, _LEAST_WIDTH) + 2 * _MARGIN, inner_height + _TOP + _BOTTOM
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    left = (width - inner_width) / 2
    axes = figure.add_axes((left / width, _BOTTOM / height, inner_width / width, inner_height / height))
    (x0, y0), (x1, y1) = image.letterbox.to_original(np.array([[0, 0], [FRAME, FRAME]]))
    axes.imshow(
        image.image, cmap="gray", vmin=0, vmax=_WHITE, extent=(x0, x1, y1, y0), interpolation="bilinear", aspect="auto"
    )
    for organ, nodes in LANDMARKS.items():
        ring = np.vstack([landmarks[nodes], landmarks[nodes][:1]])
        axes.plot(*ring.T, color="black", alpha=0.45, linewidth=2.4, solid_joinstyle="round")
        axes.plot(*ring.T, color=OUTLINES[organ], linewidth=1.1, solid_joinstyle="round")
    mappable = std_scale()
    colours = mappable.to_rgba(std)
    # A disc of one standard deviation shows from afar where the network is unsure, and hides behind a sure landmark.
    size = 2 * std / image.letterbox.scale
    axes.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros_like(std),
            units="xy",
            offsets=landmarks,
            offset_transform=axes.transData,
            facecolors=colours,
            alpha=0.4,
            zorder=3,
        )
    )
    axes.scatter(landmarks[:, 0], landmarks[:, 1], s=15, color=colours, edgecolors="white", linewidths=0.3, zorder=4)
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))
    axes.set_axis_off()

    text: dict[str, Any] = {"va": "center", "parse_math": False}
    figure.text(_MARGIN / width, 1 - _TOP / 2 / height, title, color=_INK, fontsize=9.5, **text)
    figure.text(1 - _MARGIN / width, 1 - _TOP / 2 / height, note, color=_MUTED, fontsize=8.5, ha="right", **text)
    x = _MARGIN
    for organ, colour in OUTLINES.items():
        name = organ.replace("_", " ")
        figure.text(x / width, (_BOTTOM - 20) / height, name, color=colour, fontsize=8.5, **text)
        x += 8 + 7 * len(name)
    most = int((width - 2 * _MARGIN - _BAR) / _PIXELS_PER_CHARACTER)
    warning = warning if len(warning) <= most else f"{warning[: most - 1]}…"
    figure.text(_MARGIN / width, 14 / height, warning, color=_WARNING, fontsize=8, **text)
    bar = figure.add_axes(((width - _MARGIN - _BAR) / width, (_BOTTOM - 24) / height, _BAR / width, 8 / height))
    colour_bar = figure.colorbar(mappable, cax=bar, orientation="horizontal", ticks=_TICKS)
    colour_bar.outline.set_visible(False)
    bar.minorticks_off()
    bar.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
    bar.tick_params(colors=_MUTED, labelsize=7.5, length=0, pad=3)
    label = f"std of a landmark, pixels of the {FRAME} frame"
    figure.text(
        (width - _MARGIN - _BAR / 2) / width, 11 / height, label, color=_MUTED, fontsize=7.5, ha="center", **text
    )

    with warnings.catch_warnings():
        # A name may have letters that the font lacks.
        warnings.simplefilter("ignore", UserWarning)
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def encode(pixels: NDArray[np.uint8], suffix: str) -> bytes:
    """A file of pixels uint8 [rows, columns], grey, or [rows, columns, 3], red, green, blue; suffix as ".png"."""
    _, data = cv2.imencode(suffix, pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return data.tobytes()
