"""A comparison as a picture: the records that moved most, before and after."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS
from chexmask_u.pictures.contours import show_image, show_nodes, show_outlines
from chexmask_u.pictures.scale import LIMITS, OUTLINES, UNIT, WORDS, pixel_scale, ticks_between
from chexmask_u.releases.diff.compare import Mover

_COLUMNS = 4
_LABEL_LENGTH = 34
_BEFORE = "#e6eaeb"


def draw(
    movers: Sequence[Mover],
    title: str,
    names: tuple[str, str] = ("before", "after"),
    images: Mapping[str, NDArray[np.uint8]] | None = None,
) -> bytes:
    """PNG of the contours before and after, one panel per record, in the 1024 frame; no image is needed.

    Landmarks have the colours of how far they moved.

    Args:
        movers: of the panels.
        title: above them.
        names: what before and after are called.
        images: uint8 [1024, 1024] by record id; panels of others stay blank.
    """
    images = images or {}
    rows = -(-len(movers) // _COLUMNS)
    figure = Figure(figsize=(3.1 * _COLUMNS, 3.45 * rows + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, mover in zip(grid, movers, strict=False):
        show_image(axes, images.get(mover.record_id), FRAME, FRAME)
        show_outlines(axes, mover.after, width=1.1)
        for nodes in LANDMARKS.values():
            ring = np.vstack([mover.before[nodes], mover.before[nodes][:1]])
            axes.plot(*ring.T, color=_BEFORE, linewidth=0.9, linestyle=(0, (4, 2)), zorder=3)
        show_nodes(axes, mover.after, np.linalg.norm(mover.after - mover.before, axis=1), size=7)
        label = mover.record_id
        if len(label) > _LABEL_LENGTH:
            label = f"…{label[-_LABEL_LENGTH + 1 :]}"
        # A "$" in an id is no formula.
        axes.set_title(label, fontsize=8, parse_math=False)
        axes.set_xlabel(f"{mover.organ.replace('_', ' ')}: {mover.pixels:.1f} px", fontsize=8)
        # What lies outside the frame is to be seen as well.
        spans = np.concatenate([mover.before, mover.after])
        axes.set_xlim(min(0, spans[:, 0].min()), max(FRAME, spans[:, 0].max()))
        axes.set_ylim(max(FRAME, spans[:, 1].max()), min(0, spans[:, 1].min()))
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(movers) :]:
        axes.set_axis_off()
    # Legible on white too.
    handles = [Line2D([], [], color="#8c959f", linestyle=(0, (4, 2)), label=names[0])]
    handles += [
        Line2D([], [], color=colour, label=f"{organ.replace('_', ' ')}, {names[1]}")
        for organ, colour in OUTLINES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    bar = figure.colorbar(
        pixel_scale(), ax=grid.tolist(), label=f"{WORDS['movement']}, {UNIT}", extend="both", shrink=0.8, aspect=40
    )
    ticks = ticks_between(LIMITS)
    bar.ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    bar.ax.set_yticks([], minor=True)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()
