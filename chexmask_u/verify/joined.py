"""Published rows beside the regenerated records of the same images, a chunk at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chexmask_u.anatomy import N_LANDMARKS, ORGANS
from chexmask_u.columns import to_landmarks
from chexmask_u.manifests.published import read_published
from chexmask_u.verify.compare import Pairs
from chexmask_u.verify.records import Records

# Landmarks of so many images are some 5 MB, their masks up to 80.
CHUNK = 256

_EXAMPLES = 5


@dataclass(frozen=True)
class Chunk:
    """Images that are on both sides, in the order of the CSV.

    Attributes:
        ids: of the images.
        rows: of `Records`.
        pairs: their landmarks.
        before: those of the rows before theirs that have a record too; the first row of a CSV stands before itself.
        sizes: width and height that the CSV gives, int64 [B, 2], 0 where it gives none.
        masks: run-length string of each organ.
    """

    ids: list[str]
    rows: NDArray[np.int64]
    pairs: Pairs
    before: Pairs
    sizes: NDArray[np.int64]
    masks: list[dict[str, str | None]]

    def take(self, rows: NDArray[np.int64]) -> Chunk:
        ids, masks = ([values[row] for row in rows] for values in (self.ids, self.masks))
        pairs, before = self.pairs.take(rows), self.before.take(rows)
        return Chunk(ids, self.rows[rows], pairs, before, self.sizes[rows], masks)


@dataclass
class Missing:
    """What is on one side only.

    Attributes:
        published: rows of the CSV.
        without_record: rows of images that were not regenerated.
        failed: rows of images that gave no record.
        without_landmarks: rows of regenerated images that have no landmarks.
        repeated: rows of an image that an earlier row is of; they are left out.
        without_row: records that the CSV has no row of.
        examples: a few ids of each.
    """

    published: int = 0
    without_record: int = 0
    failed: int = 0
    without_landmarks: int = 0
    repeated: int = 0
    without_row: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, image_id: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        found = self.examples.setdefault(kind, [])
        if len(found) < _EXAMPLES:
            found.append(image_id)


def join(csv: str, source: str, records: Records, missing: Missing) -> Iterator[Chunk]:
    """Chunks of a CSV's rows with their records; what is on one side only is counted in `missing`.

    Raises:
        InputError: if the CSV cannot be read, or is of another source.
    """
    seen = np.zeros(len(records.scale), bool)

    def wanted(ids: list[str]) -> list[bool]:
        missing.published += len(ids)
        return [_is_wanted(image_id, records, seen, missing) for image_id in ids]

    waiting: list[pa.RecordBatch] = []
    last: Pairs | None = None
    for batch in read_published(csv, source, wanted):
        there = batch["landmarks_mean"].is_valid()
        for image_id in batch.filter(pc.invert(there))["image_id"].to_pylist():
            missing.note("without_landmarks", image_id)
        waiting.append(batch.filter(there))
        if sum(map(len, waiting)) >= CHUNK:
            yield (chunk := _chunk(records, pa.Table.from_batches(waiting), last))
            waiting, last = [], chunk.pairs.take(np.array([-1]))
    if sum(map(len, waiting)):
        yield _chunk(records, pa.Table.from_batches(waiting), last)
    for image_id, row in records.row.items():
        if not seen[row]:
            missing.note("without_row", image_id)


def share_of(image_id: str) -> float:
    """A number in [0, 1) that hangs on an id alone, to take a part of them by."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:6], "big") / 2**48


def _is_wanted(image_id: str, records: Records, seen: NDArray[np.bool_], missing: Missing) -> bool:
    row = records.row.get(image_id)
    if row is None:
        missing.note("failed" if image_id in records.failed else "without_record", image_id)
        return False
    if seen[row]:
        missing.note("repeated", image_id)
        return False
    seen[row] = True
    return True


def _chunk(records: Records, table: pa.Table, last: Pairs | None) -> Chunk:
    ids = table["image_id"].to_pylist()
    rows = np.array([records.row[image_id] for image_id in ids], np.int64)
    nothing = np.full((N_LANDMARKS, 2), np.nan)
    published = np.stack([np.asarray(points, np.float64) for points in to_landmarks(table["landmarks_mean"])])
    spread = np.stack([nothing if points is None else points for points in to_landmarks(table["landmarks_std"])])
    geometry = (getattr(records, name)[rows].astype(np.float64) for name in ("crop", "pad", "scale", "size"))
    pairs = Pairs(
        records.mean[rows].astype(np.float64),
        records.std[rows].astype(np.float64),
        published,
        spread.astype(np.float64),
        *geometry,
    )
    sides = [np.array([side or 0 for side in table[name].to_pylist()], np.int64) for name in ("width", "height")]
    before = (last or pairs.take(np.array([0]))).joined(pairs).take(np.arange(len(pairs)))
    return Chunk(ids, rows, pairs, before, np.stack(sides, axis=1), table.select(ORGANS).to_pylist())
