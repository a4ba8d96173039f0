"""The report of one run: what failed and why, how long it took, how sure the network was; as JSON and as a page."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from heapq import nsmallest
from importlib import resources
from typing import Any, Literal

import cv2
import jinja2
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from markupsafe import Markup
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexmask_u import record
from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.images.letterbox import Letterbox

Rank = Literal["surest", "median", "least sure"]

STAGES = ("read", "predict", "mask")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PICTURES_PER_RANK = 3
MAX_EXAMPLES = 10
MAX_ERROR_LENGTH = 500

# The same bins in every report, so that runs can be compared and added up. Each bin is 6% wide: fine enough for the
# surest source and for the least sure one, between which the spread differs by orders of magnitude.
BINS_PER_OCTAVE = 12
BIN_EDGES: NDArray[np.float64] = 2.0 ** (np.arange(-4 * BINS_PER_OCTAVE, 10 * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE)
"""Edges of the histograms of uncertainty, in pixels of the 1024 frame; the first and last bin take what lies beyond."""

# Memory is what is read ahead: 657,592 rows in row groups of 25,292 peak at 0.8 GB, smaller ones at less (measured).
_SCAN = {"batch_size": 8192, "batch_readahead": 1, "fragment_readahead": 4}
# Full rows weigh 10 kB and more.
_SCAN_FULL_ROWS = {
    "batch_size": 1024,
    "batch_readahead": 1,
    "fragment_readahead": 1,
    "fragment_scan_options": ds.ParquetFragmentScanOptions(pre_buffer=False, page_checksum_verification=True),
}

_NOTHING = "\N{EN DASH}"
_CHARTS_AT_MOST = 12
_LABEL_LENGTH = 21
_PICTURE_SIDE = 640
# Bone and diaphragm are near white: dimmed, both ends of the colour map stand out from them.
_DIMMED = 0.62
# The darkest fifth of viridis would vanish in a radiograph.
_COLOURS = matplotlib.colormaps["viridis"].resampled(256)
_DARKEST = 0.2


@dataclass(frozen=True)
class Picture:
    """One record of the contact sheet, in the 1024 frame.

    Attributes:
        record_id, source: of the record.
        uncertainty: mean of `std`, in pixels of the 1024 frame.
        rank: why it was chosen.
        image: uint8 [1024, 1024], the image as the network saw it.
        landmarks: float32 [120, 2], x then y, pixels of the 1024 frame.
        std: float32 [120, 2], pixels of the 1024 frame.
    """

    record_id: str
    source: str
    uncertainty: float
    rank: Rank
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    std: NDArray[np.float32]


@dataclass
class _Tally:
    """What one source adds up to."""

    images: int = 0
    ok: int = 0
    uncertainty: list[NDArray[np.float32]] = field(default_factory=list)
    organ_std: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(ORGANS)))
    latent_uncertainty: float = 0.0

    def __add__(self, other: _Tally) -> _Tally:
        return _Tally(
            self.images + other.images,
            self.ok + other.ok,
            self.uncertainty + other.uncertainty,
            self.organ_std + other.organ_std,
            self.latent_uncertainty + other.latent_uncertainty,
        )

    def add(self, batch: pa.RecordBatch) -> None:
        self.images += batch.num_rows
        ok = batch.filter(pc.equal(batch["status"], record.OK))
        self.ok += ok.num_rows
        ok = ok.filter(pc.and_(pc.is_finite(ok["uncertainty"]), pc.is_finite(ok[ORGANS[0]])))
        self.organ_std += [pc.sum(ok[organ]).as_py() or 0.0 for organ in ORGANS]
        self.latent_uncertainty += pc.sum(ok["latent_uncertainty"]).as_py() or 0.0
        self.uncertainty.append(ok["uncertainty"].to_numpy(zero_copy_only=False).astype(np.float32))

    def sorted_uncertainty(self) -> NDArray[np.float32]:
        return np.sort(np.concatenate([np.zeros(0, np.float32), *self.uncertainty]))

    def describe(self) -> dict[str, Any]:
        values = self.sorted_uncertainty()
        some = bool(len(values))
        return {
            **distribution(values),
            "organ_std": {
                organ: float(total / len(values)) if some else None
                for organ, total in zip(ORGANS, self.organ_std, strict=True)
            },
            "latent_uncertainty_mean": float(self.latent_uncertainty / len(values)) if some else None,
        }


def distribution(values: NDArray[np.float32]) -> dict[str, Any]:
    """How the uncertainties of some images are distributed, ready for JSON; None where there is no image.

    Args:
        values: float32 [images], sorted, pixels of the 1024 frame.

    Returns:
        ``images``, ``mean``, ``min``, ``max``, ``quantiles`` (of `QUANTILES`, by their name) and ``histogram`` (counts
        in the bins of `BIN_EDGES`).
    """
    counts, _ = np.histogram(np.clip(values, BIN_EDGES[0], BIN_EDGES[-1]), BIN_EDGES)
    some = bool(len(values))
    return {
        "images": len(values),
        "mean": float(values.mean(dtype=np.float64)) if some else None,
        "min": float(values[0]) if some else None,
        "max": float(values[-1]) if some else None,
        "quantiles": {str(q): float(np.quantile(values, q)) if some else None for q in QUANTILES},
        "histogram": counts.tolist(),
    }


def summarise(records: ds.Dataset) -> dict[str, Any]:
    """Counts, failures, seconds and uncertainty of a run; the same for the same records, in whatever order they lie.

    Reads the records as a stream: of each it keeps one float32.

    Args:
        records: rows of `record.RECORD`.

    Returns:
        What `report.json` holds, ready for `json.dumps(..., allow_nan=False)`:

        - ``images``, ``ok``, ``failed``: rows; and ``sources``, the same three by source
        - ``failures``: by reason, most frequent first, ``images``, ``meaning`` and up to 10 ``examples``
          (``record_id``, ``source``, ``error``)
        - ``stages``: by stage ``seconds`` (summed over all workers), ``images``, ``milliseconds_per_image``
        - ``devices``: by device ``images`` and ``predict_seconds``
        - ``uncertainty``: ``unit``, ``bin_edges``, ``overall`` and ``sources``; each of the latter with ``images``,
          ``mean``, ``min``, ``max``, ``quantiles``, ``histogram``, ``organ_std``, ``latent_uncertainty_mean``; values
          are None where there is no image
        - ``contact_sheet``: up to nine records, surest first: ``record_id``, ``source``, ``uncertainty``, ``rank``
    """
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    failures: defaultdict[str, list[tuple[str, str, str]]] = defaultdict(list)
    failure_counts: defaultdict[str, int] = defaultdict(int)
    stages = {stage: {"seconds": 0.0, "images": 0} for stage in STAGES}
    devices: defaultdict[str, dict[str, Any]] = defaultdict(lambda: {"images": 0, "predict_seconds": 0.0})

    for batch in _batches(records):
        for source in batch["source"].unique().to_pylist():
            tallies[source].add(batch.filter(pc.equal(batch["source"], source)))
        ok = pc.equal(batch["status"], record.OK)
        failed = batch.filter(pc.invert(ok))
        for reason in failed["reason"].unique().to_pylist():
            of_reason = failed.filter(pc.fill_null(pc.equal(failed["reason"], reason), reason is None))
            name = reason or "none given"
            failure_counts[name] += of_reason.num_rows
            rows = of_reason.select(["record_id", "source", "error"]).to_pylist()
            found = ((row["record_id"], row["source"], (row["error"] or "")[:MAX_ERROR_LENGTH]) for row in rows)
            failures[name] = nsmallest(MAX_EXAMPLES, [*failures[name], *found])
        for stage, sums in stages.items():
            seconds = batch[f"{stage}_seconds"]
            if stage == "mask":
                # Failed rows pass through this step too and note the time of doing nothing.
                seconds = seconds.filter(ok)
            sums["seconds"] += pc.sum(seconds).as_py() or 0.0
            sums["images"] += len(seconds) - seconds.null_count
        for device in batch["device"].drop_null().unique().to_pylist():
            seconds = batch["predict_seconds"].filter(pc.equal(batch["device"], device))
            devices[device]["images"] += len(seconds)
            devices[device]["predict_seconds"] += pc.sum(seconds).as_py() or 0.0

    total = sum((tallies[source] for source in sorted(tallies)), _Tally())
    return {
        "schema_version": record.SCHEMA_VERSION,
        **_counts(total),
        "sources": {source: _counts(tallies[source]) for source in sorted(tallies)},
        "failures": {
            reason: {
                "images": failure_counts[reason],
                "meaning": record.REASONS.get(reason, "not one of the known reasons"),
                "examples": [
                    {"record_id": record_id, "source": source, "error": error}
                    for record_id, source, error in failures[reason]
                ],
            }
            for reason in sorted(failures, key=lambda reason: (-failure_counts[reason], reason))
        },
        "stages": {
            stage: {
                **sums,
                "milliseconds_per_image": 1000 * sums["seconds"] / sums["images"] if sums["images"] else None,
            }
            for stage, sums in stages.items()
        },
        "devices": {device: devices[device] for device in sorted(devices)},
        "uncertainty": {
            "unit": f"pixels of the {FRAME} frame",
            "bin_edges": BIN_EDGES.tolist(),
            "overall": total.describe(),
            "sources": {source: tallies[source].describe() for source in sorted(tallies)},
        },
        "contact_sheet": _choose(records, total.sorted_uncertainty()),
    }


def chosen_rows(records: ds.Dataset, record_ids: Sequence[str]) -> pa.Table:
    """The full rows of a few records, in the order of `record_ids`; an id that is not there gives no row.

    Args:
        records: rows of `record.RECORD`, as files.
        record_ids: of the contact sheet, say.

    Returns:
        Table of `record.RECORD`, at most one row per id.
    """
    wanted = pa.array(record_ids, pa.string())
    # A filter alone would read every column of every file, masks included: find the few files first.
    places = records.to_table(columns=["__filename"], filter=pc.field("record_id").isin(wanted), **_SCAN)
    files = set(places["__filename"].to_pylist())
    found: dict[str, dict[str, Any]] = {}
    for fragment in records.get_fragments():
        if fragment.path in files:
            for batch in fragment.to_batches(schema=records.schema, columns=record.RECORD.names, **_SCAN_FULL_ROWS):
                for row in pc.indices_nonzero(pc.is_in(batch["record_id"], wanted)).to_pylist():
                    # Sliced for the reason that `_organ_std` gives, and copied to let go of the row group.
                    found.setdefault(batch["record_id"][row].as_py(), batch.slice(row, 1).to_pylist()[0])
    rows = [found[record_id] for record_id in dict.fromkeys(record_ids) if record_id in found]
    return pa.Table.from_pylist(rows, schema=record.RECORD)


def to_picture(row: Mapping[str, Any], image: NDArray[np.uint8], rank: Rank) -> Picture:
    """One ok row of `chosen_rows`, mapped from original pixels to the 1024 frame.

    Args:
        row: of `record.RECORD`, as from `Table.to_pylist`; landmarks [120, 2] in original pixels.
        image: uint8 [1024, 1024], prepared by the read step.
        rank: why the record was chosen.
    """
    letterbox = Letterbox.from_row(row["letterbox"])
    return Picture(
        record_id=row["record_id"],
        source=row["source"],
        uncertainty=float(row["uncertainty"]),
        rank=rank,
        image=image,
        landmarks=letterbox.to_frame(np.asarray(row["landmarks_mean"])).astype(np.float32),
        std=letterbox.spread_to_frame(np.asarray(row["landmarks_std"])).astype(np.float32),
    )


def render_html(summary: Mapping[str, Any], run: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page that people look at: one file, which asks for nothing from anywhere.

    Args:
        summary: as from `summarise`; may also carry ``seconds`` (wall clock), ``images_per_second``,
            ``network_idle_share`` (of its last attempt) and ``attempts``.
        run: as in ``run.json``: ``settings``, ``manifest``, ``weights``, ``versions``.
        pictures: the contact sheet, in the order to show; none is fine.

    Returns:
        HTML with all texts escaped.
    """
    colour_bar = _ColourBar.of(pictures)
    return _template().render(
        summary=summary,
        run=run,
        demo=run.get("weights", {}).get("source") == "demo",
        chart=_histograms(summary["uncertainty"]),
        colour_bar=colour_bar,
        groups=[
            (rank, [_draw(picture, colour_bar) for picture in pictures if picture.rank == rank])
            for rank in dict.fromkeys(picture.rank for picture in pictures)
        ],
        frame=FRAME,
        organs=ORGANS,
        n_landmarks=N_LANDMARKS,
    )


def _batches(records: ds.Dataset) -> Iterator[pa.RecordBatch]:
    """The small columns of all rows, and each organ's mean std in pixels of the 1024 frame, NaN for failed rows."""
    names = ["record_id", "source", "status", "reason", "error", "device", "uncertainty", "latent_uncertainty"]
    names += ["landmarks_std", *(f"{stage}_seconds" for stage in STAGES)]
    columns = {name: pc.field(name) for name in names} | {"scale": pc.field("letterbox", "scale")}
    for batch in records.to_batches(columns=columns, **_SCAN):
        if batch.num_rows:
            organ_std = _organ_std(batch)
            batch = batch.drop_columns(["landmarks_std", "scale"])
            for organ, means in zip(ORGANS, organ_std.T, strict=True):
                batch = batch.append_column(organ, pa.array(means))
            yield batch


def _organ_std(batch: pa.RecordBatch) -> NDArray[np.float64]:
    """Mean over nodes and axes: float64 [rows, 3], pixels of the 1024 frame; NaN for failed rows."""
    # Not with `filter`: pyarrow 26 takes the wrong landmarks, or crashes, where a batch is a slice of a row group.
    std = batch["landmarks_std"]
    valid = std.is_valid().to_numpy(zero_copy_only=False)
    # flatten() leaves the slots of null rows out.
    node_std = std.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, N_LANDMARKS, 2).mean(axis=2)
    means = np.full((batch.num_rows, len(ORGANS)), np.nan)
    means[valid] = np.stack([node_std[:, LANDMARKS[organ]].mean(axis=1) for organ in ORGANS], axis=1)
    return np.asarray(means * batch["scale"].to_numpy(zero_copy_only=False)[:, None], np.float64)


def _counts(tally: _Tally) -> dict[str, int]:
    return {"images": tally.images, "ok": tally.ok, "failed": tally.images - tally.ok}


def _choose(records: ds.Dataset, values: NDArray[np.float32]) -> list[dict[str, Any]]:
    """The surest, median and least sure records.

    Args:
        records: rows of `record.RECORD`.
        values: float32 [ok rows], their sorted uncertainties.
    """
    positions = _positions(len(values))
    if not positions:
        return []
    # A second pass by value, so that the first need not remember half a million ids. Ranges, because `isin` and the
    # statistics of a file disagree about -0.0.
    uncertainty = pc.field("uncertainty")
    wanted = pc.scalar(False)
    for rank in set(positions.values()):
        of_rank = values[[position for position, its_rank in positions.items() if its_rank == rank]]
        wanted |= (uncertainty >= pa.scalar(of_rank[0])) & (uncertainty <= pa.scalar(of_rank[-1]))
    rows = records.to_table(
        columns=["uncertainty", "record_id", "source"],
        filter=(pc.field("status") == record.OK) & wanted,
        **_SCAN,
    )
    # Records that tie for a value are told apart by their id.
    rows = rows.sort_by([("uncertainty", "ascending"), ("record_id", "ascending")])
    keys = rows["uncertainty"].to_numpy()
    chosen: dict[str, dict[str, Any]] = {}
    for position, rank in sorted(positions.items()):
        before = np.searchsorted(values, values[position])
        row = rows.slice(np.searchsorted(keys, values[position]) + position - before, 1).to_pylist()[0]
        chosen.setdefault(row["record_id"], {**row, "rank": rank})
    return list(chosen.values())


def _positions(count: int) -> dict[int, Rank]:
    """Places in the order of uncertainty that the contact sheet shows: three of each rank, fewer if there are fewer."""
    surest = min(PICTURES_PER_RANK, -(-count // 3))
    least_sure = min(PICTURES_PER_RANK, (count + 1) // 3)
    median = min(PICTURES_PER_RANK, count // 3)
    middle = min(max((count - median) // 2, surest), count - least_sure - median)
    positions: dict[int, Rank] = dict.fromkeys(range(surest), "surest")
    positions |= dict.fromkeys(range(middle, middle + median), "median")
    positions |= dict.fromkeys(range(count - least_sure, count), "least sure")
    return positions


@dataclass(frozen=True)
class _ColourBar:
    """Colours of the nodes' std, on one logarithmic scale for all pictures."""

    low: float
    high: float

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> _ColourBar:
        stds = [picture.std.mean(axis=1) for picture in pictures]
        values = np.concatenate([np.zeros(0), *stds])
        # A run with one draw per image has no spread at all.
        values = values[np.isfinite(values) & (values >= BIN_EDGES[0])]
        # A few extreme nodes may share the colours at the ends, so that the rest are told apart.
        low, high = map(float, np.quantile(values, (0.01, 0.99))) if len(values) else (1.0, 1.0)
        nice = [digit * 10.0**power for power in range(-2, 6) for digit in (1, 2, 5)]
        low = max(value for value in nice if value <= low)
        return cls(low, min(value for value in nice if value >= high and value > low))

    def hex(self, std: float) -> str:
        return self._colour(float(LogNorm(self.low, self.high, clip=True)(max(std, self.low))))

    def gradient(self) -> str:
        return ", ".join(self._colour(step / 16) for step in range(17))

    def ticks(self) -> list[tuple[str, float]]:
        """Label in pixels, and place in percent of the bar's length."""
        values = _ticks(self.low, self.high)
        labels = [f"{value:g}" for value in values]
        labels[0], labels[-1] = f"≤ {labels[0]}", f"≥ {labels[-1]}"
        span = np.log(self.high / self.low)
        return [
            (label, float(100 * np.log(value / self.low) / span)) for label, value in zip(labels, values, strict=True)
        ]

    @staticmethod
    def _colour(share: float) -> str:
        return to_hex(_COLOURS(_DARKEST + (1 - _DARKEST) * share))


def _ticks(low: float, high: float) -> list[float]:
    """The 1, 2 and 5 of every decade between two values; the decades alone where these would be too many."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    digits = (1, 2, 5) if high / low < 10**4 else (1,)
    values = [digit * 10.0**decade for decade in decades for digit in digits]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def _draw(picture: Picture, colour_bar: _ColourBar) -> dict[str, Any]:
    """What the template needs of a picture; coordinates in the 1024 frame."""
    small = cv2.resize(picture.image, (_PICTURE_SIDE, _PICTURE_SIDE), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.convertScaleAbs(small, alpha=_DIMMED), [cv2.IMWRITE_JPEG_QUALITY, 82])
    rings = []
    for organ in ORGANS:
        points = picture.landmarks[LANDMARKS[organ]]
        stds = picture.std[LANDMARKS[organ]].mean(axis=1)
        rings.append(
            {
                "organ": organ.replace("_", " "),
                "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
                "nodes": [
                    {"x": f"{x:.1f}", "y": f"{y:.1f}", "std": float(std), "colour": colour_bar.hex(float(std))}
                    for (x, y), std in zip(points, stds, strict=True)
                ],
            }
        )
    return {"picture": picture, "jpeg": base64.b64encode(jpeg.tobytes()).decode("ascii"), "rings": rings}


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
    ticks = _ticks(edges[0] / 1.05, edges[-1] * 1.05)
    grid[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    grid[-1].set_xticks([], minor=True)
    grid[-1].tick_params(axis="x", length=4)
    grid[-1].set_xlabel("uncertainty, pixels of the 1024 frame (logarithmic)", color=palette.muted, fontsize=9)
    return figure


# matplotlib writes literal colours; these stand for the page's own, which change with light, dark and paper.
_PAGE_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--bar)"}


def _histograms(uncertainty: Mapping[str, Any]) -> Markup | None:
    """`draw_histograms` as inline SVG."""
    # Texts stay texts, in the page's own font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chexmask-u"}):
        figure = draw_histograms(uncertainty, Palette(*_PAGE_COLOURS))
        if figure is None:
            return None
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for literal, of_page in _PAGE_COLOURS.items():
        svg = svg.replace(literal, of_page)
    # matplotlib escapes the texts it writes.
    return Markup(svg)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"thousands": _thousands, "digits": _digits, "duration": _duration}
    environment.filters |= {"percent": _percent, "json": json.dumps}
    text = resources.files("chexmask_u").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _thousands(value: int | None) -> str:
    return _NOTHING if value is None else f"{value:,}"


def _digits(value: float | None) -> str:
    """Three significant digits, and none cut off before the point: 0.0123, 1.23, 12,345."""
    if value is None or not np.isfinite(value):
        return _NOTHING
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    if seconds < 100:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _percent(part: int, whole: int) -> str:
    """Share in percent; never "0 %" of something or "100 %" of less than all."""
    if not whole:
        return _NOTHING
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"
