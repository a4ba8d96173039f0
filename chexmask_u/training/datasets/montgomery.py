"""Montgomery: ``CXR_png/MCUCXR_0001_0.png``; published landmarks, or ``ManualMask/leftMask`` and ``rightMask``."""

from __future__ import annotations

from pathlib import PurePosixPath

from chexmask_u import storage
from chexmask_u.training.annotations import files_below
from chexmask_u.training.datasets.base import Form


def _masks(folder: str) -> dict[str, list[str]]:
    files = [file for file in files_below(storage.join(folder, "ManualMask")) if file.lower().endswith(".png")]
    return {
        organ: [file for file in files if PurePosixPath(file).parent.name == side]
        for organ, side in (("right_lung", "rightMask"), ("left_lung", "leftMask"))
    }


FORM = Form("montgomery", r"(^|/)MCUCXR_\d{4}_[01]\.png$", masks=_masks)
