"""A source's own table: which of its images are frontal, how large they are, and which are missing."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from chexmask_u.manifests import csv_table
from chexmask_u.sources.base import Source, Table


def read(source: Source, table: Table, uri: str) -> pa.Table:
    """Id, whether the view is frontal, and height and width (int32) where the table has them.

    Raises:
        InputError
    """
    columns = {table.id_column: pa.string(), table.view_column: pa.string()}
    if table.height_column and table.width_column:
        columns |= {table.height_column: pa.float64(), table.width_column: pa.float64()}
    found = csv_table.read_table(uri, columns, f"the table of {source.title}")
    ids, views = (pc.utf8_trim_whitespace(found[name]) for name in (table.id_column, table.view_column))
    result = pa.table({"id": ids, "frontal": pc.is_in(views, value_set=pa.array(table.frontal))})
    if table.height_column and table.width_column:
        for name, column in (("height", table.height_column), ("width", table.width_column)):
            result = result.append_column(name, pc.round(found[column]).cast(pa.int32()))
    return result


def is_needed(source: Source) -> bool:
    """Whether only the source's own table tells frontal views."""
    return source.table is not None and not source.table.optional


def official_name(source: Source) -> str:
    """The file name of a source's table as people write it."""
    pattern = source.table.pattern if source.table else ""
    return pattern.replace(r"(\.gz)?", "[.gz]").replace(r"\d+", "N").replace(".*", "*").replace("\\", "")
