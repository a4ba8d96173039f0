"""CSV files as published: CheXmask's rows and the sources' own tables, with only the columns that are needed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from chexmask_u import sources, storage
from chexmask_u.errors import InputError
from chexmask_u.sources.base import Source, Table

MEAN, MAX, HEIGHT, WIDTH = "Dice RCA (Mean)", "Dice RCA (Max)", "Height", "Width"

# The newest files have the first two, older ones the third, without a spread.
LANDMARKS_MEAN, LANDMARKS_STD, LANDMARKS = "Landmarks (Mean)", "Landmarks (Std)", "Landmarks"

ORGAN_COLUMNS = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
"""Column of an organ's run-length string, in the published order."""

PREPROCESSED_SIDE = 1024

# A row with three masks, at most some 300 kB, has to fit in a block; larger ones take more memory and are no faster.
_BLOCK_BYTES = 2 << 20

# Longer than any header; the file may be one that has no line breaks at all.
_HEADER_BYTES = 1 << 16


def read_rows(source: Source, uri: str, own: pa.Table | None, preprocessed: bool) -> pa.Table:
    """Id, scores float64 and size int32 of every row of a CheXmask CSV, in its order; masks and landmarks stay unread.

    Both published forms will do, with `Landmarks` and with `Landmarks (Mean)` and `Landmarks (Std)`.

    Raises:
        InputError
    """
    columns = {source.id_column: pa.string(), **dict.fromkeys((MEAN, MAX, HEIGHT, WIDTH), pa.float64())}
    table = _read_csv(uri, columns, f"a CheXmask CSV of {source.title}")
    rows = clean(source, table)
    _check_resolution(source, uri, rows, own, preprocessed)
    if preprocessed:
        for name in ("height", "width"):
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.nulls(len(rows), pa.int32()))
    return rows


def clean(source: Source, rows: pa.Table) -> pa.Table:
    """Id, scores float64 (`mean`, `max`) and size int32 of published rows; null where they say nothing that can be."""
    ids = pa.chunked_array([pa.array(image_ids(source, rows[source.id_column]), pa.string())])
    mean, highest = (_where(rows[name], pc.is_finite(rows[name])) for name in (MEAN, MAX))
    sides = [rows[name] for name in (HEIGHT, WIDTH)]
    sized = pc.and_(*(pc.fill_null(pc.and_(pc.greater_equal(c, 1), pc.less(c, 1 << 31)), False) for c in sides))
    height, width = (_where(pc.round(column), sized).cast(pa.int32()) for column in sides)
    return pa.table({"id": ids, "mean": mean, "max": highest, "height": height, "width": width})


def image_ids(source: Source, column: pa.ChunkedArray | pa.Array) -> list[str]:
    """Image ids, as manifests have them, of values of the CSV's id column."""
    return [source.row_id(value.strip()) for value in column.to_pylist()]


def _where(column: pa.ChunkedArray, condition: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` with null where `condition` is not true."""
    return pc.if_else(condition, column, pa.scalar(None, column.type))


def _check_resolution(source: Source, uri: str, rows: pa.Table, own: pa.Table | None, preprocessed: bool) -> None:
    """Refuse the sizes of the 1024 frame where the images have sizes of their own, and say so the other way round."""
    if source.side == PREPROCESSED_SIDE:
        return
    sized = rows.filter(pc.is_valid(rows["height"]))
    if not len(sized):
        return
    if not _all_preprocessed(sized):
        if preprocessed:
            raise InputError(
                f"{uri}: --preprocessed was given, but its sizes are not all 1024x1024: this is the OriginalResolution"
                " CSV; leave --preprocessed out"
            )
        return
    if own is not None and "height" in own.column_names:
        true = own.filter(among(own["id"], sized["id"]))
        if len(true) and _all_preprocessed(true):
            return
    if not preprocessed:
        raise InputError(
            f"{uri}: Height and Width are 1024 in all {len(sized):,} rows that have them, but {source.title} images"
            " have sizes of their own: this is the Preprocessed CSV; give the one of OriginalResolution, or"
            " --preprocessed to take its ids and scores only"
        )


def _all_preprocessed(sizes: pa.Table) -> bool:
    side = pa.scalar(PREPROCESSED_SIDE)
    return bool(pc.all(pc.and_(pc.equal(sizes["height"], side), pc.equal(sizes["width"], side))).as_py())


def read_own_table(source: Source, table: Table, uri: str) -> pa.Table:
    """A source's own table: id, whether the view is frontal, and height and width (int32) where it has them."""
    columns = {table.id_column: pa.string(), table.view_column: pa.string()}
    if table.height_column and table.width_column:
        columns |= {table.height_column: pa.float64(), table.width_column: pa.float64()}
    read = _read_csv(uri, columns, f"the table of {source.title}")
    frontal = pc.is_in(read[table.view_column], value_set=pa.array(table.frontal))
    result = pa.table({"id": read[table.id_column], "frontal": frontal})
    if table.height_column and table.width_column:
        for name, column in (("height", table.height_column), ("width", table.width_column)):
            result = result.append_column(name, pc.round(read[column]).cast(pa.int32()))
    return result


def read_header(uri: str, what: str) -> str:
    """The first line of a CSV that should be `what`.

    Raises:
        InputError
    """
    try:
        fs, path = storage.arrow_filesystem(storage.normalise(uri))
        with fs.open_input_stream(path, compression="detect") as stream:
            start: bytes = stream.read(_HEADER_BYTES)
    except Exception as error:
        raise _unreadable(uri, error, what) from error
    return start.decode("utf-8-sig", "replace").partition("\n")[0].rstrip("\r")


def _read_csv(uri: str, columns: dict[str, pa.DataType], what: str) -> pa.Table:
    """The named columns of a CSV; see `stream_rows`."""
    return pa.Table.from_batches(stream_rows(uri, columns, what), schema=pa.schema(list(columns.items())))


def stream_rows(uri: str, columns: dict[str, pa.DataType], what: str) -> Iterator[pa.RecordBatch]:
    """The named columns of a CSV (.gz and others are unpacked), block by block, so that the rest is never held.

    Raises:
        InputError
    """
    uri = storage.normalise(uri)
    _check_header(uri, read_header(uri, what), list(columns), what)
    rows = 0
    try:
        fs, path = storage.arrow_filesystem(uri)
        with fs.open_input_stream(path, compression="detect") as stream:
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
        raise InputError(f"{uri}: {_csv_fault(str(error), list(columns), rows)}; expected {what}") from error
    except Exception as error:
        raise _unreadable(uri, error, what) from error


def _unreadable(uri: str, error: Exception, what: str) -> InputError:
    if storage.is_missing(error):
        return InputError(f"{uri}: no such file; expected {what}")
    return InputError(f"{uri}: cannot be read ({storage.explain(error)})")


def _csv_fault(error: str, columns: list[str], rows: int) -> str:
    """What is wrong behind row `rows`, without the value, which may be anything where columns are shifted."""
    after = f"after row {rows:,}"
    if found := re.search(r"Expected (\d+) columns, got (\d+)", error):
        return f"{after} a row has {found[2]} columns where the header has {found[1]}"
    if found := re.search(r"In CSV column #(\d+): CSV conversion error to (\w+)", error):
        kind = "text" if found[2] == "string" else "a number"
        return f"{after} a value of {', '.join(map(repr, columns))} is not {kind}"
    return f"{after} it is no CSV ({error.splitlines()[0][:80]})"


def _check_header(uri: str, line: str, needed: list[str], what: str) -> None:
    """Name the mistake that a header shows: another source, another separator, no CSV at all."""
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
    # Without a header these are values, so numbers such as a birth year are not shown.
    names = ", ".join(repr(re.sub(r"\d{3,}", "N", name[:30])) for name in found[:8]) + (
        ", ..." if len(found) > 8 else ""
    )
    missing = ", ".join(map(repr, absent))
    others = [s.title for s in sources.PUBLISHED.values() if s.id_column in found and s.id_column != needed[0]]
    if MEAN in needed and others:
        raise InputError(
            f"{uri}: has the id column of {' or '.join(others)}, not {needed[0]!r}; expected {what}:"
            " give the CSV of the same source"
        )
    raise InputError(f"{uri}: has no column {missing}; found {names}; expected {what}, with its header as published")


def among(values: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of `values` are in `others`."""
    return pc.is_in(values, value_set=others.combine_chunks())
