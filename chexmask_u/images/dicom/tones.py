"""Stored values -> grey: the steps that a header asks for, applied once to each value that occurs, and the stretch."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.images import span
from chexmask_u.images.dicom.header import Header
from chexmask_u.images.dicom.steps import Step
from chexmask_u.record import ReadError

# A step that leaves less than this share of the pixels that were between black and white leaves no radiograph: a window
# for lungs alone leaves a third, one meant for 8 bits less than a tenth of 12, and most placeholders leave nothing.
_LEAST = 1 / 10

# One over the values of fewer bits than the picture has is a placeholder; where it leaves less than this, it is taken
# for that.
_LEAST_OF_BITS = 1 / 2

_REMEDY = "correct it, or remove it to show the pixels by their own range"

# Rows that are compared to tell whether the bits above those stored are a part of the values.
_COMPARED = 1000


def grey(stored: NDArray[Any], header: Header, standard: bool) -> NDArray[np.uint8]:
    """Stored values u/int8 or u/int16 [H, W] -> uint8 [H, W]; see `decode`.

    Every step is a function of a pixel's value alone, so each value that occurs passes them once.
    """
    codes = stored.view(f"u{stored.itemsize}")
    levels = 256**stored.itemsize
    counts = cv2.calcHist([codes], [0], None, [levels], [0, levels]).ravel()
    occurring = np.flatnonzero(counts)
    counts = counts[occurring]
    found = occurring.astype(codes.dtype).view(stored.dtype)
    if header.unused_bits:
        unused = 8 * stored.itemsize - header.bits_stored
        meant = found << unused >> unused
        if not (standard and (meant != found).any() and _smoother(stored, stored << unused >> unused)):
            found = meant
    found = found.astype(np.int64)
    table = np.zeros(levels, np.uint8)
    table[occurring] = _shown(found, counts, header, standard)
    return np.asarray(cv2.LUT(codes, table), np.uint8)


def _smoother(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether one image [H, W] has fewer steps between neighbours than another.

    Where Bits Stored is too small, values without the bits above it jump from the highest to the lowest; where these
    are an overlay or stray, values with them do.
    """
    rows = slice(None, None, -(-len(one) // _COMPARED))
    steps = [np.abs(np.diff(image[rows].astype(np.int64), axis=1)).sum() for image in (one, other)]
    return bool(steps[0] < steps[1])


def _shown(stored: NDArray[np.int64], counts: NDArray[Any], header: Header, standard: bool) -> NDArray[np.uint8]:
    """The grey uint8 [V] of each stored value [V], of which there are so many pixels [V]."""
    if stored.min() == stored.max():
        return np.zeros(len(stored), np.uint8)
    sign = -1 if header.inverted else 1
    counting = np.ones(len(stored), bool)
    shown: NDArray[Any] = _without_strays(stored, counts, counting) if standard else stored
    result = _stretched(sign * shown, counting)
    most = _between(result, counts)
    todo = header.steps
    if header.padding:
        low, high = header.padding
        counting = (stored < low) | (stored > high)
        shown = _without_strays(stored, counts, counting)
        todo = (Step("Pixel Padding Value (0028,0120)", lambda values: values), *todo)
    for step in todo:
        shown = _applied(step, shown)
        result = _stretched(sign * shown, counting)
        left = _between(result, counts)
        if not result.any() or (standard and left < _LEAST * most):
            raise ReadError(
                "damaged",
                f"by the {step.name} of the DICOM header all pixels, or nearly all, become black or white, though they"
                f" differ; {_REMEDY}",
            )
        if standard and step.bits and left < _LEAST_OF_BITS * most:
            raise ReadError(
                "damaged",
                f"the {step.name} of the DICOM header is over the values of {step.bits} bits, and most pixels have"
                f" others, so that they become black or white; {_REMEDY}",
            )
        most = max(most, left)
    return result


def _without_strays(stored: NDArray[np.int64], counts: NDArray[Any], counting: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The stored values [V], of which the strays have the lowest or highest of the others; only what counts changes."""
    if not counting.any():
        return stored
    low, high = span.robust(stored[counting], counts[counting])
    return np.where(counting, np.clip(stored, low, high), stored)


def _applied(step: Step, values: NDArray[Any]) -> NDArray[Any]:
    try:
        shown = step.apply(values).astype(np.float64)
    except MemoryError:
        raise
    except Exception:
        shown = np.array([np.nan])
    if not np.isfinite(shown).all():
        raise ReadError("damaged", f"the {step.name} of the DICOM header cannot be applied")
    return shown


def _stretched(shown: NDArray[Any], counting: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Values [V] from the lowest to the highest that counts [V] -> uint8 [V]; all 0 where no two of those differ."""
    kept = shown[counting]
    if not len(kept) or kept.min() == kept.max():
        return np.zeros(len(shown), np.uint8)
    raised = np.clip(shown, kept.min(), kept.max()).astype(np.float64) - kept.min()
    return (raised / raised.max() * 255).astype(np.uint8)


def _between(shown: NDArray[np.uint8], counts: NDArray[Any]) -> float:
    """The share of the pixels, so many [V] of each grey [V], that are neither black nor white."""
    return float(counts[(shown > 0) & (shown < 255)].sum(dtype=np.float64) / counts.sum(dtype=np.float64))
