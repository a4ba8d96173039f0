"""Rows of a CheXmask CSV, as published or as `chexmask-u export` writes it, in the types of a release."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from chexmask_u import record, sources, storage
from chexmask_u.anatomy import N_LANDMARKS
from chexmask_u.columns import landmark_array
from chexmask_u.errors import InputError
from chexmask_u.manifests import chexmask_csv, csv_table
from chexmask_u.sources.base import Source

FLAGS: dict[str, str] = {
    "no_id": "the row names no image",
    "no_scores": "a Dice RCA score is missing",
    "max_below_mean": "Dice RCA (Max) is below Dice RCA (Mean)",
    "no_size": "Height or Width is missing, so the masks cannot be decoded",
    "no_landmarks": "the landmarks are missing",
}
"""Every fault that a row may have and is kept with, as published."""

PUBLISHED_ROW = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("dice_rca_mean", pa.float64()),
        pa.field("dice_rca_max", pa.float64()),
        pa.field("landmarks_mean", record.LANDMARK_ARRAY),
        pa.field("landmarks_std", record.LANDMARK_ARRAY),
        *(pa.field(organ, pa.string()) for organ in chexmask_csv.ORGAN_COLUMNS),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
    ]
)
"""A published row. Pixels are those of the file's folder: original ones, or those of the 1024 frame (Preprocessed)."""


def read_published(
    uri: str | Path, source: str | None = None, wanted: Callable[[list[str]], Sequence[bool]] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a CheXmask CSV in its order, some at a time: a whole file has tens of GB.

    Both published forms will do: `Landmarks (Mean)` with `Landmarks (Std)`, or `Landmarks` alone, whose rows have null
    for `landmarks_std`. A row of which something is missing or contradicts itself is kept, and its `flags` say so.

    Args:
        uri: local path or URL of the CSV, which may be compressed (.gz).
        source: name of its source dataset, to be sure of it; otherwise the id column tells, which VinDr-CXR's CSV
            shares with those of a source of your own.
        wanted: given the image ids of the next rows, says which of them to yield; the others' landmarks stay unread.

    Yields:
        Batches of the schema `PUBLISHED_ROW`: landmarks float32 [120, 2], x then y, in the pixels of the file's folder,
        and run-length strings that `rle_decode` reads. For a small file, `pa.Table.from_batches` takes them all.

    Raises:
        InputError: a ValueError that names the file, and the row where landmarks are no 240 numbers.
    """
    uri = storage.as_text(uri, "uri")
    header = _header(uri)
    known = sources.get(source) if source is not None else _source_of(uri, header)
    if chexmask_csv.LANDMARKS in header and chexmask_csv.LANDMARKS_MEAN not in header:
        landmarks = [chexmask_csv.LANDMARKS]
    else:
        landmarks = [chexmask_csv.LANDMARKS_MEAN, chexmask_csv.LANDMARKS_STD]
    numbers = (chexmask_csv.MEAN, chexmask_csv.MAX, chexmask_csv.HEIGHT, chexmask_csv.WIDTH)
    texts = (known.id_column, *landmarks, *chexmask_csv.ORGAN_COLUMNS.values())
    columns = dict.fromkeys(texts, pa.string()) | dict.fromkeys(numbers, pa.float64())
    for batch in chexmask_csv.stream_rows(known, uri, columns):
        rows = pa.Table.from_batches([batch])
        if wanted is not None:
            ids = chexmask_csv.image_ids(known, rows[known.id_column])
            rows = rows.filter(pa.array(wanted(ids), pa.bool_())).combine_chunks()
        if len(rows) or wanted is None:
            yield _published(uri, known, rows, landmarks)


def source_of(uri: str) -> str | None:
    """Name of the published source that a CSV is of, as its id column tells; None if that is of none.

    A CSV of images of one's own has the same column as VinDr-CXR's.

    Raises:
        InputError: if there is no such file.
    """
    name = _source_of(uri, _header(uri)).name
    return name if name in sources.PUBLISHED else None


def _header(uri: str) -> list[str]:
    line = csv_table.read_header(uri, "a CheXmask CSV")
    # Split at what a spreadsheet program may have put there too, so that the error is about that.
    return [name.strip('"') for name in re.split(r"[,;\t|]", line)]


def _source_of(uri: str, header: list[str]) -> Source:
    """The source whose id column a CSV has; of several, the one whose CSV is called so."""
    found = [source for source in sources.PUBLISHED.values() if source.id_column in header]
    if len(found) > 1:
        name = PurePosixPath(uri).name.lower()
        titles = " or ".join(source.title for source in found)
        found = [source for source in found if name.startswith(f"{source.csv_name.lower()}.")]
        if not found:
            raise InputError(f"{uri}: may be of {titles}, by its columns; say which with source=")
    return found[0] if found else sources.get("an unknown source")


def _published(uri: str, source: Source, rows: pa.Table, landmarks: list[str]) -> pa.RecordBatch:
    cleaned = chexmask_csv.clean(source, rows)
    ids = cleaned["id"].to_pylist()
    points = [
        landmark_array([_points(uri, name, *cell) for cell in zip(ids, rows[name].to_pylist(), strict=True)])
        for name in landmarks
    ]
    mean, std = points if len(points) == 2 else (points[0], pa.nulls(len(rows), record.LANDMARK_ARRAY))
    scores, sizes = cleaned.select(["mean", "max"]), cleaned.select(["height", "width"])
    judged = (cleaned["id"], *scores.columns, *sizes.columns, mean.is_valid())
    flags = [_flags(*cells) for cells in zip(*(column.to_pylist() for column in judged), strict=True)]
    arrays = [
        cleaned["id"],
        *scores.columns,
        mean,
        std,
        *(rows[name] for name in chexmask_csv.ORGAN_COLUMNS.values()),
        *sizes.columns,
        pa.array(flags, pa.list_(pa.string())),
    ]
    return pa.Table.from_arrays(arrays, schema=PUBLISHED_ROW).combine_chunks().to_batches()[0]


def _points(uri: str, column: str, image_id: str, cell: str) -> NDArray[np.float32] | None:
    """Landmarks float32 [120, 2] of a cell "x,y,x,y,...", None of an empty one."""
    if not cell.strip():
        return None
    texts = cell.split(",")
    where = f"{uri}: row {image_id!r}: {column}"
    remedy = "the file was cut or edited; take it as published"
    if len(texts) != 2 * N_LANDMARKS:
        raise InputError(f"{where} holds {len(texts)} values, expected {2 * N_LANDMARKS}, x and y in turn; {remedy}")
    try:
        values = np.array(texts, np.float32)
    except ValueError:
        values = np.full(len(texts), np.nan, np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{where} holds what is no number, expected {len(texts)} of them; {remedy}")
    if column == chexmask_csv.LANDMARKS_STD and values.min() < 0:
        raise InputError(f"{where} holds a negative standard deviation; {remedy}")
    return values.reshape(N_LANDMARKS, 2)


def _flags(
    image_id: str, mean: float | None, highest: float | None, height: int | None, width: int | None, landmarks: bool
) -> list[str]:
    """The keys of `FLAGS` that hold for a row."""
    found = {
        "no_id": not image_id,
        "no_scores": mean is None or highest is None,
        "max_below_mean": mean is not None and highest is not None and highest < mean,
        "no_size": height is None or width is None,
        "no_landmarks": not landmarks,
    }
    return [flag for flag, there in found.items() if there]
