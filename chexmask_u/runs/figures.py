"""Histograms of uncertainty, as the report of a run and the card of a release show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chexmask_u.pictures.scale import ticks_between
from chexmask_u.runs.summary import BINS_PER_OCTAVE

_CHARTS_AT_MOST = 12
_LABEL_LENGTH = 21


@dataclass(frozen=True)
class Palette:
    """Colours of a chart, as matplotlib takes them."""

    ink: str
    muted: str
    line: str
    bar: str


def draw_histograms(uncertainty: Mapping[str, Any], palette: Palette) -> Figure | None:
    """One histogram per source above a shared logarithmic axis, at most 12; None where no record is ok.

    Args:
        uncertainty: ``bin_edges``, and ``sources`` as `distribution` describes them.
        palette: of the page that it is for.
    """
    sources = {name: source for name, source in uncertainty["sources"].items() if source["images"]}
    if not sources:
        return None
    names = sorted(sorted(sources, key=lambda name: -sources[name]["images"])[:_CHARTS_AT_MOST])
    edges = np.array(uncertainty["bin_edges"])
    counts = np.array([sources[name]["histogram"] for name in names])
    occupied = np.flatnonzero(counts.sum(axis=0))
    # Few images get wide bins: twice Rice's rule for the mean source, as the tails take half of the axis.
    aim = 4 * (counts.sum() / len(names)) ** (1 / 3)
    merged = next((m for m in (1, 2, 3, 4, 6) if (occupied[-1] - occupied[0] + 1) / m <= aim), 12)
    # At least two octaves, so that the axis has a labelled tick.
    margin = max(0, 2 * BINS_PER_OCTAVE - (occupied[-1] - occupied[0])) // 2
    first = max(0, occupied[0] - margin) // merged * merged
    last = (min(len(edges) - 2, occupied[-1] + margin) // merged + 1) * merged
    shares = counts[:, first:last].reshape(len(names), -1, merged).sum(axis=2) / counts.sum(axis=1, keepdims=True)
    edges = edges[first : last + 1 : merged]

    figure = Figure(figsize=(9.6, 0.75 + 0.92 * len(names)))
    figure.subplots_adjust(left=0.17, right=0.985, top=1 - 0.08 / len(names), bottom=0.62 / figure.get_figheight())
    grid = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name, share in zip(grid, names, shares, strict=True):
        median = sources[name]["quantiles"]["0.5"]
        axes.stairs(share, edges, fill=True, color=palette.bar)
        axes.axvline(max(median, edges[0]), color=palette.ink, linewidth=1.2)
        axes.set_ylim(0, 1.22 * share.max())
        axes.annotate(
            f"median {median:.3g}",
            (max(median, edges[0]), 1.2 * share.max()),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            color=palette.ink,
            fontsize=9,
        )
        label = name if len(name) <= _LABEL_LENGTH else f"{name[: _LABEL_LENGTH - 1]}…"
        # A "$" in a source's name is no formula.
        beside = ("figure fraction", "axes fraction")
        axes.annotate(label, (0, 0.45), xycoords=beside, color=palette.ink, parse_math=False)
        n_images = f"{sources[name]['images']:,} image{'s' * (sources[name]['images'] != 1)}"
        axes.annotate(n_images, (0, 0.15), xycoords=beside, color=palette.muted, fontsize=9)
        axes.set_yticks([])
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(palette.line)
        axes.tick_params(axis="x", which="both", color=palette.line, length=0, labelcolor=palette.muted, labelsize=9)
        axes.set_xscale("log")
        axes.set_xlim(edges[0] / 1.05, edges[-1] * 1.05)
    ticks = ticks_between((edges[0] / 1.05, edges[-1] * 1.05))
    grid[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    grid[-1].set_xticks([], minor=True)
    grid[-1].tick_params(axis="x", length=4)
    grid[-1].set_xlabel("uncertainty, pixels of the 1024 frame (logarithmic)", color=palette.muted, fontsize=9)
    return figure
