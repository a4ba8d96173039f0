"""What is known of how good a release's weights are: the scores that their training left beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chexmask_u import storage, weight_files
from chexmask_u.anatomy import ORGANS
from chexmask_u.errors import InputError

# As a training run writes it beside its weights.
_SCORES = "scores.json"

_NAMES = (
    *("images", "with_heart", "distance"),
    *(f"{measure}_{organ}" for measure in ("dice", "hausdorff") for organ in ORGANS),
)


def scores(weights: Mapping[str, Any]) -> dict[str, float] | None:
    """Scores on images held out from training, of weights on disk as run.json names them; None where there are none.

    Returns:
        ``images``, ``with_heart``; ``distance``, the mean error of a landmark, and by organ ``dice_...`` and
        ``hausdorff_...``; pixels of the 1024 frame.
    """
    source = weights["source"]
    if source.startswith("hf://") or not storage.is_local(source):
        return None
    try:
        path = weight_files.find(source).beside(_SCORES)
        content = {} if path is None else json.loads(path.read_text("utf-8"))
        if content.get("sha256") != weights["sha256"]:
            return None
        return {name: content["scores"][name] for name in _NAMES if content["scores"].get(name) is not None} or None
    except (InputError, OSError, ValueError, KeyError, AttributeError):
        # A card does without what somebody else's file of that name holds.
        return None
