"""The files of a release, written from the run: shards by workers, each on its own, then the pages and the marker."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexmask_u import record
from chexmask_u.calibration.columns import columns as calibrated
from chexmask_u.columns import to_landmarks
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.releases import card, validate
from chexmask_u.releases.plan import Plan, Shard, described, read
from chexmask_u.releases.release import ATTEMPT, MARKER, File, Release
from chexmask_u.runs.run import Run
from chexmask_u.runs.summary import distribution

# Run-length strings are long: smaller groups keep a group far below the 100 MB that the Hub's viewer can read.
MASK_ROWS_PER_GROUP = 5_000


def write_shard(run: Run, plan: Plan, shard: Shard) -> File:
    """Write one shard; returns what release.json is to say of it.

    Raises:
        InputError: if the run does not hold the rows that were planned, or the folder cannot be written.
    """
    file, content = _encode(run, plan, shard)
    _check_claim(plan)
    Folder(plan.folder).write(shard.path, content)
    return file


def describe_shard(run: Run, plan: Plan, shard: Shard) -> File:
    """What `write_shard` would return, without writing."""
    return _encode(run, plan, shard)[0]


def finish(plan: Plan, files: list[File]) -> Release:
    """Write the pages and, once everything else is there and valid, the marker that makes the folder a release."""
    _check_claim(plan)
    draft = plan.release(files)
    pages = card.pages(draft, plan.sample)
    for name, page in pages.items():
        draft.write(name, page)
    release = Release(plan.folder, {**draft.content, "pages": described(pages)})
    validate.check_content(release)
    _check_claim(plan)
    release.write_json(MARKER, release.content)
    release.remove(ATTEMPT)
    return release


def _check_claim(plan: Plan) -> None:
    folder = Folder(plan.folder)
    if folder.read(ATTEMPT) != plan.attempt.encode() or folder.read(MARKER) is not None:
        raise InputError(f"{plan.folder}: another release of this version is under way; this one stops")


def _encode(run: Run, plan: Plan, shard: Shard) -> tuple[File, bytes]:
    """What release.json says of a shard, and its bytes."""
    wanted = pc.field("status") == (record.FAILED if shard.kind == "failures" else record.OK)
    if shard.source is not None:
        wanted &= pc.field("source") == shard.source
    wanted &= ~pc.field("source").isin(pa.array(plan.excluded, pa.string()))
    schema = plan.release([]).schema(shard.kind)
    dataset = run.dataset(shard.files)

    def rows(columns: list[str], first: str, last: str) -> pa.Table:
        within = (pc.field("record_id") >= first) & (pc.field("record_id") <= last)
        return read(run, dataset, columns, wanted & within).sort_by("record_id")

    ids = rows(["record_id"], shard.first, shard.last)["record_id"]
    if len(ids) != shard.rows:
        raise InputError(f"{run.url}: {shard.path} needs {shard.rows} records, found {len(ids)}; is it still running?")
    sink = io.BytesIO()
    rows_per_group = min(plan.rows_per_group, MASK_ROWS_PER_GROUP) if shard.kind == "masks" else plan.rows_per_group
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        # Group by group, since masks of a whole shard are more than a GB in memory.
        for start in range(0, len(ids), rows_per_group):
            group = ids.slice(start, rows_per_group)
            names = [name for name in schema.names if name not in record.CALIBRATED.names]
            table = rows(names, group[0].as_py(), group[-1].as_py())
            if plan.calibration is not None and shard.kind == "landmarks":
                for name, column in calibrated(table, plan.calibration).items():
                    table = table.append_column(name, column)
            writer.write_table(table.cast(schema), row_group_size=rows_per_group)
    content = sink.getvalue()
    file = File(
        path=shard.path,
        config=shard.config,
        kind=shard.kind,
        rows=shard.rows,
        # A shard of landmarks is one group.
        outside=_outside(table) if shard.kind == "landmarks" else None,
        uncertainty=_histogram(table["uncertainty"]) if shard.kind == "landmarks" else None,
        odd=pc.sum(pc.greater(table["ood_score"], record.ODD_SCORE), min_count=0).as_py()
        if plan.calibration is not None and shard.kind == "landmarks"
        else None,
        arrow_bytes=_arrow_bytes(content),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return file, content


def _outside(table: pa.Table) -> int:
    """Records with a mean landmark outside their image."""
    sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    return sum(
        bool(mean is not None and ((mean < 0) | (mean > np.array(size))).any())
        for mean, size in zip(to_landmarks(table["landmarks_mean"]), sizes, strict=True)
    )


def _histogram(uncertainty: pa.ChunkedArray) -> dict[str, int]:
    """Records by bin: bin k holds uncertainties from `summary.BIN_EDGES`[k] on, in pixels of the 1024 frame."""
    counts = distribution(np.sort(uncertainty.to_numpy()))["histogram"]
    return {str(index): count for index, count in enumerate(counts) if count}


def _arrow_bytes(parquet: bytes) -> int:
    """Size in memory of a Parquet file's rows, as `datasets` counts it: by row group, in its own types."""
    # It takes seconds to import, and only a release needs it.
    from datasets import Features
    from datasets.table import table_cast

    file = pq.ParquetFile(io.BytesIO(parquet))
    schema = Features.from_arrow_schema(file.schema_arrow).arrow_schema
    groups = (file.read_row_group(index) for index in range(file.num_row_groups))
    return sum(int(table_cast(group, schema).nbytes) for group in groups)
