"""CheXmask's CSVs as published: their columns, which source and resolution they are of, and what a row's cells mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from chexmask_u import sources
from chexmask_u.errors import InputError
from chexmask_u.manifests import csv_table
from chexmask_u.sources.base import Source

MEAN, MAX, HEIGHT, WIDTH = "Dice RCA (Mean)", "Dice RCA (Max)", "Height", "Width"

# The newest files have the first two, older ones the third, without a spread.
LANDMARKS_MEAN, LANDMARKS_STD, LANDMARKS = "Landmarks (Mean)", "Landmarks (Std)", "Landmarks"

ORGAN_COLUMNS = {"left_lung": "Left Lung", "right_lung": "Right Lung", "heart": "Heart"}
"""Column of an organ's run-length string, in the published order."""

PREPROCESSED_SIDE = 1024


def read_rows(source: Source, uri: str, own: pa.Table | None, preprocessed: bool) -> pa.Table:
    """Id, scores float64 and size int32 of every row of a CheXmask CSV, in its order; masks and landmarks stay unread.

    Both published forms will do, with `Landmarks` and with `Landmarks (Mean)` and `Landmarks (Std)`.

    Raises:
        InputError
    """
    columns = {source.id_column: pa.string(), **dict.fromkeys((MEAN, MAX, HEIGHT, WIDTH), pa.float64())}
    batches = list(stream_rows(source, uri, columns))
    rows = clean(source, pa.Table.from_batches(batches, schema=pa.schema(list(columns.items()))))
    _check_resolution(source, uri, rows, own, preprocessed)
    if preprocessed:
        for name in ("height", "width"):
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.nulls(len(rows), pa.int32()))
    return rows


def stream_rows(source: Source, uri: str, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """The named columns of a CheXmask CSV, block by block.

    Raises:
        InputError
    """

    def other_source(header: Sequence[str]) -> str | None:
        others = [s.title for s in sources.PUBLISHED.values() if s.id_column in header]
        if source.id_column in header or not others:
            return None
        return (
            f"has the id column of {' or '.join(others)}, not {source.id_column!r}; expected a CheXmask CSV of"
            f" {source.title}: give the CSV of the same source"
        )

    yield from csv_table.stream_rows(uri, columns, f"a CheXmask CSV of {source.title}", other_source)


def clean(source: Source, rows: pa.Table) -> pa.Table:
    """Id, scores float64 (`mean`, `max`) and size int32 of published rows; null where they say nothing that can be."""
    ids = pa.chunked_array([pa.array(image_ids(source, rows[source.id_column]), pa.string())])
    mean, highest = (_where(rows[name], pc.is_finite(rows[name])) for name in (MEAN, MAX))
    sides = [rows[name] for name in (HEIGHT, WIDTH)]
    sized = pc.and_(*(pc.fill_null(pc.and_(pc.greater_equal(c, 1), pc.less(c, 1 << 31)), False) for c in sides))
    height, width = (_where(pc.round(column), sized).cast(pa.int32()) for column in sides)
    return pa.table({"id": ids, "mean": mean, "max": highest, "height": height, "width": width})


def image_ids(source: Source, column: pa.ChunkedArray | pa.Array) -> list[str]:
    """Image ids, as manifests have them, of values of the CSV's id column, where Windows may have written paths."""
    return [source.row_id(value.strip().replace("\\", "/")) for value in column.to_pylist()]


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


def among(values: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of `values` are in `others`."""
    return pc.is_in(values, value_set=others.combine_chunks())
