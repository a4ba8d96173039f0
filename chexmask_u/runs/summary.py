"""Numbers of a run, added up from its records: what failed and why, how long it took, how sure the network was."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from chexmask_u import record
from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.calibration.columns import NEEDED, ood_scores
from chexmask_u.calibration.known import Known

Rank = Literal["surest", "median", "least sure", "least usual"]

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
        "quantiles": quantiles(values) if some else dict.fromkeys(map(str, QUANTILES)),
        "histogram": counts.tolist(),
    }


def quantiles(values: NDArray[np.float32]) -> dict[str, float]:
    """The `QUANTILES`, by their name, of the uncertainties of some images, float32 [images], at least one."""
    return {str(q): float(np.quantile(values, q)) for q in QUANTILES}


def summarise(records: ds.Dataset, known: Known | None = None) -> dict[str, Any]:
    """Counts, failures, seconds and uncertainty of a run; the same for the same records, in whatever order they lie.

    Reads the records as a stream: of each it keeps one float32.

    Args:
        records: rows of `record.RECORD`.
        known: radiographs that the weights' calibration knows; None where it knows none.

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
        - ``ood``: None without `known`; else how many images were compared with them, ``images``, how many of these lie
          ``beyond`` the percentile ``odd_score``, in all and by source in ``sources``, and ``known_radiographs``
        - ``contact_sheet``: up to nine records, surest first: ``record_id``, ``source``, ``uncertainty``, ``rank``; and
          up to three of those beyond, farthest first, with their ``ood_score``
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
    unusual, odd = (None, []) if known is None else _unusual(records, known)
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
        "ood": unusual,
        "contact_sheet": _choose(records, total.sorted_uncertainty()) + odd,
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


def _unusual(records: ds.Dataset, known: Known) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `summarise` says of ``ood``, and the contact sheet's records beyond, farthest first."""
    images: Counter[str] = Counter()
    beyond: Counter[str] = Counter()
    farthest: list[tuple[float, str, dict[str, Any]]] = []
    names = ["record_id", "source", "uncertainty"]
    for batch in records.to_batches(columns=[*names, *NEEDED], **_SCAN_FULL_ROWS):
        if not batch.num_rows:
            continue
        scores = ood_scores(pa.Table.from_batches([batch]), known)
        sources = np.array(batch["source"].to_pylist())
        images.update(sources[np.isfinite(scores)].tolist())
        odd = np.flatnonzero(scores > record.ODD_SCORE)
        beyond.update(sources[odd].tolist())
        for place in odd.tolist():
            row = {name: batch[name][place].as_py() for name in names} | {"ood_score": float(scores[place])}
            farthest.append((-row["ood_score"], row["record_id"], row))
        # Those that are equally far are told apart by their id.
        farthest = nsmallest(PICTURES_PER_RANK, farthest, key=lambda one: one[:2])
    said = {
        "known_radiographs": len(known.distances),
        "odd_score": record.ODD_SCORE,
        "images": images.total(),
        "beyond": beyond.total(),
        "sources": {source: {"images": images[source], "beyond": beyond[source]} for source in sorted(images)},
    }
    return said, [{**row, "rank": "least usual"} for _, _, row in farthest]


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
