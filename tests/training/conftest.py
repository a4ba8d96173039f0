"""Examples that several modules train on."""

from __future__ import annotations

import numpy as np
import pytest

from chexmask_u.training import examples
from chexmask_u.training.examples import Examples
from tests.support.annotated import HEART


@pytest.fixture(scope="session")
def mixed() -> Examples:
    """Six people with hearts, six without, four drawings; 64 x 64."""
    drawn = examples.drawn(16, 0, 64)
    landmarks = drawn.landmarks.copy()
    landmarks[6:12, HEART] = np.nan
    names = [
        f"{kind}/{index}" for kind, count in (("hearts", 6), ("lungs", 6), ("drawings", 4)) for index in range(count)
    ]
    return Examples(names, drawn.images, landmarks)
