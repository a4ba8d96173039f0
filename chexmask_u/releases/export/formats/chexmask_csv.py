"""The published CSVs: per source one in OriginalResolution and one in Preprocessed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u import sources
from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.manifests import chexmask_csv
from chexmask_u.releases.export.output import TextSink
from chexmask_u.releases.export.rows import SourceRows
from chexmask_u.sources.base import Source
from chexmask_u.steps.mask import organ_rle

FOLDERS = ("OriginalResolution", "Preprocessed")


def files(source: str) -> tuple[str, str]:
    """The files of a source, below the output."""
    original, preprocessed = (f"{folder}/{sources.get(source).csv_name or source}.csv" for folder in FOLDERS)
    return original, preprocessed


def write(rows: SourceRows, original: TextSink, preprocessed: TextSink) -> None:
    """Write both files of a source, row by row.

    `original` is in original pixels, with the release's own masks; `preprocessed` in those of the 1024 frame, with
    masks drawn there.
    """
    source = sources.get(rows.source)
    writers = [csv.DictWriter(stream, header(source)) for stream in (original, preprocessed)]
    for writer in writers:
        writer.writeheader()
    for row in rows.with_masks():
        # A user may have listed a published source's folder, whose ids are paths.
        facts = (source.image_id(row.image_id) or row.image_id, row.dice_rca_mean, row.dice_rca_max)
        mean, std = row.letterbox.to_frame(row.landmarks_mean), row.letterbox.spread_to_frame(row.landmarks_std)
        masks = {organ: organ_rle(mean, organ, FRAME, FRAME) for organ in ORGANS}
        writers[0].writerow(
            cells(source, *facts, row.landmarks_mean, row.landmarks_std, row.masks, row.height, row.width)
        )
        writers[1].writerow(cells(source, *facts, mean, std, masks, FRAME, FRAME))


def header(source: Source) -> list[str]:
    """Columns of the newest published form; the scores stand in the order of the source's own file."""
    scores = [chexmask_csv.MEAN, chexmask_csv.MAX]
    return [
        source.id_column,
        *(reversed(scores) if source.max_first else scores),
        chexmask_csv.LANDMARKS_MEAN,
        chexmask_csv.LANDMARKS_STD,
        *chexmask_csv.ORGAN_COLUMNS.values(),
        chexmask_csv.HEIGHT,
        chexmask_csv.WIDTH,
    ]


def cells(
    source: Source,
    image_id: str,
    dice_rca_mean: np.floating[Any] | None,
    dice_rca_max: np.floating[Any] | None,
    landmarks_mean: NDArray[Any],
    landmarks_std: NDArray[Any],
    masks: Mapping[str, str],
    height: int | None,
    width: int | None,
) -> dict[str, Any]:
    """The cells of one row by column, with landmarks [120, 2] rounded as published; None becomes an empty cell.

    Scores are written with as few digits as tell them from any other number of their own type.
    """
    return {
        source.id_column: image_id,
        chexmask_csv.MEAN: dice_rca_mean,
        chexmask_csv.MAX: dice_rca_max,
        chexmask_csv.LANDMARKS_MEAN: ",".join(map(str, np.rint(landmarks_mean).astype(np.int64).ravel().tolist())),
        chexmask_csv.LANDMARKS_STD: ",".join(map("{:.2f}".format, landmarks_std.ravel().tolist())),
        **{column: masks[organ] for organ, column in chexmask_csv.ORGAN_COLUMNS.items()},
        chexmask_csv.HEIGHT: height,
        chexmask_csv.WIDTH: width,
    }
