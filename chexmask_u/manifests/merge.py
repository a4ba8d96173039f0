"""Manifests of several sources -> one, with the totals of the CheXmask data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from chexmask_u import sources, storage
from chexmask_u.errors import InputError, did_you_mean
from chexmask_u.manifests import parquet
from chexmask_u.manifests.check import check_columns, inspect_all
from chexmask_u.result import Result
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

    Each is checked as `generate` checks its manifest. Nothing is written before everything is checked; memory holds 8
    bytes of every row, then one source at a time and the merged file.

    Raises:
        InputError: on an unusable manifest, an id that occurs twice, a source with other rows than expected that
            neither `accept_rows` nor `accept_less` allows, or another manifest at `output`.
    """
    output = storage.normalise(settings.output)
    parquet.check_name(output)
    inputs = [storage.normalise(uri) for uri in settings.manifests]
    if output in inputs:
        raise InputError(f"{output}: is one of the manifests to merge; choose another --output")
    if len(set(inputs)) < len(inputs):
        raise InputError("the same manifest is named twice; name each once")
    for uri in inputs:
        check_columns(uri)
    facts = inspect_all(inputs)
    counts = Counter[str]()
    for one in facts:
        counts.update(one.sources)
    accepted = _check_totals(counts, settings)
    tables = (_source_rows([one.uri for one in facts if source in one.sources], source) for source in sorted(counts))
    rows = parquet.write(tables, output, overwrite=settings.overwrite)
    return MergeReport(output, rows, dict(sorted(counts.items())), accepted)


def _check_totals(counts: Mapping[str, int], settings: ManifestMergeSettings) -> dict[str, int]:
    """Compare with the CheXmask data set; returns the totals that were accepted though others are expected."""
    allowed = settings.accepted_rows()
    for name in allowed:
        if name not in sources.PUBLISHED:
            raise InputError(
                f"--accept-rows {name}: nothing is expected of it; use {', '.join(sources.PUBLISHED)}"
                f"{did_you_mean(name, sources.PUBLISHED)}"
            )
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
    return pa.concat_tables([parquet.read_source(uri, source) for uri in uris]).sort_by("record_id")


def verb(settings: ManifestMergeSettings) -> Result:
    """`chexmask-u manifest merge`."""
    report = merge(settings)
    lines = [f"{report.manifest}: {report.rows:,} rows"]
    for source, rows in report.sources.items():
        expected = sources.get(source).expected_rows
        accepted = f" (accepted; {expected:,} expected)" if source in report.accepted and expected is not None else ""
        lines.append(f"  {source}: {rows:,}{accepted}")
    return Result(report.asdict(), "\n".join(lines))
