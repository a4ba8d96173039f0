"""How far predicted landmarks are from annotated ones, and whether their uncertainty says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS
from chexmask_u.steps.mask import organ_mask

# A latent is in use if its posterior mean varies over images by more than this (Burda et al., "Importance weighted
# autoencoders", 2016, section 2).
ACTIVE_VARIANCE = 0.01


def image_scores(predicted: NDArray[np.floating], annotated: NDArray[np.floating]) -> dict[str, float]:
    """Scores of one image, over the organs that are annotated.

    Args:
        predicted: [120, 2], pixels of the 1024 frame.
        annotated: the same; NaN for a heart that is not annotated.

    Returns:
        ``mse``: mean squared error of a coordinate in px²; ``distance``: mean distance of a landmark in px; and per
        organ ``dice_<organ>`` and ``hausdorff_<organ>`` (px, between the contours), of masks in the 1024 frame.
    """
    there = np.isfinite(annotated).all(axis=1)
    offset = np.asarray(predicted - annotated, np.float64)[there]
    scores = {"mse": float(np.square(offset).mean()), "distance": float(np.hypot(*offset.T).mean())}
    # An early network may point anywhere; beyond, a mask or a contour would take the machine's memory.
    near = np.clip(np.asarray(predicted, np.float64), -FRAME, 2 * FRAME)
    for organ in ORGANS:
        if not there[LANDMARKS[organ]].all():
            continue
        masks = [organ_mask(np.nan_to_num(points), organ, FRAME, FRAME) for points in (near, annotated)]
        scores[f"dice_{organ}"] = dice(*masks)
        scores[f"hausdorff_{organ}"] = hausdorff(near[LANDMARKS[organ]], annotated[LANDMARKS[organ]])
    return scores


def dice(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of two masks {0, 1}; 1 if both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 1.0


def hausdorff(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Hausdorff distance in pixels of two closed contours [n, 2] and [m, 2], drawn at whole pixels."""
    rings = [np.rint(ring).astype(np.int32) for ring in (first, second)]
    corner = np.minimum(*(ring.min(axis=0) for ring in rings))
    width, height = np.maximum(*(ring.max(axis=0) for ring in rings)) - corner + 1
    drawn = []
    for ring in rings:
        canvas = np.full((height, width), 255, np.uint8)
        cv2.polylines(canvas, [ring - corner], True, (0,))
        drawn.append(canvas)
    away = [cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for canvas in drawn]
    return float(max(away[1][drawn[0] == 0].max(), away[0][drawn[1] == 0].max()))


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the images that have it, ``rmse`` (px), and the worst image's ``worst_distance``.

    ``rmse`` is the root of the mean of ``mse``, every image counting alike.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    means = {key: float(np.mean([row[key] for row in rows if key in row])) for key in keys}
    return means | {
        "rmse": float(np.sqrt(means["mse"])),
        "worst_distance": float(max(row["distance"] for row in rows)),
    }


def calibration(
    predicted: NDArray[np.floating], spread: NDArray[np.floating], annotated: NDArray[np.floating]
) -> dict[str, float | None]:
    """Whether the predictive std is as large as the error.

    Args:
        predicted, spread, annotated: [N, 120, 2], pixels of the 1024 frame; NaN where there is no annotation.

    Returns:
        ``std``: mean std of a coordinate in px; ``std_error_ratio``: root mean square of the std over that of the
        error (1 if calibrated); ``within_1_std`` and ``within_2_std``: share of coordinates that lie so near to the
        annotation (0.68 and 0.95 for calibrated normal errors, if the std is of many draws: of 20 it is 0.64 and 0.92,
        since a std with ddof = 0 is on average too small); ``rank_correlation``: Spearman's, between the images'
        mean std and mean distance; None for fewer than three images.
    """
    error = np.abs(predicted - annotated)
    there = np.isfinite(error)
    distance = np.array([np.hypot(*image[np.isfinite(image).all(axis=1)].T).mean() for image in error])
    return {
        "std": float(spread[there].mean()),
        "std_error_ratio": float(np.sqrt(np.square(spread[there]).mean() / np.square(error[there]).mean())),
        "within_1_std": float((error <= spread)[there].mean()),
        "within_2_std": float((error <= 2 * spread)[there].mean()),
        "rank_correlation": _rank_correlation(np.nanmean(np.where(there, spread, np.nan), axis=(1, 2)), distance),
    }


def posterior(mean: NDArray[np.floating], sigma: NDArray[np.floating]) -> dict[str, Any]:
    """The health of the latent posterior over N images.

    Args:
        mean, sigma: [N, 64].

    Returns:
        ``sigma``: mean standard deviation (1 if the latents say nothing, 0 if they are certain); ``kl``: KL divergence
        from the standard normal prior in nats, mean over images, summed over latents; ``kl_per_latent``: the same for
        each of the 64; ``active_latents``: how many are in use (`ACTIVE_VARIANCE`).
    """
    variance = np.square(sigma.astype(np.float64))
    # KL(N(m, s²) || N(0, 1)) = (m² + s² - 1 - log s²) / 2 (Kingma and Welling, 2014, appendix B).
    divergence = 0.5 * (np.square(mean.astype(np.float64)) + variance - 1 - np.log(variance)).mean(axis=0)
    return {
        "sigma": float(sigma.mean()),
        "kl": float(divergence.sum()),
        "kl_per_latent": [float(value) for value in divergence],
        "active_latents": int((mean.var(axis=0) > ACTIVE_VARIANCE).sum()),
    }


def _rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Spearman's, of two measures [N] of the same images; None for fewer than three."""
    if len(first) < 3:
        return None
    first_rank, second_rank = (np.argsort(np.argsort(values)).astype(np.float64) for values in (first, second))
    return float(np.corrcoef(first_rank, second_rank)[0, 1])
