"""Manifests of several sources -> one, with the totals of the CheXmask data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexmask_u import record, sources, storage
from chexmask_u.errors import InputError
from chexmask_u.manifests import manifest
from chexmask_u.settings import ManifestMergeSettings


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote: rows by source, and the sources whose totals were accepted though others were expected."""

    manifest: str
    rows: int
    sources: dict[str, int]
    accepted: dict[str, int]

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def merge(settings: ManifestMergeSettings) -> MergeReport:
    """Join manifests into one, sorted by source and record id, once its ids and totals are found right.

    Nothing is written before everything is checked; memory holds the ids of all manifests, then one source at a time.

    Raises:
        InputError: on an unusable manifest, an id that occurs twice, or a source with other rows than expected that
            neither `accept_rows` nor `accept_less` allows.
    """
    if not settings.manifests:
        raise InputError("no manifest to merge; `chexmask-u manifest SOURCE` writes them")
    output = storage.normalise(settings.output)
    inputs = [storage.normalise(uri) for uri in settings.manifests]
    if output in inputs:
        raise InputError(f"{output}: is one of the manifests to merge; choose another --output")
    if len(set(inputs)) < len(inputs):
        raise InputError("the same manifest is named twice; name each once")
    counts, holders = _count_sources(inputs)
    accepted = _check_totals(counts, settings)
    rows = manifest.write((_source_rows(holders[source], source) for source in sorted(counts)), output)
    return MergeReport(output, rows, dict(sorted(counts.items())), accepted)


def _count_sources(uris: Sequence[str]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Rows by source, and which manifests hold them; ids are checked on the way."""
    counts: Counter[str] = Counter()
    holders: dict[str, list[str]] = {}
    ids = []
    for uri in uris:
        manifest.check_columns(uri)
        table = _read_parquet(uri, columns=list(record.REQUIRED_MANIFEST_COLUMNS))
        for name in record.REQUIRED_MANIFEST_COLUMNS:
            if nulls := table[name].null_count:
                raise InputError(f"{uri}: {nulls} rows have no {name}; every row needs one")
        for found in pc.value_counts(table["source"]):
            source = found["values"].as_py()
            manifest.check_source_name(source)
            counts[source] += found["counts"].as_py()
            holders.setdefault(source, []).append(uri)
        ids.append(table["record_id"].cast(pa.string()))
    everything = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    if pc.count_distinct(everything).as_py() < len(everything):
        counted = pc.value_counts(everything)
        repeated = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
        where = [uri for uri, column in zip(uris, ids, strict=True) if pc.index(column, repeated[0]).as_py() >= 0]
        raise InputError(
            f"{len(repeated):,} record ids occur more than once, for instance {repeated[0].as_py()!r} in"
            f" {' and '.join(where)}; each image needs one row with an id of its own"
        )
    return dict(counts), holders


def _check_totals(counts: dict[str, int], settings: ManifestMergeSettings) -> dict[str, int]:
    """Compare with the CheXmask data set; returns the totals that were accepted though others are expected."""
    allowed = settings.accepted_rows()
    for name in allowed:
        if name not in sources.PUBLISHED:
            raise InputError(f"--accept-rows {name}: nothing is expected of it; use {', '.join(sources.PUBLISHED)}")
    accepted: dict[str, int] = {}
    wrong = []
    for name, source in sources.PUBLISHED.items():
        rows, expected = counts.get(name, 0), source.expected_rows
        if expected is None:
            continue
        if rows == allowed.get(name, expected):
            if rows != expected:
                accepted[name] = rows
        elif name not in allowed and settings.accept_less and rows < expected:
            accepted[name] = rows
        else:
            wrong.append((name, rows, allowed.get(name, expected)))
    if wrong:
        found = ", ".join(f"{name} {rows:,} of {expected:,}" for name, rows, expected in wrong)
        total = sum(source.expected_rows or 0 for source in sources.PUBLISHED.values())
        published = sum(counts.get(name, 0) for name in sources.PUBLISHED)
        flags = " ".join(f"--accept-rows {name}={rows}" for name, rows, _ in wrong)
        raise InputError(
            f"rows found and expected: {found} ({published:,} of the {total:,} of all sources); add what is missing, or"
            f" accept it with {flags}, or any smaller total with --accept-less"
        )
    return accepted


def _source_rows(uris: Sequence[str], source: str) -> pa.Table:
    parts = [manifest.complete(_read_parquet(uri, filters=[("source", "=", source)])) for uri in uris]
    return pa.concat_tables(parts).sort_by("record_id")


def _read_parquet(uri: str, **options: Any) -> pa.Table:
    fs, path = storage.arrow_filesystem(uri)
    try:
        return pq.read_table(path, filesystem=fs, **options)
    except Exception as error:
        raise InputError(f"{uri}: cannot be read ({storage.explain(error)})") from error
