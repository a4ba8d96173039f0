"""Every way in which a source's images, rows and tables can disagree, and the list of those that were found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv as pacsv

from chexmask_u import storage
from chexmask_u.manifests.chexmask_csv import among

PROBLEMS: dict[str, str] = {
    "missing_image": "the CSV has a row, but there is no image",
    "no_file": "the source's table lists a PA or AP view, but there is no image",
    "missing_row": "there is an image, but the CSV has no row",
    "two_files": "several files have the same image id",
    "not_followed": "a link leads nowhere, or a folder cannot be opened, and images may lie behind it",
    "conflicting_rows": "the CSV has several rows of the same id, with other values",
    "no_id": "a row of the CSV names no image",
    "other_view": "the CSV has a row, but the source's table says that the view is neither PA nor AP",
    "not_in_table": "the source's table does not list the image, so its view is unknown",
    "unreachable": "--check could not find or open the image",
    "empty_file": "--check found an image file without a byte",
    "duplicate_row": "the CSV has several rows of the same id, all alike: they count once",
    "no_scores": "the CSV's row lacks a Dice RCA score",
    "max_below_mean": "the CSV's Dice RCA (Max) is below its Dice RCA (Mean)",
    "no_size": "the CSV's row lacks Height or Width",
    "size_mismatch": "the CSV's size is not the one that the source gives, which is used",
}
"""The kinds of problems. The last five leave an image in the manifest."""

_ROW = pa.schema([("problem", pa.string()), ("image_id", pa.string()), ("detail", pa.string())])


class ProblemLog:
    """Problems in the order they were found; only public image ids and our own words, nothing else of an image."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []

    def add(self, kind: str, ids: pa.ChunkedArray | Sequence[str], details: Sequence[str] | str) -> None:
        """Add one problem of `kind` for each id, all with the same detail or each with its own."""
        ids = ids.to_pylist() if isinstance(ids, pa.ChunkedArray) else list(ids)
        details = [details] * len(ids) if isinstance(details, str) else list(details)
        columns = {
            "problem": [kind] * len(ids),
            "image_id": ids,
            "detail": details,
        }
        self._parts.append(pa.table(columns, schema=_ROW))

    def counts(self) -> dict[str, int]:
        """Problems by kind, 0 for those that did not occur."""
        found = Counter(kind for part in self._parts for kind in part["problem"].to_pylist())
        return {kind: found[kind] for kind in PROBLEMS}

    def write(self, rows: pa.Table, uri: str) -> None:
        """Write a CSV with one row per problem, and whether its image is in the manifest's `rows` all the same.

        Sorted by kind and id, so that the same input gives the same file.

        Raises:
            InputError: if it cannot be written.
        """
        table = pa.concat_tables([_ROW.empty_table(), *self._parts])
        table = table.append_column("in_manifest", among(table["image_id"], rows["image_id"]))
        stream = pa.BufferOutputStream()
        pacsv.write_csv(table.sort_by([(name, "ascending") for name in _ROW.names]), stream)
        with storage.explained(uri, "written"):
            storage.put(uri, stream.getvalue().to_pybytes())
