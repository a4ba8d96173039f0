"""Whether ood_score tells images that are no frontal radiographs from ones that are, on images it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.calibration.known import LEAST_IMAGES, Known
from chexmask_u.calibration.worth import auc, auc_interval
from chexmask_u.record import ODD_SCORE
from chexmask_u.training.examples import Examples
from chexmask_u.training.shifts import ALTERATIONS, no_chests

Features = Callable[[list[NDArray[np.uint8]], list[str]], NDArray[np.float64]]
"""Images uint8 [1024, 1024] and their names -> `Seen.image_features`."""

# Altered images: more would only take longer.
_MOST_IMAGES = 80

# Images of each kind without a chest.
_NO_CHESTS = 10

_FOLDS = 5


def trial(
    examples: Examples, usual: NDArray[np.float64], others: NDArray[np.float64], features: Features
) -> dict[str, Any] | None:
    """Score usual and odd images by what is known without them: each fifth of the images, by the other four.

    Args:
        examples: B usual radiographs, that are altered, too; in the 1024 frame.
        usual: their features [B, F].
        others: features [K, F] of more known radiographs.
        features: of further images.

    Returns:
        ``images``; ``false_alarms``, how many of them lie beyond the 99th percentile; and by kind of odd image ``auc``
        against the usual ones, with its ``interval`` of 90% over resampled images, and ``beyond``, the share of them
        that lies beyond. None where too few are known for it.
    """
    fold = np.arange(len(usual)) % _FOLDS
    if len(usual) < _FOLDS or len(usual) - (fold == 0).sum() + len(others) < LEAST_IMAGES:
        return None
    known = [Known.fit(np.concatenate([usual[fold != one], others])) for one in range(_FOLDS)]
    scores = np.concatenate([known[one].score(usual[[row]]) for row, one in enumerate(fold)])
    rows = range(min(len(usual), _MOST_IMAGES))
    odd: dict[str, NDArray[np.float64]] = {}
    for kind, alter in ALTERATIONS.items():
        altered = features([alter(examples.images[row]) for row in rows], [examples.names[row] for row in rows])
        odd[kind] = np.concatenate([known[fold[row]].score(altered[[row]]) for row in rows])
    shown = list(no_chests(_NO_CHESTS))
    without = features([image for _, image in shown], [f"{kind}/{index}" for index, (kind, _) in enumerate(shown)])
    kinds = np.array([kind for kind, _ in shown])
    for kind in dict.fromkeys(kinds.tolist()):
        odd[kind] = np.concatenate([one.score(without[kinds == kind]) for one in known])
    return {
        "images": len(usual),
        "false_alarms": int((scores > ODD_SCORE).sum()),
        "kinds": {
            kind: {
                "auc": auc(scores, found),
                "interval": auc_interval(scores, found),
                "beyond": float((found > ODD_SCORE).mean()),
            }
            for kind, found in odd.items()
        },
    }
