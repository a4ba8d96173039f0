"""A release's records of one source, with their masks, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from chexmask_u import anatomy
from chexmask_u.columns import to_landmarks
from chexmask_u.errors import InputError
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.releases.release import Release


@dataclass(frozen=True)
class Row:
    """One record.

    Attributes:
        record_id, image_id: as in the release.
        height, width: original pixels.
        landmarks_mean, landmarks_std: float32 [120, 2], x then y, original pixels.
        letterbox: maps them to the 1024 frame.
        dice_rca_mean, dice_rca_max: float32, or None where the source has no scores.
        masks: run-length string of each organ at original size; empty unless they were asked for.
    """

    record_id: str
    image_id: str
    height: int
    width: int
    landmarks_mean: NDArray[np.float32]
    landmarks_std: NDArray[np.float32]
    letterbox: Letterbox
    dice_rca_mean: np.float32 | None
    dice_rca_max: np.float32 | None
    masks: dict[str, str]


@dataclass(frozen=True)
class SourceRows:
    """The records of one source of a release; each call reads them anew, sorted by record id, a few at a time."""

    release: Release
    source: str

    @property
    def count(self) -> int:
        """How many records there are."""
        return self.release.counts[self.source]["ok"]

    def landmarks(self) -> Iterator[Row]:
        """Records without their masks.

        Raises:
            InputError: if a file is missing or damaged.
        """
        records = (row for table in self.release.rows(self.source, "landmarks") for row in _rows(table))
        # A bar on a terminal only; a whole source takes minutes.
        count = 0
        for row in tqdm(records, total=self.count, desc=self.source, unit="record", disable=None):
            count += 1
            yield row
        if count != self.count:
            raise InputError(f"{self.release.url}: holds {count:,} records of {self.source}, not {self.count:,}")

    def with_masks(self) -> Iterator[Row]:
        """Records with their masks.

        Raises:
            InputError: if a file is missing or damaged, or masks and landmarks are not of the same records.
        """
        masks = (row for table in self.release.rows(self.source, "masks") for row in table.to_pylist())
        for row in self.landmarks():
            mask = next(masks, None)
            if mask is None or mask["record_id"] != row.record_id:
                raise InputError(
                    f"{self.release.url}: masks of {self.source} are not of the same records as its landmarks"
                )
            yield replace(row, masks={organ: mask[organ] for organ in anatomy.ORGANS})


def _rows(table: pa.Table) -> Iterator[Row]:
    columns = zip(
        *(table[name].to_pylist() for name in ("record_id", "image_id", "height", "width", "letterbox")),
        to_landmarks(table["landmarks_mean"]),
        to_landmarks(table["landmarks_std"]),
        *(table[name].to_pylist() for name in ("dice_rca_mean", "dice_rca_max")),
        strict=True,
    )
    for record_id, image_id, height, width, letterbox, mean, std, *scores in columns:
        dice_mean, dice_max = (None if score is None else np.float32(score) for score in scores)
        geometry = Letterbox.from_row(letterbox)
        yield Row(record_id, image_id, height, width, mean, std, geometry, dice_mean, dice_max, masks={})
