"""Masks of three organs and their run-length strings at original size, against decoding an image of that size."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.bench.read import HEIGHT, WIDTH, source_files
from chexmask_u.bench.timing import Row, as_text, compare, one_thread
from chexmask_u.images.decode import decode
from chexmask_u.images.letterbox import prepare
from chexmask_u.sources.synthetic import draw
from chexmask_u.steps.mask import organ_rle


def measure(repeats: int = 15) -> list[Row]:
    """A row per kind of large file: the ratio is the share of its decoding time that its masks take."""
    landmarks = draw(0, side=FRAME).landmarks
    _, letterbox = prepare(np.zeros((HEIGHT, WIDTH), np.uint8))

    def masks() -> list[str]:
        original = letterbox.to_original(landmarks)
        return [organ_rle(original, organ, HEIGHT, WIDTH) for organ in ORGANS]

    with one_thread():
        return [
            compare(
                f"masks, {file.name}",
                masks,
                partial(decode, file.data, max_side=max(HEIGHT, WIDTH)),
                repeats=repeats,
                clock=time.thread_time,
            )
            for file in source_files()
            if f"{WIDTH} x {HEIGHT}" in file.name
        ]


if __name__ == "__main__":
    print(as_text(measure()))
