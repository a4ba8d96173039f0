"""Pictures of a training run: its curves, and the health of the posterior."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chexmask_u.anatomy import ORGANS

_TERMS = {
    "train_landmarks": "landmarks",
    "train_skip1": "first skip block",
    "train_skip2": "second skip block",
    "train_masks": "masks, cross entropy (nats)",
    "train_coarse": "coarser masks",
}


def curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Loss terms, validation error, overlap and posterior over the epochs, as PNG.

    Args:
        history: rows of metrics.csv, as `loop.Training` makes them.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    losses, errors, overlap, latent = figure.subplots(2, 2).ravel()
    for name, label in _TERMS.items():
        _line(losses, history, name, label)
    of_masks = any("train_masks" in row for row in history)
    losses.set(
        title="Training: cross entropy per pixel"
        if of_masks
        else "Training: mean squared errors or energy scores, unit square",
        yscale="log",
    )
    _line(errors, history, "mse", "validation MSE (px²)", marker="o")
    _line(errors, history, "energy", "validation energy score (px)", marker="o")
    _line(errors, history, "cross_entropy", "validation cross entropy (nats per pixel)", marker="o")
    _line(errors, history, "hausdorff_right_lung", "Hausdorff, right lung (px)", marker=".")
    _line(errors, history, "hausdorff_left_lung", "Hausdorff, left lung (px)", marker=".")
    _line(errors, history, "hausdorff_heart", "Hausdorff, heart (px)", marker=".")
    errors.set(title="Validation: cross entropy" if of_masks else "Validation: error, 1024 frame", yscale="log")
    for organ in ORGANS:
        _line(overlap, history, f"dice_{organ}", organ.replace("_", " "), marker=".")
    overlap.set(title="Validation: Dice")
    _line(latent, history, "train_kl", f"KL, training (nats{', weighted, per pixel' if of_masks else ''})")
    _line(latent, history, "kl", "KL, validation (nats)", marker=".")
    _line(latent, history, "active_latents", "latents in use", marker=".")
    latent.set(title="Posterior", yscale="log")
    for axes in (losses, errors, overlap, latent):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
        else:
            axes.set_axis_off()
    return _png(figure)


def uncertainty(summary: Mapping[str, Any]) -> bytes:
    """KL of each latent, where there is a posterior, and how often the annotation lies within 1 and 2 std, as PNG.

    Args:
        summary: of `evaluate.score`.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    latents, coverage = figure.subplots(1, 2, width_ratios=(2.2, 1))
    if "kl" in summary:
        values = sorted(summary["kl_per_latent"], reverse=True)
        latents.bar(range(1, len(values) + 1), values, color="tab:blue")
        latents.set(
            title=f"KL per latent: {summary['kl']:.1f} nats in all, {summary['active_latents']} of {len(values)} "
            f"in use, mean sigma {summary['sigma']:.2f}",
            xlabel="latents, largest first",
            ylabel="nats",
        )
    else:
        latents.set_axis_off()
    places = (0, 1)
    width = 0.38
    found = [100 * summary["within_1_std"], 100 * summary["within_2_std"]]
    coverage.bar([place - width / 2 for place in places], found, width, label="found", color="tab:blue")
    coverage.bar([place + width / 2 for place in places], [68.3, 95.4], width, label="if calibrated", color="0.75")
    coverage.set(title=f"std / error = {summary['std_error_ratio']:.2f}", ylabel="% of coordinates", ylim=(0, 100))
    coverage.set_xticks(places, ["within 1 std", "within 2 std"])
    coverage.legend(fontsize="small")
    return _png(figure)


def entropy(images: Sequence[Mapping[str, Any]]) -> bytes:
    """Entropy against 1 - Dice of each organ of each image, as PNG.

    Args:
        images: rows of `evaluate.score` of a network of masks.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for organ, marker in zip(ORGANS, "os^", strict=True):
        points = [(row[f"entropy_{organ}"], 1 - row[f"dice_{organ}"]) for row in images if f"dice_{organ}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=organ.replace("_", " "), alpha=0.7)
    axes.set(
        title="Held-out images: does the entropy tell where overlap is lost?",
        xlabel="predictive entropy, mean over the annotated organ (nats)",
        ylabel="1 - Dice",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _png(figure)


def _line(axes: Axes, history: Sequence[Mapping[str, float]], name: str, label: str, **style: Any) -> None:
    points = [(row["epoch"], row[name]) for row in history if name in row]
    # Without skip blocks their terms are 0, which a logarithmic axis cannot show.
    if any(value for _, value in points):
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2, **style)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
