"""How figures of experiments look: colours that colour-blind people tell apart, PNG and SVG of the same."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from chexmask_u.pictures.scale import ticks_between

# Okabe and Ito's, without yellow and black, which are hard to see on white or mean something else.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#6b6b6b"
MARKERS = ("o", "s", "^", "D", "v", "P")


# A logarithmic axis with fewer ticks cannot be told from another, and sizes on it cannot be read.
_LEAST_TICKS = 3


def new(width: float, height: float) -> Figure:
    """A figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Axes, *, x: str, y: str, title: str = "") -> None:
    """Labels, with units, and as few lines as will do."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def log_y(axes: Axes) -> None:
    """A logarithmic axis whose ticks are written as plain numbers."""
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)


class _FewTicks(LogLocator):
    """Ticks at 1, 2 and 5 of every decade, and at equal distances where fewer than three of these would be seen."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        ticks = ticks_between((vmin, vmax))
        if len(ticks) < _LEAST_TICKS:
            ticks = [
                tick
                for tick in MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=_LEAST_TICKS).tick_values(vmin, vmax)
                if tick > 0
            ]
        return ticks

    def __call__(self) -> list[float]:
        assert self.axis is not None
        return self.tick_values(*sorted(self.axis.get_view_interval()))


def plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis by which sizes can be read, written as plain numbers."""
    axis.set_major_locator(_FewTicks())
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())


def boxes(axes: Axes, groups: list[ArrayLike], places: list[float], colour: str, width: float = 0.3) -> None:
    """Box plots: quartiles, whiskers to 1.5 times their distance, and every value as a point."""
    drawn = axes.boxplot(
        groups,
        positions=places,
        widths=width,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": "black"},
    )
    for box in drawn["boxes"]:
        box.set(facecolor=colour, alpha=0.55, edgecolor=colour)
    for place, values in zip(places, groups, strict=True):
        count = len(list(values))  # type: ignore[arg-type]
        axes.plot([place] * count, values, ".", color=colour, markersize=3, alpha=0.6, zorder=3)


def banded(
    axes: Axes, places: Sequence[float], found: Sequence[Mapping[str, Any]], name: str, style: Mapping[str, Any]
) -> None:
    """A line of a figure of that name, with its interval as a band."""
    axes.plot(places, [one[name] for one in found], **style)
    low, high = zip(*(one[f"{name}_interval"] for one in found), strict=True)
    axes.fill_between(places, low, high, color=style["color"], alpha=0.18)


def image(axes: Axes, pixels: NDArray, title: str) -> None:  # type: ignore[type-arg]
    """A radiograph, dimmed so that colours stand out."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=350, extent=(0, pixels.shape[1], pixels.shape[0], 0))
    axes.set_title(title, loc="left", fontsize="small")
    axes.set_xticks([])
    axes.set_yticks([])


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG; the same one gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "chexmask-u", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
