"""A comparison as a picture: the records that moved most, before and after."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS
from chexmask_u.releases.diff.compare import Mover

_COLUMNS = 4
_LABEL_LENGTH = 34
_COLOURS = dict(zip(ORGANS, ("#0b6fa4", "#c2410c", "#7e22ce"), strict=True))
_BEFORE = "#8c959f"
# Grey would vanish in a radiograph.
_BEFORE_ON_IMAGES = "#16a34a"


def draw(
    movers: Sequence[Mover],
    title: str,
    names: tuple[str, str] = ("before", "after"),
    images: Mapping[str, NDArray[np.uint8]] | None = None,
) -> bytes:
    """PNG of the contours before and after, one panel per record, in the 1024 frame; no image is needed.

    Args:
        movers: of the panels.
        title: above them.
        names: what before and after are called.
        images: uint8 [1024, 1024] by record id; panels of others stay blank.
    """
    images = images or {}
    earlier = _BEFORE_ON_IMAGES if images else _BEFORE
    rows = -(-len(movers) // _COLUMNS)
    figure = Figure(figsize=(3.1 * _COLUMNS, 3.45 * rows + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, mover in zip(grid, movers, strict=False):
        if (image := images.get(mover.record_id)) is not None:
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, FRAME, FRAME, 0))
        for organ, colour in _COLOURS.items():
            closed = [*range(LANDMARKS[organ].start, LANDMARKS[organ].stop), LANDMARKS[organ].start]
            axes.plot(*mover.before[closed].T, color=earlier, linewidth=1.1, linestyle=(0, (4, 2)))
            axes.plot(*mover.after[closed].T, color=colour, linewidth=1.3)
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
    handles = [Line2D([], [], color=earlier, linestyle=(0, (4, 2)), label=names[0])]
    handles += [
        Line2D([], [], color=colour, label=f"{organ.replace('_', ' ')}, {names[1]}")
        for organ, colour in _COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()
