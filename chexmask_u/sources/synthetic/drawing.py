"""One drawn person: a radiograph and the landmarks that it was drawn around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chexmask_u.sources.synthetic.body import Floats, landmarks, person
from chexmask_u.sources.synthetic.film import Bytes, render


@dataclass(frozen=True)
class Drawing:
    """One drawn radiograph.

    ``image`` is uint8 [H, W]; ``landmarks`` is float32 [120, 2], x then y, pixels of that image, where pixel i covers
    [i, i + 1), so that dividing by the side gives the unit square at any size.
    """

    image: Bytes
    landmarks: Floats


def draw(index: int, seed: int = 0, side: int = 1024) -> Drawing:
    """Draw person `index` of the population `seed` as a square image.

    The same arguments give the same bytes in every process; another `side` gives the same anatomy and exposure at
    another resolution, with other noise.
    """
    rng = np.random.default_rng([seed, index])
    warp = person(rng)
    image = render(rng, warp, side)
    return Drawing(image, (landmarks(warp) * side).astype(np.float32))
