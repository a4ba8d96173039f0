"""A folder of drawings as files such as users have, whole and damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.sources.synthetic.body import Floats, point
from chexmask_u.sources.synthetic.drawing import Drawing, draw
from chexmask_u.sources.synthetic.film import Bytes


@dataclass(frozen=True)
class _Format:
    """How one demonstration file differs: pixels, black border around the picture, file type and pixel type."""

    width: int
    height: int
    border: int
    suffix: str
    bits: int = 8
    colour: bool = False


_FORMATS = (
    _Format(1024, 1024, 0, ".png"),
    _Format(700, 900, 0, ".jpg"),
    _Format(1200, 1000, 0, ".png", bits=16),
    _Format(512, 512, 24, ".png"),
    _Format(1500, 1300, 0, ".jpg", colour=True),
    _Format(640, 640, 0, ".png", bits=12),
    _Format(900, 1100, 60, ".jpg"),
    _Format(800, 720, 0, ".png", colour=True),
)


def write_demo(folder: Path, count: int = 24, seed: int = 0) -> None:
    """Write a folder of radiographs such as a user might have: mixed sizes, depths and file types, and damaged files.

    ``images/`` gets `count` drawings and four files whose names begin with "damaged-" and say how. ``landmarks.npz``
    beside it has ``names`` [count] (file names) and ``landmarks`` float32 [count, 120, 2] in pixels of each file.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    landmarks: list[Floats] = []
    index = 0
    while len(names) < count:
        form = _FORMATS[len(names) % len(_FORMATS)]
        picture = _cropped(index, seed, form.width - 2 * form.border, form.height - 2 * form.border)
        index += 1
        if picture is None:
            continue
        names.append(f"drawing-{len(names):04d}{form.suffix}")
        landmarks.append(picture.landmarks + np.float32(form.border))
        (images / names[-1]).write_bytes(_encoded(picture.image, form))
    np.savez_compressed(folder / "landmarks.npz", names=np.array(names), landmarks=np.stack(landmarks))

    jpeg = _encoded(draw(index, seed, 512).image, _Format(512, 512, 0, ".jpg"))
    png = _encoded(draw(index, seed, 512).image, _Format(512, 512, 0, ".png"))
    (images / "damaged-truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (images / "damaged-empty.png").write_bytes(b"")
    (images / "damaged-text.png").write_bytes(b"This is not an image.\n")
    (images / "damaged-header.png").write_bytes(png[:12] + bytes(21) + png[33:])


def _cropped(index: int, seed: int, width: int, height: int) -> Drawing | None:
    """A drawing cut to `width` x `height` around its organs, or None where they do not fit."""
    drawing = draw(index, seed, max(width, height))
    low, high = drawing.landmarks.min(0), drawing.landmarks.max(0)
    size = np.array([width, height])
    if (high - low > size - 8).any():
        return None
    left, top = np.clip(np.round((low + high - size) / 2), 0, max(width, height) - size).astype(int)
    return Drawing(
        np.ascontiguousarray(drawing.image[top : top + height, left : left + width]),
        drawing.landmarks - point(left, top),
    )


def _encoded(image: Bytes, form: _Format) -> bytes:
    """The file of an image uint8 [H, W] in a format, its border around it."""
    framed: NDArray[np.uint8 | np.uint16] = np.pad(image, form.border)
    if form.bits > 8:
        framed = framed.astype(np.uint16) << np.uint16(form.bits - 8)
    if form.colour:
        framed = np.repeat(framed[..., None], 3, axis=2)
    done, data = cv2.imencode(form.suffix, framed)
    assert done, "OpenCV encodes every format of the table"
    return data.tobytes()
