"""The calibration that a release's radii are of."""

from __future__ import annotations

from chexmask_u.calibration.calibration import Calibration, chosen
from chexmask_u.runs.run import Run
from chexmask_u.settings import ReleaseSettings


def calibration(run: Run, settings: ReleaseSettings) -> Calibration | None:
    """The calibration of a release: the one that is named, or the one that lies beside its run's weights on disk.

    Raises:
        InputError: if the one that is named is none, of other weights, or of many more draws, or has too few
            images for the radii.
    """
    frozen = run.read_json("run.json")
    if frozen is None:
        return None
    weights, samples = frozen["weights"], frozen["numbers"]["samples"]
    return chosen(settings.calibration, weights["source"], weights["sha256"], samples)
