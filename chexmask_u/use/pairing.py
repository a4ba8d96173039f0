"""Records of a release and a user's own images, joined by image id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from chexmask_u import sources, storage
from chexmask_u.manifests.listing import files_below, is_image

_COLUMNS = ["record_id", "source", "image_id"]


@dataclass(frozen=True)
class Pairs:
    """Which image is of which record; every record and every image is in exactly one of the four.

    Attributes:
        paths: path or URL of the image, by record id.
        without_image: ids of records that no image is of.
        without_record: paths below the folder of images that no record is of; in MIMIC-CXR-JPG and PadChest, whose
            file names do not tell the view, the lateral ones are among them.
        ambiguous: paths below the folder of images that have the id of a record and share it with others, by record
            id; none of them is taken.
        passed_over: how many files are no image of the source, as far as their path tells.
        lost: links that lead nowhere and the like, and why each was not followed, by path below the folder of images.
    """

    paths: dict[str, str]
    without_image: list[str]
    without_record: list[str]
    ambiguous: dict[str, list[str]]
    passed_over: int
    lost: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{len(self.paths):,} records with an image, {len(self.without_image):,} without;"
            f" {len(self.without_record):,} images without a record;"
            f" {len(self.ambiguous):,} records with several images, of which none is taken"
            + (f"; {len(self.lost):,} links or folders that could not be followed" if self.lost else "")
        )


def pair_images(records: Any, images: str | Path) -> Pairs:
    """Find the images of the records of one source, as its provider distributes them.

    Args:
        records: rows with `record_id`, `source` and `image_id`: a dataset of `datasets` (streamed or not), a pandas or
            Polars frame, an Arrow table, or rows as mappings.
        images: folder or URL prefix of the source's distribution; for a source that `chexmask_u` does not know, the
            folder whose images were listed.

    Raises:
        ValueError: if there are no records, they are of several sources, an id occurs twice, or the folder cannot be
            listed.
    """
    ids: dict[str, str] = {}
    of_source: set[str] = set()
    for row in _rows(records):
        image_id = str(row["image_id"])
        if image_id in ids:
            raise ValueError(f"records: the image id of {row['record_id']} occurs twice; give each record once")
        ids[image_id] = str(row["record_id"])
        of_source.add(str(row["source"]))
    if len(of_source) != 1:
        raise ValueError(f"records: give those of one source, not of {len(of_source)} ({', '.join(sorted(of_source))})")
    name = of_source.pop()
    root = storage.normalise(storage.as_text(images, "images"))
    found: dict[str, list[str]] = {}
    passed_over = 0
    files = files_below(root)
    for below in files.paths:
        image_id_below = id_of(name, below)
        if image_id_below is None:
            passed_over += 1
        else:
            found.setdefault(image_id_below, []).append(below)
    return Pairs(
        paths={
            ids[key]: storage.join(root, paths[0]) for key, paths in found.items() if key in ids and len(paths) == 1
        },
        without_image=[record_id for image_id, record_id in ids.items() if image_id not in found],
        without_record=[path for key, paths in found.items() if key not in ids for path in paths],
        ambiguous={ids[key]: sorted(paths) for key, paths in found.items() if key in ids and len(paths) > 1},
        passed_over=passed_over,
        lost=files.lost,
    )


def id_of(source: str, below: str) -> str | None:
    """The id of an image by its path: the source's own, or the path itself, as `manifest folder` names them."""
    if source in sources.PUBLISHED:
        return sources.PUBLISHED[source].image_id(below)
    return below if is_image(below) else None


def _rows(records: Any) -> Iterable[Mapping[str, Any]]:
    """The three columns of each record, from whatever holds them."""
    if isinstance(records, pa.Table):
        return records.select(_COLUMNS).to_pylist()
    if hasattr(records, "select_columns"):  # datasets
        return records.select_columns(_COLUMNS)
    if hasattr(records, "to_dicts"):  # Polars
        return records.select(_COLUMNS).to_dicts()
    if hasattr(records, "to_dict"):  # pandas
        return records[_COLUMNS].to_dict("records")
    return records
