"""Errors of landmarks on annotated images, as these are and under each shift, beside what the network made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, REGIONS
from chexmask_u.calibration.calibration import Of
from chexmask_u.calibration.fit import CLEAN, Measured
from chexmask_u.calibration.seen import Seen
from chexmask_u.calibration.worth import contour_errors, landmark_errors
from chexmask_u.errors import InputError, did_you_mean
from chexmask_u.model.network import Network
from chexmask_u.model.predict import Prediction, predict
from chexmask_u.training.examples import Examples
from chexmask_u.training.shifts import SHIFTS, shifted

KINDS = (CLEAN, *SHIFTS)

Count = Callable[[int], object]
"""Is told how many images more were predicted."""


def uncounted(images: int) -> None:
    """For who shows no progress."""


def check_regions(names: Sequence[str]) -> None:
    """Raise InputError unless all regions of --leave-out are some."""
    for region in names:
        if region not in REGIONS:
            known = did_you_mean(region, REGIONS) or f"; there are {', '.join(REGIONS)}"
            raise InputError(f"--leave-out {region}: no such region{known}")


def measure(
    model: Network,
    examples: Examples,
    *,
    samples: int,
    seed: int,
    batch_size: int,
    leave_out: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    clean: Prediction | None = None,
    count: Count = uncounted,
) -> Measured:
    """Predict all images, and measure how far their landmarks are off.

    Args:
        model: from `load_model`.
        examples: in the 1024 frame; their names fix the draws and the shifts.
        samples, seed: as `predict` takes them.
        batch_size: images at once.
        leave_out: regions of the contour that are not measured on images annotated by masks.
        kinds: of `KINDS`, the images as they are and shifted.
        clean: what the network made of the images as they are, if that is known already.
        count: is told of the images that are predicted.
    """
    truth = examples.landmarks * np.float32(FRAME)
    from_masks = np.array([name in examples.from_masks for name in examples.names], bool)
    left_out = np.array([node for region in leave_out for node in REGIONS[region]], np.int64)
    seen: dict[str, Seen] = {}
    errors: dict[Of, dict[str, NDArray[np.float64]]] = {"landmark": {}, "contour": {}}
    for kind in kinds:
        moved = truth.copy()
        if kind == CLEAN and clean is not None:
            seen[kind] = Seen.of(clean, examples.images)
        else:
            parts = []
            for start in range(0, len(examples), batch_size):
                rows = range(start, min(start + batch_size, len(examples)))
                images = [examples.images[index] for index in rows]
                names = [examples.names[index] for index in rows]
                if kind != CLEAN:
                    pairs = [shifted(kind, *one) for one in zip(names, images, truth[rows], strict=True)]
                    images, moved[rows] = [image for image, _ in pairs], [landmarks for _, landmarks in pairs]
                shown = np.stack(images)
                parts.append(Seen.of(predict(model, shown, names, samples, seed), shown))
                count(len(shown))
            seen[kind] = Seen.join(parts)
        # Nodes spaced along a mask's contour are no landmarks that somebody saw.
        errors["landmark"][kind] = landmark_errors(seen[kind].landmarks, moved)
        errors["landmark"][kind][from_masks] = np.nan
        errors["contour"][kind] = contour_errors(seen[kind].landmarks, moved)
        errors["contour"][kind][np.ix_(from_masks, left_out)] = np.nan
    return Measured(examples.names, seen, errors)
