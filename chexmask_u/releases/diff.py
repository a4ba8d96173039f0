"""What changed from one release to another: records, pixels, failures; as JSON, a picture and a changelog entry.

Both are read side by side in the order of their record ids, so memory does not grow with their landmarks.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from chexmask_u import storage
from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.releases import release, versions
from chexmask_u.runs.write import comparable_numbers, told_preparation
from chexmask_u.settings import DiffSettings

QUANTILES = {"50%": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}

# Rows held of each release at once: some 10 MB.
BATCH_ROWS = 4096

_EXAMPLES = 10
_REPORT = "diff.json"
_HUB = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIGURE_COLUMNS = 4
_LABEL_LENGTH = 34
_COLOURS = dict(zip(ORGANS, ("#0b6fa4", "#c2410c", "#7e22ce"), strict=True))
_BEFORE = "#8c959f"
# Grey would vanish in a radiograph.
_BEFORE_ON_IMAGES = "#16a34a"

Block = dict[str, NDArray[Any]]
"""Columns of some records in the order of their ids: [rows] or, for lists and structs, [rows, values]."""


@dataclass
class _Source:
    """What the records of one source add up to; a float32 array per batch, one value per record in both releases."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    resized: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    recovered: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    values: defaultdict[str, list[NDArray[np.float32]]] = field(default_factory=lambda: defaultdict(list))

    def describe(self, before: int, after: int, masks_differ: bool) -> dict[str, Any]:
        values = {name: np.concatenate(parts) for name, parts in self.values.items()}
        both = len(values["uncertainty before"]) if values else 0
        shift = np.abs(values["uncertainty after"] - values["uncertainty before"]) if values else None
        return {
            "before": before,
            "after": after,
            "in_both": both,
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "resized": self.resized,
            # Files of other records differ, whatever their masks are like.
            "masks_differ": masks_differ if both == before == after else None,
            "columns": dict(sorted(self.columns.items())),
            "failed_to_ok": dict(sorted(self.recovered.items())),
            "ok_to_failed": dict(sorted(self.lost.items())),
            "movement": {organ: _quantiles(values.get(f"movement {organ}")) for organ in ORGANS},
            "farthest": {organ: _quantiles(values.get(f"farthest {organ}")) for organ in ORGANS},
            "std_change": {organ: _quantiles(values.get(f"std {organ}")) for organ in ORGANS},
            "uncertainty_change": _quantiles(shift),
            "median_uncertainty": [float(np.median(values[f"uncertainty {when}"])) for when in ("before", "after")]
            if both
            else None,
        }


@dataclass(frozen=True)
class Mover:
    """A record whose landmarks moved.

    Attributes:
        record_id, source: of the record.
        organ: the one that moved most.
        pixels: mean distance of that organ's landmarks, pixels of the 1024 frame.
        before, after: float64 [120, 2], x then y, pixels of the same 1024 frame.
    """

    record_id: str
    source: str
    organ: str
    pixels: float
    before: NDArray[np.float64]
    after: NDArray[np.float64]


@dataclass
class _Comparison:
    """What is found while the records of all sources go by.

    Attributes:
        failed_before, failed_after: reasons by record id.
        most: how many movers are kept.
        movers: the largest so far.
        recovered: ids of records whose images had failed before.
        examples: a few ids of each kind of record that is in one release only.
    """

    failed_before: Mapping[str, str]
    failed_after: Mapping[str, str]
    most: int
    movers: list[Mover] = field(default_factory=list)
    recovered: set[str] = field(default_factory=set)
    examples: dict[str, list[str]] = field(
        default_factory=lambda: {"added": [], "removed": [], "failed_to_ok": [], "ok_to_failed": []}
    )

    def of_source(self, source: str, pairs: Iterable[tuple[Block, Block]]) -> _Source:
        tally = _Source()
        for old, new in pairs:
            ids = old["record_id"], new["record_id"]
            _, in_old, in_new = np.intersect1d(*ids, assume_unique=True, return_indices=True)
            for record_id in np.delete(ids[0], in_old).tolist():
                if (reason := self.failed_after.get(record_id)) is not None:
                    tally.lost[reason] += 1
                    self._note("ok_to_failed", record_id)
                else:
                    tally.removed += 1
                    self._note("removed", record_id)
            for record_id in np.delete(ids[1], in_new).tolist():
                if (reason := self.failed_before.get(record_id)) is not None:
                    tally.recovered[reason] += 1
                    self.recovered.add(record_id)
                    self._note("failed_to_ok", record_id)
                else:
                    tally.added += 1
                    self._note("added", record_id)
            if len(in_old):
                movers = _compare(tally, source, _take(old, in_old), _take(new, in_new), self.most)
                ranked = sorted([*self.movers, *movers], key=lambda mover: (-mover.pixels, mover.record_id))
                self.movers = ranked[: self.most]
        return tally

    def _note(self, kind: str, record_id: str) -> None:
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(record_id)


def diff(settings: DiffSettings) -> dict[str, Any]:
    """Compare two releases, each a local folder, a URL, or a version on the Hugging Face Hub.

    Movement is the distance between a landmark's two positions on the image, in pixels of the 1024 frame. Where the
    image kept its size, both are mapped by the letterbox of the earlier release, so that a frame that was cut otherwise
    is no movement; else each is mapped by its own.

    Returns:
        What diff.json holds; "change" and "follows" are None for the same release twice. Quantiles are over the
        records in both releases: of each organ's mean movement ("movement"), of its landmark that moved farthest
        ("farthest"), of the absolute change of its mean standard deviation ("std_change") and of the record's
        uncertainty, all in pixels of the 1024 frame.

    Raises:
        InputError: if one of them is no release.
        InputError: if the output holds something else than an earlier comparison.
        InputError: if their landmarks are not alike, or one is damaged.
    """
    if settings.output is not None:
        # Somebody's own CHANGELOG.md may be there.
        Folder(storage.normalise(settings.output)).check_own("comparison", [_REPORT])
    where = {"before": locate(settings.before), "after": locate(settings.after)}
    before, after = (release.read_marker(folder) for folder in where.values())
    failed_before, failed_after = _failures(where["before"], before), _failures(where["after"], after)
    comparison = _Comparison(failed_before, failed_after, settings.movers)
    sources = {}
    for source in sorted({*before["counts"], *after["counts"]}):
        pairs = _align(_blocks(where["before"], before, source), _blocks(where["after"], after, source))
        tally = comparison.of_source(source, pairs)
        rows = [content["counts"].get(source, {"ok": 0})["ok"] for content in (before, after)]
        masks = [_digests(content, f"{source}-masks") for content in (before, after)]
        sources[source] = tally.describe(rows[0], rows[1], masks_differ=masks[0] != masks[1])
    change = None if before == after else versions.change(before, after)
    report = {
        "before": {"where": where["before"], "version": before["version"]},
        "after": {"where": where["after"], "version": after["version"]},
        "change": change,
        "follows": versions.after(before["version"], change) if change is not None else None,
        "settings": _settings(before, after),
        "sources": sources,
        "failures": _compare_failures(failed_before, failed_after, comparison.recovered, sources),
        "examples": comparison.examples,
        "movers": [
            {"record_id": mover.record_id, "source": mover.source, "organ": mover.organ, "pixels": mover.pixels}
            for mover in comparison.movers
        ],
    }
    if settings.output is not None:
        _write(storage.normalise(settings.output), report, comparison.movers)
    return report


def locate(name: str) -> str:
    """The folder or URL of a release; ORG/NAME@REVISION is one on the Hub unless there is such a folder."""
    if _HUB.fullmatch(name) and not Path(name).exists():
        return f"hf://datasets/{name}"
    return storage.normalise(name)


def _compare(tally: _Source, source: str, old: Block, new: Block, most: int) -> list[Mover]:
    """Add up records that are in both, row by row the same; returns those that moved most."""
    same = np.ones(len(old["record_id"]), bool)
    for name in sorted((old.keys() & new.keys()) - {"record_id"}):
        equal = _equal(old[name], new[name])
        tally.columns[name] += int((~equal).sum())
        same &= equal
    tally.columns += Counter()  # drops the columns without a change
    tally.changed += int((~same).sum())
    kept_size = (old["height"] == new["height"]) & (old["width"] == new["width"])
    tally.resized += int((~kept_size).sum())
    box = np.where(kept_size[:, None], old["letterbox"], new["letterbox"])
    points = _to_frame(old["landmarks_mean"], old["letterbox"]), _to_frame(new["landmarks_mean"], box)
    distances = np.linalg.norm(points[1] - points[0], axis=2)
    spreads = [
        _points(block["landmarks_std"]) * frame[:, -1, None, None]
        for block, frame in ((old, old["letterbox"]), (new, box))
    ]
    means = np.empty((len(same), len(ORGANS)))
    for index, organ in enumerate(ORGANS):
        part = LANDMARKS[organ]
        means[:, index] = distances[:, part].mean(axis=1)
        std_before, std_after = (spread[:, part].mean(axis=(1, 2)) for spread in spreads)
        tally.values[f"movement {organ}"].append(means[:, index].astype(np.float32))
        tally.values[f"farthest {organ}"].append(distances[:, part].max(axis=1).astype(np.float32))
        tally.values[f"std {organ}"].append(np.abs(std_after - std_before).astype(np.float32))
    tally.values["uncertainty before"].append(old["uncertainty"])
    tally.values["uncertainty after"].append(new["uncertainty"])
    largest = means.max(axis=1)
    chosen = np.argsort(-largest, kind="stable")[:most]
    return [
        Mover(
            str(old["record_id"][row]),
            source,
            ORGANS[int(means[row].argmax())],
            float(largest[row]),
            points[0][row],
            points[1][row],
        )
        for row in chosen[largest[chosen] > 0]
    ]


def _equal(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows hold the same values; nothing equals nothing."""
    if old.shape[1:] != new.shape[1:]:
        return np.zeros(len(old), bool)
    equal = old == new
    if old.dtype.kind == "f" and new.dtype.kind == "f":
        equal |= np.isnan(old) & np.isnan(new)
    return np.asarray(equal.all(axis=1) if equal.ndim == 2 else equal)


def _points(column: NDArray[Any]) -> NDArray[np.float64]:
    return column.reshape(-1, N_LANDMARKS, 2).astype(np.float64)


def _to_frame(column: NDArray[Any], letterbox: NDArray[np.float64]) -> NDArray[np.float64]:
    """Original pixels -> pixels of the 1024 frame [rows, 120, 2], as `Letterbox.to_frame` does for one image."""
    left, top, _, _, pad_left, pad_top, scale = letterbox.T
    shift = np.stack([pad_left - left, pad_top - top], axis=1)
    return (_points(column) + shift[:, None]) * scale[:, None, None]


def _align(before: Iterator[Block], after: Iterator[Block]) -> Iterator[tuple[Block, Block]]:
    """Blocks of both that span the same ids, both sorted by id; either of a pair may be without rows."""
    old, new = next(before, None), next(after, None)
    if old is None and new is None:
        return
    empty = {name: column[:0] for name, column in (old or new or {}).items()}
    while old is not None or new is not None:
        if old is None or new is None:
            yield old or empty, new or empty
            old, new = next(before, None), next(after, None)
            continue
        limit = min(old["record_id"][-1], new["record_id"][-1])
        cuts = [int(np.searchsorted(block["record_id"], limit, "right")) for block in (old, new)]
        yield _rows(old, 0, cuts[0]), _rows(new, 0, cuts[1])
        old = _rows(old, cuts[0], None) if cuts[0] < len(old["record_id"]) else next(before, None)
        new = _rows(new, cuts[1], None) if cuts[1] < len(new["record_id"]) else next(after, None)


def _take(block: Block, rows: NDArray[Any]) -> Block:
    return {name: column[rows] for name, column in block.items()}


def _rows(block: Block, first: int, stop: int | None) -> Block:
    return {name: column[first:stop] for name, column in block.items()}


def _blocks(folder: str, content: Mapping[str, Any], source: str) -> Iterator[Block]:
    """Landmark records of one source, `BATCH_ROWS` at a time."""
    for batch in _batches(folder, content, source):
        yield {name: _to_numpy(batch.column(name)) for name in batch.schema.names}


def _batches(folder: str, content: Mapping[str, Any], config: str) -> Iterator[pa.RecordBatch]:
    fs, path = storage.arrow_filesystem(folder)
    for file in content["files"]:
        if file["config"] != config:
            continue
        try:
            with fs.open_input_file(storage.join(path, file["path"])) as stream:
                yield from pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(batch_size=BATCH_ROWS)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{folder}/{file['path']}: cannot be read ({storage.explain(error)})") from error


def _to_numpy(column: pa.Array) -> NDArray[Any]:
    rows = len(column)
    if pa.types.is_struct(column.type):
        return np.stack([_to_numpy(child).astype(np.float64) for child in column.flatten()], axis=1)
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=np.str_)
    nested = False
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column, nested = column.flatten(), True
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    return values.reshape(rows, -1) if nested else values


def _failures(folder: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Reason by record id."""
    failed: dict[str, str] = {}
    for batch in _batches(folder, content, "failures"):
        failed.update(zip(batch["record_id"].to_pylist(), batch["reason"].to_pylist(), strict=True))
    return failed


def _compare_failures(
    before: Mapping[str, str], after: Mapping[str, str], recovered: set[str], sources: Mapping[str, Any]
) -> dict[str, Any]:
    both = before.keys() & after.keys()
    reasons = Counter(f"{before[key]} -> {after[key]}" for key in both if before[key] != after[key])
    lost = sum(sum(source["ok_to_failed"].values()) for source in sources.values())
    return {
        "before": len(before),
        "after": len(after),
        "added": len(after) - len(both) - lost,
        "removed": len(before) - len(both) - len(recovered),
        "other_reason": dict(sorted(reasons.items())),
    }


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What the releases say of how they were made, where that differs: [before, after]."""
    facts = [
        {
            "schema": content["schema_version"],
            "weights": content["weights"]["source"],
            "weights commit": content["weights"].get("commit"),
            "weights sha256": content["weights"]["sha256"],
            "manifest sha256": content["manifest"]["sha256"],
            **comparable_numbers(content["numbers"], content["counts"]),
            **{f"preparation of {name}": told for name, told in told_preparation(content, content["counts"]).items()},
            **content["versions"],
        }
        for content in (before, after)
    ]
    names = dict.fromkeys([*facts[0], *facts[1]])
    pairs = {name: [fact.get(name) for fact in facts] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _digests(content: Mapping[str, Any], config: str) -> set[str]:
    return {file["sha256"] for file in content["files"] if file["config"] == config}


def _quantiles(values: NDArray[np.float32] | None) -> dict[str, float] | None:
    if values is None or not len(values):
        return None
    return {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()}


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    before, after = report["before"], report["after"]
    lines = [f"{before['version']} ({before['where']}) -> {after['version']} ({after['where']})"]
    lines += [f"  {name}: {_short(old)} -> {_short(new)}" for name, (old, new) in report["settings"].items()]
    for name, source in report["sources"].items():
        lines.append(
            f"{name}: {source['before']:,} -> {source['after']:,} records; {source['added']:,} added,"
            f" {source['removed']:,} removed, {source['changed']:,} changed of {source['in_both']:,} in both"
        )
        for label, reasons in (("failed -> ok", source["failed_to_ok"]), ("ok -> failed", source["ok_to_failed"])):
            if reasons:
                lines.append(f"  {label}: {_reasons(reasons)}")
        if source["resized"]:
            lines.append(f"  of another image size: {source['resized']:,}")
        if source["masks_differ"] and not source["columns"].get("landmarks_mean"):
            lines.append("  the masks differ")
        if source["changed"]:
            lines += [f"  {'pixels of the 1024 frame':26} " + " ".join(f"{name:>8}" for name in QUANTILES)]
            for label, values in _table(source):
                lines.append(f"  {label:26} " + " ".join(f"{values[name]:8.2f}" for name in QUANTILES))
    failures = report["failures"]
    lines.append(
        f"failures: {failures['before']:,} -> {failures['after']:,}"
        + (f"; other reason: {_reasons(failures['other_reason'])}" if failures["other_reason"] else "")
    )
    if report["movers"]:
        lines.append("moved most:")
        lines += [f"  {mover['pixels']:8.2f}  {mover['organ']:10}  {mover['record_id']}" for mover in report["movers"]]
    lines.append(_version_line(report))
    return "\n".join(lines)


def changelog(report: Mapping[str, Any]) -> str:
    """A draft of the changelog's entry, in Markdown."""
    before, after = report["before"]["version"], report["after"]["version"]
    # Two runs may be called the same, released into folders of their own; two entries may not.
    title = report["follows"] if after == before and report["change"] is not None else after
    lines = [f"## [{title}] - {datetime.now(UTC).date()}", ""]
    lines += [f"Compared with {before}. {_version_line(report)}", ""]
    changed, added, removed = [], [], []
    for name, (old, new) in report["settings"].items():
        changed.append(f"- {name}: {_short(old)} -> {_short(new)}")
    for name, source in report["sources"].items():
        if source["added"]:
            added.append(f"- {_records(source['added'])} of {name}")
        if source["failed_to_ok"]:
            added.append(f"- records of {name} whose images had failed: {_reasons(source['failed_to_ok'])}")
        if source["removed"]:
            removed.append(f"- {_records(source['removed'])} of {name}")
        if source["ok_to_failed"]:
            removed.append(f"- records of {name} whose images now fail: {_reasons(source['ok_to_failed'])}")
        if source["changed"]:
            columns = ", ".join(source["columns"])
            changed += [
                f"- {source['changed']:,} of {source['in_both']:,} records of {name} ({columns}):",
                "",
                f"  | pixels of the 1024 frame | {' | '.join(QUANTILES)} |",
                f"  |---|{'---:|' * len(QUANTILES)}",
                *(
                    f"  | {label} | {' | '.join(f'{values[quantile]:.2f}' for quantile in QUANTILES)} |"
                    for label, values in _table(source)
                ),
                "",
            ]
        elif source["masks_differ"] and source["in_both"]:
            changed.append(f"- masks of {name}")
    if reasons := report["failures"]["other_reason"]:
        changed.append(f"- failures with another reason: {_reasons(reasons)}")
    for title, entries in (("Added", added), ("Changed", changed), ("Removed", removed)):
        if entries:
            lines += [f"### {title}", "", *entries, ""]
    if not (added or changed or removed):
        lines += ["No record changed.", ""]
    return "\n".join(lines)


def _table(source: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    rows = [(f"{organ.replace('_', ' ')} moved", source["movement"][organ]) for organ in ORGANS]
    rows += [(f"{organ.replace('_', ' ')}, farthest node", source["farthest"][organ]) for organ in ORGANS]
    rows += [(f"{organ.replace('_', ' ')} std, change", source["std_change"][organ]) for organ in ORGANS]
    return [*rows, ("uncertainty, change", source["uncertainty_change"])]


def _version_line(report: Mapping[str, Any]) -> str:
    if report["change"] is None:
        return "They are the same release."
    what = versions.MEANING[report["change"]]
    before, version, follows = report["before"]["version"], report["after"]["version"], report["follows"]
    if version == follows:
        return f"Version: {follows} follows {before}, since {what} ({report['change']})."
    is_called = f"this is {version}" + (" too, until it is released beside the other" if version == before else "")
    return f"Version: {follows} would follow, since {what} ({report['change']}); {is_called}."


def _records(count: int) -> str:
    return f"{count:,} record{'s' * (count != 1)}"


def _short(value: Any) -> str:
    """As it is, or the beginning of a digest, which is enough for people."""
    return f"{value[:12]}..." if isinstance(value, str) and _DIGEST.fullmatch(value) else str(value)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


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
    rows = -(-len(movers) // _FIGURE_COLUMNS)
    figure = Figure(figsize=(3.1 * _FIGURE_COLUMNS, 3.45 * rows + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(rows, _FIGURE_COLUMNS, squeeze=False).ravel()
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


def _write(output: str, report: dict[str, Any], movers: Sequence[Mover]) -> None:
    fs, path = storage.filesystem(output)
    try:
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(storage.join(path, _REPORT), (json.dumps(report, indent=2) + "\n").encode())
        fs.pipe_file(storage.join(path, "CHANGELOG.md"), changelog(report).encode())
        if movers:
            title = f"{report['before']['version']} -> {report['after']['version']}: records that moved most"
            fs.pipe_file(storage.join(path, "diff.png"), draw(movers, title))
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({storage.explain(error)})") from error
