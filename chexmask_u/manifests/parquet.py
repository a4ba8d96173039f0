"""A manifest as a Parquet file: read some rows at a time, given every column, written whole and never over another."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexmask_u import record, storage
from chexmask_u.errors import InputError
from chexmask_u.manifests.listing import is_image

# Rows of a manifest in memory at once: a few MB.
BATCH_ROWS = 1 << 14

# Read of a column at once, so that an object store is asked for megabytes and not for pages.
_BUFFER_BYTES = 1 << 22

_MAKES_ONE = "`chexmask-u manifest folder FOLDER --output M.parquet` makes one of a folder of images"


def schema(uri: str) -> pa.Schema:
    """The columns of a manifest, from its footer alone.

    Raises:
        InputError: if it is not there or no Parquet file.
    """
    with _explained(uri):
        fs, path = storage.arrow_filesystem(uri)
        with fs.open_input_file(path) as file:
            return pq.read_schema(file)


def batches(uri: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Those of the columns that a manifest has, `BATCH_ROWS` rows at a time.

    Raises:
        InputError: if it cannot be read.
    """
    with _explained(uri):
        fs, path = storage.arrow_filesystem(uri)
        # What `pre_buffer` holds, all columns of a row group, is the whole manifest.
        with (
            fs.open_input_file(path) as stream,
            pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
        ):
            yield from file.iter_batches(BATCH_ROWS, columns=list(columns))


def read_source(uri: str, source: str) -> pa.Table:
    """A manifest's rows of one source, with every column.

    Raises:
        InputError: if it cannot be read.
    """
    with _explained(uri):
        fs, path = storage.arrow_filesystem(uri)
        return complete(pq.read_table(path, filesystem=fs, filters=[("source", "=", source)]))


def sha256(uri: str) -> str:
    """Digest of a manifest's bytes.

    Raises:
        InputError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with _explained(uri):
        fs, path = storage.arrow_filesystem(uri)
        with fs.open_input_stream(path) as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def complete(batch: pa.Table) -> pa.Table:
    """Manifest rows with every column of `record.MANIFEST`, null where the manifest has none; others are dropped."""
    columns = [
        finite(batch[field.name]).cast(field.type)
        if field.name in batch.column_names
        else pa.nulls(len(batch), field.type)
        for field in record.MANIFEST
    ]
    return pa.table(columns, schema=record.MANIFEST)


def finite(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column with null for what is no number, as other tools write what is missing."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def check_name(uri: str) -> None:
    """Raise InputError unless the name of a manifest to be written says what it is."""
    if not uri.endswith(".parquet"):
        raise InputError(f"{uri}: a manifest is a Parquet file; let --output end in .parquet")


@dataclass(frozen=True)
class Draft:
    """A manifest that may be written: nothing else is there, or it may be replaced."""

    uri: str
    content: bytes
    rows: int
    is_there: bool

    def write(self) -> int:
        """Write it whole, in a folder that is made if need be; returns the number of rows.

        The same rows stay as they are, bytes and all: runs know their manifest by its digest.

        Raises:
            InputError: if it cannot be written.
        """
        if not self.is_there:
            with storage.explained(self.uri, "written"):
                storage.put(self.uri, self.content)
        return self.rows


def draft(tables: Iterable[pa.Table], uri: str, *, overwrite: bool = False) -> Draft:
    """Manifest rows, one table after the other, as a file that may be written to `uri`.

    Raises:
        InputError: if a file is there with anything else than these rows, unless `overwrite`.
    """
    check_name(uri)
    stream = io.BytesIO()
    rows = 0
    with pq.ParquetWriter(stream, record.MANIFEST) as writer:
        for table in tables:
            writer.write_table(table)
            rows += len(table)
    content = stream.getvalue()
    before = _content(uri)
    same = before is not None and _same_rows(before, content)
    if before is not None and not same and not overwrite:
        raise InputError(
            f"{uri}: is there already with other content than these {rows:,} rows, and a run may rest on it; choose"
            " another --output, or replace it with --overwrite"
        )
    return Draft(uri, content, rows, is_there=same)


def write(tables: Iterable[pa.Table], uri: str, *, overwrite: bool = False) -> int:
    """Write a manifest; see `draft`. Returns the number of rows."""
    return draft(tables, uri, overwrite=overwrite).write()


def _content(uri: str) -> bytes | None:
    """The bytes of an object, or None if there is none."""
    with storage.explained(uri, "written"):
        fs, path = storage.filesystem(uri)
        try:
            content: bytes = fs.cat_file(path)
        except Exception as error:
            if storage.is_missing(error):
                return None
            raise
    return content


def _same_rows(before: bytes, after: bytes) -> bool:
    """Whether two files are of the same rows, whatever version of the Parquet library wrote them."""
    if before == after:
        return True
    try:
        return bool(pq.read_table(io.BytesIO(before)).equals(pq.read_table(io.BytesIO(after))))
    except (pa.ArrowException, OSError):
        return False


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what reading a manifest raises into one line that says how to get one."""
    try:
        with storage.explained(uri, missing=f"no such manifest; {_MAKES_ONE}"):
            yield
    except InputError as error:
        fault = error.__cause__
        if fault is None:
            raise
        if _is_folder(uri):
            raise InputError(
                f"{uri}: is a folder, not a manifest;"
                f" `chexmask-u manifest folder {uri} --output M.parquet` makes one of its images"
            ) from error
        if isinstance(fault, pa.ArrowInvalid):
            what = "an image, not a manifest" if is_image(uri) else f"no Parquet file ({storage.explain(fault)})"
            raise InputError(f"{uri}: is {what}; {_MAKES_ONE}") from error
        raise


def _is_folder(uri: str) -> bool:
    """Whether there is a folder or URL prefix, as far as the storage answers."""
    try:
        fs, path = storage.filesystem(uri, patient=False)
        return bool(fs.isdir(path))
    except Exception:  # the storage's trouble is told already
        return False
