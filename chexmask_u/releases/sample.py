"""The picture of one record on the card of a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chexmask_u.calibration.calibration import Calibration
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.images.preparation import ReadImage
from chexmask_u.pictures import segmented
from chexmask_u.runs import sample
from chexmask_u.runs.page import to_picture
from chexmask_u.runs.run import Run
from chexmask_u.runs.summary import chosen_rows

NAME = "sample.jpg"


@dataclass(frozen=True)
class Sample:
    """A record's picture, and what release.json says of it.

    Attributes:
        about: ``record_id``, ``source`` and what is ``shown`` of its landmarks.
        jpeg: the picture.
    """

    about: dict[str, str]
    jpeg: bytes


def draw(run: Run, report: dict[str, Any] | None, released: set[str], calibration: Calibration | None) -> Sample | None:
    """The picture of the record whose image the run keeps; None where it keeps none or its source is not released."""
    found = None if report is None else sample.kept(run, report)
    if found is None or found[0]["source"] not in released or not sample.may_be_shown(found[0]["source"]):
        return None
    chosen, pixels = found
    rows = chosen_rows(run.dataset(), [chosen["record_id"]]).to_pylist()
    if not rows:
        return None
    (row,) = rows
    picture = to_picture(row, pixels, "median", calibration)
    drawn = segmented.draw(
        ReadImage(pixels, row["height"], row["width"], Letterbox.from_row(row["letterbox"])),
        np.asarray(row["landmarks_mean"]),
        picture.pixels,
        picture.shown,
        title=row["record_id"],
        note=f"uncertainty {row['uncertainty']:.1f} px",
        warning="",
    )
    return Sample({**chosen, "shown": picture.shown}, segmented.encode(drawn, ".jpg"))
