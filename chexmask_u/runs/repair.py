"""Parts of a run that are taken out, so that their images are done again: lost, doubled, or failed ones to retry."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from chexmask_u import record, storage
from chexmask_u.errors import InputError
from chexmask_u.runs.run import COMPRESSION, PENDING, VERIFIED, Run, content_of, parquet_files

# Requests for file footers at the same time, which are all latency on an object store.
_FOOTER_READERS = 32

# Parts that are rewritten at the same time; each is a few MB in memory.
_REWRITERS = 8


def lost_parts(run: Run) -> dict[str, list[str]]:
    """Checkpoints whose part is gone, damaged or short, each with the files that are left of the part.

    A disk or a person can lose a file that was committed, or write another one in its place; its checkpoint alone would
    still count it as done.

    Raises:
        InputError: if the storage fails; a part is lost only where the storage answers and the part is not whole.
    """
    checkpoint_fs, _ = storage.arrow_filesystem(run.checkpoint)
    records_fs, _ = storage.arrow_filesystem(run.records)

    def is_whole(part: tuple[str, list[str]]) -> bool:
        checkpoint, files = part
        committed, stored = _told(checkpoint_fs, checkpoint), [_told(records_fs, file) for file in files]
        if not 0 < committed.rows == sum(one.rows for one in stored):
            return False
        ids = [one.ids for one in stored if one.ids is not None]
        if committed.ids is None or len(ids) < len(stored):
            return True
        return committed.ids == (min(first for first, _ in ids), max(last for _, last in ids))

    parts = run.parts()
    try:
        with ThreadPoolExecutor(_FOOTER_READERS) as pool:
            whole = list(pool.map(is_whole, parts.items()))
    except OSError as error:
        raise InputError(f"{run.url}: cannot be read ({storage.explain(error)}); try again later") from error
    return {part[0]: part[1] for part, fine in zip(parts.items(), whole, strict=True) if not fine}


def redo_lost(run: Run) -> int:
    """Delete what is left of lost parts, and their checkpoints, so that their images are done again."""
    checkpoint_fs, checkpoint_path = storage.arrow_filesystem(run.checkpoint)
    checkpoints = set(parquet_files(checkpoint_fs, checkpoint_path))
    for file in checkpoints:
        # Object stores rename by a copy and a deletion. Killed between the two, a part is both committed and not,
        # and Ray would delete its records; they are whole, or the part is a lost one.
        if file.endswith(PENDING) and file.removesuffix(PENDING) + ".parquet" in checkpoints:
            checkpoint_fs.delete_file(file)
    lost = lost_parts(run)
    _delete(run, lost)
    return len(lost)


def redo_doubled(run: Run) -> int:
    """Delete parts, with their checkpoints, that hold a record which another part holds too; returns how many.

    A machine that a network has cut off can go on writing for a driver that is gone, while the next driver's own
    machines do the same images. What a deleted part alone held is done again.
    """
    checkpoint_fs, _ = storage.arrow_filesystem(run.checkpoint)
    parts = run.parts()
    checkpoints = sorted(parts)
    seen: set[str] = set()
    doubled = []
    with ThreadPoolExecutor(_FOOTER_READERS) as pool:
        read = partial(pq.read_table, filesystem=checkpoint_fs, columns=["record_id"])
        for checkpoint, table in zip(checkpoints, pool.map(read, checkpoints), strict=True):
            ids = table["record_id"].to_pylist()
            if seen.isdisjoint(ids):
                seen.update(ids)
            else:
                doubled.append(checkpoint)
    _delete(run, {checkpoint: parts[checkpoint] for checkpoint in doubled})
    return len(doubled)


def _delete(run: Run, parts: Mapping[str, list[str]]) -> None:
    """Delete parts: files first, since without the checkpoint nobody would look for what is left of them."""
    checkpoint_fs, _ = storage.arrow_filesystem(run.checkpoint)
    records_fs, _ = storage.arrow_filesystem(run.records)
    for checkpoint, files in parts.items():
        for file in files:
            records_fs.delete_file(file)
        checkpoint_fs.delete_file(checkpoint)


def redo_failed(run: Run, reasons: Collection[str]) -> int:
    """Take out of the run the rows that failed for these reasons, so that they are done again.

    A part with such rows is replaced by one without, under a new name, by Ray's own two steps: a part counts only
    while its checkpoint is not pending, and Ray deletes pending parts. The old one is made pending before the new
    one is committed; so a kill in between leaves rows to be done again, and never one that is there twice or gone.

    Returns:
        How many rows.

    Raises:
        InputError: if the storage fails; what was done so far stays done.
    """
    wanted = pa.array(sorted(reasons), pa.string())
    parts = run.parts()
    try:
        with ThreadPoolExecutor(_REWRITERS) as pool:
            return sum(pool.map(partial(_without, run, wanted), parts.keys(), parts.values()))
    except OSError as error:
        raise InputError(
            run.damaged_part() or f"{run.url}: cannot be rewritten ({storage.explain(error)}); try again later"
        ) from error


def _without(run: Run, reasons: pa.Array, checkpoint: str, files: list[str]) -> int:
    """Replace a part by one without the rows of these reasons; returns how many there were."""
    checkpoint_fs, checkpoint_path = storage.arrow_filesystem(run.checkpoint)
    records_fs, records_path = storage.arrow_filesystem(run.records)
    # Damage would get a checksum of its own with the rows that are kept.
    part = pads.dataset(files, schema=record.RECORD, filesystem=records_fs, format=VERIFIED)
    taken = pc.field("reason").isin(reasons)
    count = int(part.count_rows(filter=taken))
    if not count:
        return 0
    kept = part.to_table(filter=~taken)
    name = uuid.uuid4().hex
    new = storage.join(checkpoint_path, name)
    old = checkpoint.removesuffix(".parquet")
    if len(kept):
        pq.write_table(kept.select(["record_id"]), new + PENDING, filesystem=checkpoint_fs)
        target = storage.join(records_path, f"{name}.parquet")
        pq.write_table(kept, target, filesystem=records_fs, compression=COMPRESSION, write_page_checksum=True)
    checkpoint_fs.move(checkpoint, old + PENDING)
    if len(kept):
        checkpoint_fs.move(new + PENDING, new + ".parquet")
    for file in files:
        records_fs.delete_file(file)
    checkpoint_fs.delete_file(old + PENDING)
    return count


class _Told(NamedTuple):
    """What a Parquet file's footer tells: rows, and the first and last of their ids; None where it does not."""

    rows: int
    ids: tuple[str, str] | None = None


def _told(fs: pafs.FileSystem, file: str) -> _Told:
    """Read a footer; a file whose footer cannot be parsed has lost all its rows.

    Raises:
        OSError: if the storage fails, which says nothing of the file.
    """
    damaged = (OSError, pa.ArrowInvalid)
    try:
        with fs.open_input_file(file) as stream:
            return _of_footer(pq.read_metadata(stream))
    except damaged:
        content = content_of(fs, file)
    try:
        return _of_footer(pq.read_metadata(pa.BufferReader(content)))
    except damaged:
        return _Told(0)


def _of_footer(footer: pq.FileMetaData) -> _Told:
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    # The id is the first column of records and of checkpoints.
    known = [group.column(0).statistics for group in groups if group.column(0).path_in_schema == "record_id"]
    if not known or len(known) < len(groups) or not all(one is not None and one.has_min_max for one in known):
        return _Told(footer.num_rows)
    return _Told(footer.num_rows, (min(one.min for one in known), max(one.max for one in known)))
