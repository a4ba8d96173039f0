"""Some columns of a CSV, block by block; what is wrong with a file is named, and where."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from chexmask_u import storage
from chexmask_u.errors import InputError

# A row with three masks, at most some 300 kB, has to fit in a block; larger ones take more memory and are no faster.
_BLOCK_BYTES = 2 << 20

# Longer than any header; the file may be one that has no line breaks at all.
_HEADER_BYTES = 1 << 16

# By the first bytes of a file.
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}

_ZIP = b"PK\x03\x04"


def read_header(uri: str, what: str) -> str:
    """The first line of a CSV that should be `what`.

    Raises:
        InputError
    """
    uri = storage.normalise(uri)
    if storage.is_local(uri) and Path(uri).is_dir():
        raise InputError(f"{uri}: is a folder; expected {what}, one of its files")
    with _explained(uri, what), _opened(uri) as stream:
        start: bytes = stream.read(_HEADER_BYTES)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(
            f"{uri}: is UTF-16 text; expected {what}, in UTF-8 (a spreadsheet program may have changed it)"
        )
    if start.startswith(_ZIP):
        raise InputError(f"{uri}: is an archive or a workbook; expected {what}; unpack it, or save it as CSV")
    # Empty lines in front are passed over, as the reader of the rows does.
    line = re.split(r"\r\n?|\n", start.decode("utf-8-sig", "replace").lstrip("\r\n"), maxsplit=1)[0]
    if "\0" in line:
        raise InputError(f"{uri}: is no text; expected {what}")
    return line


def _explained(uri: str, what: str) -> AbstractContextManager[None]:
    return storage.explained(uri, f"read as {what}", missing=f"no such file; expected {what}")


@contextmanager
def _opened(uri: str) -> Iterator[pa.NativeFile]:
    """The file, unpacked if its first bytes say so: a browser may have unpacked a .gz and kept the name."""
    fs, path = storage.arrow_filesystem(uri)
    with fs.open_input_stream(path, compression=None) as stream:
        start = stream.read(4)
    compression = next((name for mark, name in _COMPRESSIONS.items() if start.startswith(mark)), None)
    with fs.open_input_stream(path, compression=compression) as stream:
        yield stream


def read_table(uri: str, columns: dict[str, pa.DataType], what: str) -> pa.Table:
    """The named columns of a CSV; see `stream_rows`."""
    return pa.Table.from_batches(stream_rows(uri, columns, what), schema=pa.schema(list(columns.items())))


def stream_rows(
    uri: str, columns: dict[str, pa.DataType], what: str, mistaken: Callable[[Sequence[str]], str | None] | None = None
) -> Iterator[pa.RecordBatch]:
    """The named columns of a CSV (.gz and others are unpacked), block by block, so that the rest is never held.

    Args:
        uri: local path or URL.
        columns: names and types; the first is the one that tells what the file is.
        what: should be there, in words.
        mistaken: says, of the names of all columns where some are missing, what else the file is, if it knows.

    Raises:
        InputError
    """
    uri = storage.normalise(uri)
    _check_header(uri, read_header(uri, what), list(columns), what, mistaken)
    rows = 0
    with _explained(uri, what):
        try:
            with _opened(uri) as stream:
                reader = pacsv.open_csv(
                    stream,
                    read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES),
                    # PadChest's reports have line breaks.
                    parse_options=pacsv.ParseOptions(newlines_in_values=True),
                    convert_options=pacsv.ConvertOptions(include_columns=list(columns), column_types=columns),
                )
                for batch in reader:
                    yield batch
                    rows += len(batch)
        except pa.ArrowInvalid as error:
            raise InputError(f"{uri}: {_fault(str(error), list(columns), rows)}; expected {what}") from error


def _fault(error: str, columns: list[str], rows: int) -> str:
    """What is wrong behind row `rows`, without the value, which may be anything where columns are shifted."""
    after = f"after row {rows:,}"
    if found := re.search(r"Expected (\d+) columns, got (\d+)", error):
        return f"{after} a row has {found[2]} columns where the header has {found[1]}"
    if found := re.search(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to (\w+)", error):
        kind = "UTF-8 text" if found[2] == "string" else "a number"
        return f"{after} a value of {', '.join(map(repr, columns))} is not {kind}"
    return f"{after} it is no CSV ({error.splitlines()[0][:80]})"


def _check_header(
    uri: str, line: str, needed: list[str], what: str, mistaken: Callable[[Sequence[str]], str | None] | None
) -> None:
    """Name the mistake that a header shows: another table, another separator, no CSV at all."""
    found = next(csv.reader(io.StringIO(line)), [])
    absent = [name for name in needed if name not in found]
    if not absent:
        return
    if not line.strip():
        raise InputError(f"{uri}: is empty; expected {what}")
    for separator in ";\t|":
        if needed[0] in (name.strip('"') for name in line.split(separator)):
            raise InputError(
                f"{uri}: its columns are separated by {separator!r}; expected {what}, separated by ','"
                " (as published; a spreadsheet program may have changed it)"
            )
    if absent[0] in (name.strip() for name in found):
        raise InputError(
            f"{uri}: has spaces around the name of its column {absent[0]!r}; expected {what}, without them"
        )
    if mistaken and (fault := mistaken(found)):
        raise InputError(f"{uri}: {fault}")
    # Without a header these are values, so numbers such as a birth year are not shown.
    names = ", ".join(repr(re.sub(r"\d{3,}", "N", name[:30])) for name in found[:8]) + (
        ", ..." if len(found) > 8 else ""
    )
    missing = ", ".join(map(repr, absent))
    raise InputError(f"{uri}: has no column {missing}; found {names}; expected {what}, with its header as published")
