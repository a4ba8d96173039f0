"""What to tell people of a prediction that they should not take as it is, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS, REGIONS
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.images.spacing import Spacing
from chexmask_u.pictures.scale import Shown
from chexmask_u.record import ODD_SCORE
from chexmask_u.settings import UNSURE, UNSURE_RADIUS
from chexmask_u.steps.mask import organ_mask
from chexmask_u.use.measurements import cardiothoracic_ratio, enclosed

# Wider than what 865 annotated radiographs span (337 of them with a heart), whose ends stand behind.
_RATIO = (0.3, 0.8)  # 0.35 to 0.72
_LUNGS_AREA = 0.07  # of the 1024 frame; 0.099 at the least
_LUNG_TO_LUNG = 2.5  # 2.18 at the most
_LUNGS_OVERLAP = 0.01  # of the smaller lung; 0
_HEART_BETWEEN = (0.4, 0.85)  # of the way from the right lung's middle to the left one's; 0.52 to 0.71
_SQUARE = 1.02  # longer side of a pixel over the shorter; headers round their lengths to three digits or so
_FILLED = 1.05  # filled pixels over the area that a contour's formula gives, which a crossing cancels; 1.011


def unusual(ood_score: float | None) -> list[str]:
    """One line where an image's `ood_score` is beyond that of nearly all known radiographs."""
    if ood_score is None or ood_score <= ODD_SCORE:
        return []
    return [f"not a frontal radiograph? it is unlike nearly all known ones (percentile {ood_score:.1f})"]


def unsure(regions: Mapping[str, float], shown: Shown = "std", above: float | None = None) -> list[str]:
    """One line per organ that has unsure regions.

    Args:
        regions: of `by_region`.
        shown: what their pixels are.
        above: pixels of the 1024 frame; default: `UNSURE` or, of radii, `UNSURE_RADIUS`. With the bundled weights and
            their calibration a region has a larger radius in none of 20 radiographs of JSRT that they were not trained
            on (76 at most) and in 7 of 49 from elsewhere, a larger std in 1 and 8; other weights have other spreads.
    """
    above = above or (UNSURE_RADIUS if shown == "radius" else UNSURE)
    said = f"{shown} " if shown == "radius" else ""
    lines = []
    for organ in ORGANS:
        stds = {name: regions[name] for name in REGIONS if name.startswith(f"{organ}.")}
        found = {name.partition(".")[2].replace("_", " "): std for name, std in stds.items() if std > above}
        if found:
            where = (
                f"everywhere ({said}{regions[organ]:.0f} px)"
                if len(found) == len(stds)
                else ", ".join(f"{name} ({said}{std:.0f} px)" for name, std in found.items())
            )
            lines.append(f"{organ.replace('_', ' ')} unsure: {where}")
    return lines


def out_of_proportion(spacing: Spacing | None) -> list[str]:
    """One line where an image's pixels are not square, which the network takes them for."""
    if spacing is None or max(spacing.x, spacing.y) <= _SQUARE * min(spacing.x, spacing.y):
        return []
    return [
        f"pixels of {spacing.x:.3g} x {spacing.y:.3g} mm ({spacing.element}) are taken as square, which makes the chest"
        f" too {'narrow' if spacing.x > spacing.y else 'wide'}: resample the image to square ones first"
    ]


def implausible(landmarks: NDArray[Any], letterbox: Letterbox, height: int, width: int) -> list[str]:
    """One line per way in which the contours are not those of a frontal radiograph's organs.

    Args:
        landmarks: [120, 2], x then y, original pixels.
        letterbox: that maps them to the 1024 frame.
        height, width: of the original image.
    """
    outside = int(((landmarks < 0) | (landmarks > (width, height))).any(axis=1).sum())
    faults = [f"{outside} landmarks lie outside the image"] if outside else []
    return [f"implausible: {fault}" for fault in (*faults, *_faults(letterbox.to_frame(landmarks)))]


def _faults(points: NDArray[np.float64]) -> Iterator[str]:
    """What is wrong with landmarks [120, 2], x then y, pixels of the 1024 frame."""
    areas = {organ: float(enclosed(points[nodes])) for organ, nodes in LANDMARKS.items()}
    masks = {organ: organ_mask(points, organ, FRAME, FRAME) for organ in ORGANS}
    for organ, mask in masks.items():
        if mask.sum() > _FILLED * areas[organ]:
            yield f"the contour of the {organ.replace('_', ' ')} crosses itself"
    smaller, larger = sorted((areas["right_lung"], areas["left_lung"]))
    if smaller + larger < _LUNGS_AREA * FRAME**2:
        yield f"the lungs cover {(smaller + larger) / FRAME**2:.0%} of the image"
    if larger > _LUNG_TO_LUNG * smaller:
        yield "one lung is several times as large as the other"
    if (masks["right_lung"] & masks["left_lung"]).sum() > _LUNGS_OVERLAP * smaller:
        yield "the lungs overlap"
    right, left, heart = (float(points[LANDMARKS[organ], 0].mean()) for organ in ORGANS)
    if right >= left:
        yield "the right lung lies on the right of the image"
    elif not _HEART_BETWEEN[0] <= (heart - right) / (left - right) <= _HEART_BETWEEN[1]:
        yield "the heart does not lie between the lungs"
    low, high = _RATIO
    if not low <= (ratio := cardiothoracic_ratio(points)) <= high:
        yield f"a cardiothoracic ratio of {ratio:.2f}"
