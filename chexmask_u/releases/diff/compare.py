"""The records of two releases, side by side in the order of their ids, so that memory does not grow with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u.anatomy import LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.releases.release import READ_ROWS, Release, config

QUANTILES = {"50%": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}

# Rows held of each release at once: some 10 MB.
BATCH_ROWS = 4096

_EXAMPLES = 10

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
            "masks_differ": masks_differ if both else None,
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
class Comparison:
    """What is found while the records of all sources of two releases go by.

    Attributes:
        before, after: the releases.
        failed_before, failed_after: reasons of their failures by record id.
        most: how many movers are kept.
        movers: the largest so far.
        recovered: ids of records whose images had failed before.
        examples: a few ids of each kind of record that is in one release only.
    """

    before: Release
    after: Release
    failed_before: Mapping[str, str]
    failed_after: Mapping[str, str]
    most: int
    movers: list[Mover] = field(default_factory=list)
    recovered: set[str] = field(default_factory=set)
    examples: dict[str, list[str]] = field(
        default_factory=lambda: {"added": [], "removed": [], "failed_to_ok": [], "ok_to_failed": []}
    )

    def of_source(self, source: str) -> dict[str, Any]:
        """What changed in the records of one source, ready for JSON."""
        tally = _Source()
        for old, new in _align(_landmarks(self.before, source), _landmarks(self.after, source)):
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
        before, after = (release.counts.get(source, {"ok": 0})["ok"] for release in (self.before, self.after))
        # Masks are drawn from the landmarks: where these moved, reading gigabytes of run lengths would tell no more.
        moved = tally.columns["landmarks_mean"] > 0
        return tally.describe(before, after, masks_differ=moved or _masks_differ(self.before, self.after, source))

    def _note(self, kind: str, record_id: str) -> None:
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(record_id)


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
    """A column of landmarks [rows, 240] as points [rows, 120, 2], x then y, in whatever frame they are."""
    return column.reshape(-1, N_LANDMARKS, 2).astype(np.float64)


def _to_frame(column: NDArray[Any], letterbox: NDArray[np.float64]) -> NDArray[np.float64]:
    """Original pixels -> pixels of the 1024 frame [rows, 120, 2], as `Letterbox.to_frame` does for one image.

    Args:
        column: landmarks [rows, 240], original pixels.
        letterbox: float64 [rows, 7], in the order of `record.LETTERBOX`.
    """
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


def _landmarks(release: Release, source: str) -> Iterator[Block]:
    """Landmark records of one source, `BATCH_ROWS` at a time."""
    for table in release.rows(source, "landmarks", at_once=BATCH_ROWS, any_schema=True):
        yield {name: _to_numpy(table[name].chunk(0)) for name in table.column_names}


def _masks(release: Release, source: str) -> Iterator[Block]:
    """Ids and run-length strings of one source, `READ_ROWS` at a time."""
    for table in release.rows(source, "masks", at_once=READ_ROWS, any_schema=True):
        masks = {organ: table[organ].to_numpy(zero_copy_only=False) for organ in ORGANS}
        yield {"record_id": _to_numpy(table["record_id"].chunk(0)), **masks}


def _masks_differ(before: Release, after: Release, source: str) -> bool:
    """Whether a record that is in both has another mask; files may differ for the records beside it, or their cut."""
    name = config(source, "masks")
    old, new = ({file.sha256 for file in release.configs.get(name, [])} for release in (before, after))
    if old == new:
        return False
    for one, other in _align(_masks(before, source), _masks(after, source)):
        _, in_one, in_other = np.intersect1d(
            one["record_id"], other["record_id"], assume_unique=True, return_indices=True
        )
        if any((one[organ][in_one] != other[organ][in_other]).any() for organ in ORGANS):
            return True
    return False


def _to_numpy(column: pa.Array) -> NDArray[Any]:
    """A column as `Block` has it; NaN where a list is null."""
    rows = len(column)
    if pa.types.is_struct(column.type):
        return np.stack([_to_numpy(child).astype(np.float64) for child in column.flatten()], axis=1)
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=np.str_)
    if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    there = column.is_valid().to_numpy(zero_copy_only=False)
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        # Rows that are null are left out by flatten().
        column = column.flatten()
    present = column.to_numpy(zero_copy_only=False)
    values = np.full((rows, len(present) // max(1, there.sum())), np.nan, np.float32)
    values[there] = present.reshape(there.sum(), values.shape[1])
    return values


def failures(release: Release) -> dict[str, str]:
    """Reasons of a release's failures by record id."""
    failed: dict[str, str] = {}
    for table in release.rows(None, "failures", at_once=BATCH_ROWS, any_schema=True):
        failed.update(zip(table["record_id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    return failed


def _quantiles(values: NDArray[np.float32] | None) -> dict[str, float] | None:
    """`QUANTILES` of one value per record [rows]; None where there is none."""
    if values is None or not len(values):
        return None
    return {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()}
