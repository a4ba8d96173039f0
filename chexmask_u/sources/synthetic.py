"""Drawn chest radiographs whose landmarks are known: for tests, demonstrations and training without patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import ORGANS

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Warp = Callable[[Floats], Floats]


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
    warp = _person(rng)
    image = _render(rng, warp, side)
    return Drawing(image, (_landmarks(warp) * side).astype(np.float32))


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
        drawing.landmarks - _point(left, top),
    )


def _encoded(image: Bytes, form: _Format) -> bytes:
    framed: NDArray[np.uint8 | np.uint16] = np.pad(image, form.border)
    if form.bits > 8:
        framed = framed.astype(np.uint16) << np.uint16(form.bits - 8)
    if form.colour:
        framed = np.repeat(framed[..., None], 3, axis=2)
    done, data = cv2.imencode(form.suffix, framed)
    assert done, "OpenCV encodes every format of the table"
    return data.tobytes()


# --- anatomy: control contours in a canonical unit square, x then y, and one smooth warp of the plane per person -----

# Borders that two organs share are listed once. Right is the patient's right: small x.
_RIGHT_APEX = (0.37, 0.083)
_RIGHT_TIP = (0.117, 0.846)
_RIGHT_CORNER = (0.394, 0.697)
_RIGHT_HEART_TOP = (0.421, 0.49)
_LEFT_APEX = (0.656, 0.082)
_LEFT_TIP = (0.891, 0.846)
_LEFT_CORNER = (0.744, 0.741)
_LEFT_HEART_TOP = (0.624, 0.459)
_KNOB_BELOW = (0.604, 0.332)
_KNOB_ABOVE = (0.561, 0.237)


def _point(x: float, y: float) -> Floats:
    return np.array([x, y], np.float32)


def _spline(*points: tuple[float, float], per_span: int = 16) -> Floats:
    """Catmull-Rom curve float32 [M, 2] through the points, its ends included."""
    p = np.array([points[0], *points, points[-1]], np.float64)
    t = np.linspace(0, 1, per_span, endpoint=False)[:, None]
    spans = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        spans.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*spans, p[-1:]]).astype(np.float32)


_RIGHT_WALL = _spline(
    _RIGHT_APEX, (0.29, 0.11), (0.222, 0.172), (0.178, 0.26), (0.155, 0.37), (0.142, 0.49), (0.125, 0.61),
    (0.109, 0.72), (0.108, 0.79), _RIGHT_TIP,
)  # fmt: skip
_RIGHT_DOME = _spline(_RIGHT_TIP, (0.15, 0.788), (0.204, 0.738), (0.28, 0.706), (0.345, 0.7), _RIGHT_CORNER)
_RIGHT_HEART = _spline(_RIGHT_CORNER, (0.389, 0.63), (0.396, 0.562), _RIGHT_HEART_TOP)
_RIGHT_MEDIASTINUM = _spline(
    _RIGHT_HEART_TOP, (0.429, 0.4), (0.446, 0.31), (0.454, 0.215), (0.444, 0.135), (0.411, 0.096), _RIGHT_APEX
)
_LEFT_WALL = _spline(
    _LEFT_APEX, (0.735, 0.12), (0.802, 0.192), (0.836, 0.285), (0.855, 0.395), (0.867, 0.505), (0.879, 0.61),
    (0.892, 0.70), (0.898, 0.77), _LEFT_TIP,
)  # fmt: skip
_LEFT_DOME = _spline(_LEFT_TIP, (0.866, 0.807), (0.825, 0.768), (0.785, 0.751), _LEFT_CORNER)
_LEFT_HEART = _spline(_LEFT_CORNER, (0.755, 0.69), (0.741, 0.625), (0.697, 0.556), (0.652, 0.496), _LEFT_HEART_TOP)
_LEFT_HILUM = _spline(_LEFT_HEART_TOP, (0.611, 0.395), _KNOB_BELOW)
_KNOB = _spline(_KNOB_BELOW, (0.611, 0.3), (0.604, 0.268), (0.585, 0.249), _KNOB_ABOVE)
_LEFT_MEDIASTINUM = _spline(_KNOB_ABOVE, (0.56, 0.18), (0.57, 0.132), (0.603, 0.096), _LEFT_APEX)
_HEART_TOP = _spline(_RIGHT_HEART_TOP, (0.458, 0.466), (0.535, 0.452), (0.59, 0.453), _LEFT_HEART_TOP)
_HEART_BOTTOM = _spline(_LEFT_CORNER, (0.69, 0.755), (0.61, 0.761), (0.52, 0.751), (0.45, 0.727), _RIGHT_CORNER)

# Each ring as the annotators count it: stretches between anatomical corners, each with evenly spaced nodes.
_RINGS: dict[str, tuple[tuple[Floats, int], ...]] = {
    "right_lung": (
        (_RIGHT_WALL, 21),
        (_RIGHT_DOME, 8),
        (np.concatenate([_RIGHT_HEART, _RIGHT_MEDIASTINUM[1:]]), 15),
    ),
    "left_lung": (
        (_LEFT_WALL, 21),
        (_LEFT_DOME, 6),
        (np.concatenate([_LEFT_HEART, _LEFT_HILUM[1:]]), 13),
        (_KNOB, 4),
        (_LEFT_MEDIASTINUM, 6),
    ),
    "heart": ((_RIGHT_HEART, 5), (_HEART_TOP, 7), (_LEFT_HEART[::-1], 6), (_HEART_BOTTOM, 8)),
}

# How people differ: centre, reach and standard deviation of a local displacement, each x then y.
_BUMPS = np.array(
    [
        [(0.28, 0.72), (0.17, 0.15), (0.0, 0.033)],  # domes of the diaphragm
        [(0.81, 0.77), (0.14, 0.15), (0.0, 0.033)],
        [(0.117, 0.846), (0.07, 0.08), (0.01, 0.026)],  # costophrenic angles
        [(0.891, 0.846), (0.07, 0.08), (0.01, 0.026)],
        [(0.745, 0.68), (0.1, 0.13), (0.03, 0.014)],  # heart
        [(0.39, 0.6), (0.08, 0.13), (0.017, 0.01)],
        [(0.53, 0.455), (0.15, 0.09), (0.0, 0.02)],
        [(0.56, 0.76), (0.15, 0.07), (0.0, 0.013)],
        [(0.605, 0.28), (0.06, 0.06), (0.012, 0.013)],  # aortic knob
        [(0.37, 0.09), (0.12, 0.12), (0.014, 0.014)],  # apices
        [(0.65, 0.09), (0.12, 0.12), (0.014, 0.014)],
        [(0.44, 0.25), (0.07, 0.18), (0.013, 0.0)],  # mediastinum
        [(0.57, 0.2), (0.07, 0.14), (0.013, 0.0)],
        [(0.19, 0.27), (0.12, 0.18), (0.017, 0.0)],  # chest walls
        [(0.83, 0.27), (0.12, 0.18), (0.017, 0.0)],
        [(0.11, 0.7), (0.12, 0.2), (0.02, 0.0)],
        [(0.89, 0.7), (0.12, 0.2), (0.02, 0.0)],
    ],
    np.float32,
)
_CENTRE = np.array([0.505, 0.46], np.float32)
_MARGIN = 0.012


def _person(rng: np.random.Generator) -> Warp:
    """A smooth map of the canonical plane to the unit square of one person's image."""
    centre, reach, spread = _BUMPS[:, 0], _BUMPS[:, 1], _BUMPS[:, 2]
    # Beyond about 2.2 standard deviations a bump can fold the plane over and so cross a contour with itself.
    push = (np.clip(rng.standard_normal(spread.shape), -2.2, 2.2) * spread).astype(np.float32)
    wave = rng.uniform(1.0, 3.2, (5, 2)).astype(np.float32) * rng.choice(_point(-1, 1), (5, 2))
    phase = rng.uniform(0, 2 * np.pi, 5).astype(np.float32)
    swing = (rng.standard_normal((5, 2)) * 0.0035).astype(np.float32)

    scale = rng.uniform(0.74, 1.08) if rng.random() < 0.5 else rng.uniform(0.94, 1.1)
    stretch = np.exp(np.clip(rng.standard_normal(2), -2, 2) * (0.04, 0.075))
    angle = np.deg2rad(np.clip(rng.standard_normal(), -2.5, 2.5) * 2.5)
    shear = rng.standard_normal() * 0.02
    rotation = np.array([[np.cos(angle), -np.sin(angle) + shear], [np.sin(angle), np.cos(angle)]])
    matrix = (rotation * (scale * stretch)).T.astype(np.float32)
    shift = (rng.standard_normal(2) * (0.028, 0.055)).astype(np.float32)

    def local(points: Floats) -> Floats:
        distance = (points[:, None] - centre) / reach
        weight = np.exp(-0.5 * np.square(distance).sum(-1))
        moved = points + weight @ push + np.sin(2 * np.pi * (points @ wave.T) + phase) @ swing
        return np.asarray((moved - _CENTRE) @ matrix, np.float32)

    # The lungs stay in the image: shrink what is too large, then push back what sticks out.
    edge = local(np.concatenate([curve for ring in _RINGS.values() for curve, _ in ring]))
    shrink = np.float32(min(1.0, (1 - 2 * _MARGIN) / np.ptp(edge, axis=0).max()))
    low, high = edge.min(0) * shrink, edge.max(0) * shrink
    offset = np.clip(_CENTRE + shift, _MARGIN - low, 1 - _MARGIN - high).astype(np.float32)
    return lambda points: local(points) * shrink + offset


def _evenly(curve: Floats, count: int) -> Floats:
    """The first `count` of `count` + 1 points spaced evenly along a curve."""
    length = np.concatenate([[0.0], np.hypot(*np.diff(curve, axis=0).T).cumsum()])
    at = np.arange(count) * (length[-1] / count)
    return np.stack([np.interp(at, length, curve[:, axis]) for axis in (0, 1)], axis=1).astype(np.float32)


def _landmarks(warp: Warp) -> Floats:
    """The 120 landmarks of a person, float32 [120, 2], unit square."""
    return np.concatenate([_evenly(warp(curve), count) for organ in ORGANS for curve, count in _RINGS[organ]])


# --- appearance: attenuation summed over tissues, then a film's tone curve and a scanner's faults --------------------

_NECK_TO_HIP = np.array(
    [(0.41, -0.6), (0.4, -0.03), (0.33, 0.03), (0.15, 0.045), (-0.05, 0.09), (-0.35, 0.25), (-0.4, 0.8),
     (-0.1, 0.62), (0.0, 0.42), (0.035, 0.42), (0.05, 0.55), (0.045, 0.75), (0.05, 1.0), (0.03, 1.9)],
    np.float32,
)  # fmt: skip
_CLAVICLE = _spline((0.455, 0.175), (0.38, 0.125), (0.27, 0.105), (0.15, 0.06), (0.03, 0.045), per_span=6)
_SCAPULA = _spline((0.2, 0.1), (0.135, 0.2), (0.1, 0.32), (0.12, 0.4), (0.03, 0.22), per_span=6)
_RIB_COUNT = 11
# Soft tissue is computed on a grid this wide and enlarged: it holds no detail, and large blurs are slow.
_SOFT_SIDE = 128


def _ribs() -> tuple[list[Floats], list[Floats]]:
    """Posterior and anterior ribs of the right side: curves float32 [16, 2] on the canonical plane."""
    t = np.linspace(0, 1, 16, dtype=np.float32)
    wall_y, wall_x = _RIGHT_WALL[:, 1], _RIGHT_WALL[:, 0]
    posterior, anterior = [], []
    for rib in range(_RIB_COUNT):
        start = 0.03 + 0.078 * rib
        drop = 0.1 + 0.012 * rib
        end_x = float(np.interp(start + drop, wall_y, wall_x)) - 0.012
        x = 0.475 + (end_x - 0.475) * t
        posterior.append(np.stack([x, start + drop * t**2.2 - 0.035 * np.sin(np.pi * t)], 1))
        wall = start + drop
        x = end_x + (0.375 - 0.1 * (rib / _RIB_COUNT) - end_x) * t**1.3
        anterior.append(np.stack([x, wall + (0.13 + 0.006 * rib) * t**0.8], 1))
    return posterior, anterior


_POSTERIOR_RIBS, _ANTERIOR_RIBS = _ribs()


def _mirrored(points: Floats) -> Floats:
    return np.stack([1.012 - points[:, 0], points[:, 1]], axis=1).astype(np.float32)


def _both_sides(curves: Sequence[Floats]) -> list[Floats]:
    return [*curves, *map(_mirrored, curves)]


class _Canvas:
    """uint8 layers of `side` pixels that are drawn on in the unit square, with sub-pixel positions."""

    _BITS = 4

    def __init__(self, side: int) -> None:
        self.side = side

    def _fixed(self, points: Floats) -> NDArray[np.int32]:
        # OpenCV puts pixel centres at whole numbers, the unit square puts them at halves.
        pixels = np.clip(points, -3, 4) * self.side - 0.5
        return np.asarray(np.round(pixels * 2**self._BITS), np.int32)

    def filled(self, *polygons: Floats) -> Bytes:
        layer = np.zeros((self.side, self.side), np.uint8)
        for polygon in polygons:
            cv2.fillPoly(layer, [self._fixed(polygon)], (255,), cv2.LINE_AA, self._BITS)
        return layer

    def stroke(self, layer: Bytes, curve: Floats, width: float, value: int, closed: bool = False) -> None:
        """Draw a line; `width` is a fraction of the side."""
        thickness = max(1, round(width * self.side))
        # A line cannot be thinner than a pixel, so a thin one is drawn fainter instead.
        shade = round(value * min(1.0, width * self.side / thickness))
        cv2.polylines(layer, [self._fixed(curve)], closed, (shade,), thickness, cv2.LINE_AA, self._BITS)

    def blurred(self, layer: Bytes, radius: float) -> Floats:
        """A layer scaled to [0, 1] and blurred; `radius` is the standard deviation as a fraction of the side."""
        sigma = radius * self.side
        scaled = layer.astype(np.float32) * np.float32(1 / 255)
        return cv2.GaussianBlur(scaled, (0, 0), sigma).astype(np.float32) if sigma > 0.25 else scaled

    def enlarged(self, field: Floats) -> Floats:
        size = (self.side, self.side)
        return cv2.resize(field, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _render(rng: np.random.Generator, warp: Warp, side: int) -> Bytes:
    sharp, soft = _Canvas(side), _Canvas(_SOFT_SIDE)
    lungs = [warp(np.concatenate([curve for curve, _ in _RINGS[organ]])) for organ in ("right_lung", "left_lung")]
    heart = warp(np.concatenate([curve for curve, _ in _RINGS["heart"]]))

    air = sharp.blurred(sharp.filled(*lungs), rng.uniform(0.0008, 0.0035))
    density = sharp.enlarged(_soft_tissue(rng, warp, soft, lungs, heart))
    lucency = rng.uniform(0.24, 0.4)
    depth = soft.blurred(soft.filled(*lungs), 0.045)
    lung_tone = sharp.enlarged(lucency * (0.62 + 0.38 * depth * depth) + _mottle(rng, _SOFT_SIDE, 0.018))
    density -= air * lung_tone
    density += sharp.blurred(sharp.filled(heart), rng.uniform(0.002, 0.007)) * rng.uniform(0.02, 0.12)
    density += _bones(rng, warp, sharp, air)
    density += air * _vessels(rng, warp, sharp)
    density += _foreign_bodies(rng, warp, sharp)
    return _exposed(rng, density, sharp)


def _soft_tissue(
    rng: np.random.Generator, warp: Warp, canvas: _Canvas, lungs: Sequence[Floats], heart: Floats
) -> Floats:
    """Attenuation without bones or air in the lungs, float32 [side, side], about 0.1 (air) to 1.2 (abdomen)."""
    girth = _point(rng.uniform(-0.06, 0.03), rng.uniform(-0.02, 0.03))
    shoulders = _point(0.0, rng.uniform(-0.05, 0.05))
    outline = _NECK_TO_HIP + np.where(_NECK_TO_HIP[:, 1:] > 0.3, girth, shoulders)
    body = canvas.filled(warp(np.concatenate([outline, _mirrored(outline)[::-1]])))
    density = 0.1 + canvas.blurred(body, 0.004) * 0.3 + canvas.blurred(body, 0.05) * rng.uniform(0.2, 0.4)

    below = np.concatenate([_RIGHT_DOME, _HEART_BOTTOM[::-1], _LEFT_DOME[::-1], [(0.96, 2.0), (0.04, 2.0)]])
    abdomen = canvas.filled(warp(below.astype(np.float32)))
    density += canvas.blurred(abdomen, 0.012) * rng.uniform(0.08, 0.3)

    between = np.concatenate(
        [_RIGHT_HEART, _RIGHT_MEDIASTINUM, _LEFT_MEDIASTINUM[::-1], _KNOB[::-1], _LEFT_HILUM[::-1], _LEFT_HEART[::-1]]
    )
    density += canvas.blurred(canvas.filled(warp(between)), 0.01) * rng.uniform(0.05, 0.2)
    density += canvas.blurred(canvas.filled(heart), 0.02) * rng.uniform(0.02, 0.12)

    middle = np.linspace((0.505, -0.7), (0.505, 1.8), 60).astype(np.float32)
    spine = np.zeros_like(body)
    canvas.stroke(spine, warp(middle), 0.085, 255)
    vertebrae = np.zeros_like(body)
    for disc in range(-4, 24):
        y = 0.02 + 0.058 * disc
        canvas.stroke(vertebrae, warp(np.stack([_point(0.465, y), _point(0.545, y)])), 0.011, 255)
    density += canvas.blurred(spine, 0.012) * rng.uniform(0.05, 0.2)
    density -= canvas.blurred(vertebrae, 0.005) * rng.uniform(0.0, 0.05)

    trachea = np.zeros_like(body)
    windpipe = _spline((0.5, -0.3), (0.5, 0.1), (0.495, 0.25), (0.5, 0.33), per_span=5)
    canvas.stroke(trachea, warp(windpipe), 0.036, 255)
    density -= canvas.blurred(trachea, 0.008) * rng.uniform(0.03, 0.14)

    if rng.random() < 0.4:
        fold = rng.uniform(0.62, 0.8)
        breasts = [_ellipse((x, fold), (0.17, 0.15)) for x in (0.24, 0.78)]
        density += canvas.blurred(canvas.filled(*map(warp, breasts)), 0.015) * rng.uniform(0.04, 0.14)
    if rng.random() < 0.5:
        spot = (rng.uniform(0.68, 0.82), rng.uniform(0.83, 0.9))
        bubble = canvas.filled(warp(_ellipse(spot, (rng.uniform(0.03, 0.08), rng.uniform(0.015, 0.045)))))
        density -= canvas.blurred(bubble, 0.008) * (abdomen > 0) * rng.uniform(0.08, 0.3)
    if rng.random() < 0.25:
        for _ in range(rng.integers(1, 4)):
            lung = lungs[int(rng.integers(0, 2))]
            middle_of_few = rng.dirichlet(np.full(len(lung), 0.02)) @ lung
            shade = canvas.filled(_ellipse(middle_of_few, rng.uniform(0.02, 0.1, 2)))
            density += canvas.blurred(shade, rng.uniform(0.01, 0.03)) * rng.uniform(0.04, 0.2)
    return np.asarray(density + _mottle(rng, canvas.side, 0.012), np.float32)


def _mottle(rng: np.random.Generator, side: int, strength: float) -> Floats:
    """Smooth noise float32 [side, side] of a few scales."""
    field = np.zeros((side, side), np.float32)
    for cells in (4, 9, 24):
        noise = rng.standard_normal((cells, cells), np.float32) * np.float32(strength)
        field += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return field


def _ellipse(centre: Sequence[float] | NDArray[np.floating], radii: Sequence[float] | NDArray[np.floating]) -> Floats:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(np.asarray(centre) + circle * np.asarray(radii), np.float32)


def _bones(rng: np.random.Generator, warp: Warp, canvas: _Canvas, air: Floats) -> Floats:
    """Attenuation of ribs, clavicles and shoulder blades, float32 [side, side]."""
    shift = _point(0.0, rng.uniform(-0.04, 0.04))
    width = rng.uniform(0.022, 0.034)
    total = np.zeros_like(air)
    for ribs, strength in ((_POSTERIOR_RIBS, rng.uniform(0.04, 0.13)), (_ANTERIOR_RIBS, rng.uniform(0.01, 0.07))):
        layer = np.zeros(air.shape, np.uint8)
        for rib in _both_sides(ribs):
            curve = warp(rib + shift)
            # The rim of a rib is brighter than its middle.
            canvas.stroke(layer, curve, width, 255)
            canvas.stroke(layer, curve, width * 0.72, 165)
        total += canvas.blurred(layer, 0.0015) * np.float32(strength)
    total *= 0.3 + 0.7 * air
    layer = np.zeros(air.shape, np.uint8)
    lift = _point(0.0, rng.uniform(-0.05, 0.06))
    for curve in _both_sides([_CLAVICLE]):
        canvas.stroke(layer, warp(curve + lift), width * 1.05, 255)
        canvas.stroke(layer, warp(curve + lift), width * 0.7, 170)
    drift = _point(rng.uniform(-0.05, 0.06), rng.uniform(-0.03, 0.05))
    for curve in (warp(_SCAPULA + drift), warp(_mirrored(_SCAPULA + drift))):
        canvas.stroke(layer, curve, 0.006, 120, closed=True)
    return total + canvas.blurred(layer, 0.002) * np.float32(rng.uniform(0.05, 0.14))


def _vessels(rng: np.random.Generator, warp: Warp, canvas: _Canvas) -> Floats:
    """Attenuation of the branching vessels of both lungs, float32 [side, side]; it spills over the lungs' edges."""
    branches, steps = 36, 9
    layer = np.zeros((canvas.side, canvas.side), np.uint8)
    for hilum, outward in (((0.425, 0.41), np.pi), ((0.6, 0.4), 0.0)):
        heading = outward + rng.uniform(-1.5, 1.5, (branches, 1))
        heading = heading + rng.normal(0, 0.22, (branches, steps)).cumsum(1)
        stride = rng.uniform(0.012, 0.045, (branches, 1))
        walk = np.stack([np.cos(heading), np.sin(heading)], -1) * stride[..., None]
        start = np.array(hilum) + rng.normal(0, (0.012, 0.05), (branches, 1, 2))
        paths = warp((start + walk.cumsum(1)).reshape(-1, 2).astype(np.float32)).reshape(branches, steps, 2)
        calibre = rng.uniform(0.0015, 0.007, branches)
        for path, width in zip(paths, calibre, strict=True):
            canvas.stroke(layer, path[:4], width, 150)
            canvas.stroke(layer, path[3:], width * 0.5, 120)
    hila = [_ellipse(at, rng.uniform(0.02, 0.05, 2)) for at in ((0.42, 0.42), (0.615, 0.4))]
    haze = _Canvas(_SOFT_SIDE)
    cloud = canvas.enlarged(haze.blurred(haze.filled(*map(warp, hila)), 0.02))
    return canvas.blurred(layer, 0.0012) * np.float32(rng.uniform(0.04, 0.16)) + cloud * np.float32(
        rng.uniform(0.04, 0.16)
    )


def _foreign_bodies(rng: np.random.Generator, warp: Warp, canvas: _Canvas) -> Floats | float:
    """Attenuation of wires, electrodes and a pacemaker, which few people wear."""
    if rng.random() > 0.18:
        return 0.0
    layer = np.zeros((canvas.side, canvas.side), np.uint8)
    for _ in range(rng.integers(1, 4)):
        ends = rng.uniform((0.15, -0.1), (0.85, 1.1), (4, 2))
        canvas.stroke(layer, warp(_spline(*map(tuple, ends), per_span=8)), rng.uniform(0.001, 0.005), 220)
    if rng.random() < 0.5:
        spot = rng.uniform((0.12, 0.1), (0.88, 0.6))
        canvas.stroke(layer, warp(_ellipse(spot, rng.uniform(0.01, 0.05, 2))), rng.uniform(0.005, 0.03), 255, True)
    return canvas.blurred(layer, 0.001) * np.float32(rng.uniform(0.15, 0.5))


def _exposed(rng: np.random.Generator, density: Floats, canvas: _Canvas) -> Bytes:
    """What the film and the scanner make of the attenuation: uint8 [side, side]."""
    side = canvas.side
    black = rng.uniform(-0.15, 0.25)
    white = rng.uniform(0.92, 1.4)
    gamma = np.exp(rng.normal(0.0, 0.25))
    tilt = rng.normal(0.0, 0.05, 2)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    density = density + ramp * np.float32(tilt[0]) + ramp[:, None] * np.float32(tilt[1])
    film = np.clip((density - black) / (white - black), 0, 1) ** np.float32(gamma)
    film = film * np.float32(rng.uniform(0.7, 1.0)) + np.float32(rng.uniform(0.0, 0.1))

    sigma = rng.uniform(0.0, 0.0022) * side
    if sigma > 0.25:
        film = cv2.GaussianBlur(film, (0, 0), sigma)
    _mark(rng, film)
    grain = np.float32(rng.uniform(0.0, 0.022))
    film += rng.standard_normal(film.shape, np.float32) * grain
    return np.asarray((np.clip(film, 0, 1) * 255).round(), np.uint8)


def _mark(rng: np.random.Generator, film: Floats) -> None:
    """Add labels, side letters and collimation to a film float32 [side, side] in place."""
    side = len(film)
    chance = rng.random(4)
    for corner in (0, 1):
        width, height = rng.uniform(0.08, 0.3), rng.uniform(0.02, 0.1)
        if chance[0] < 0.4 and chance[corner + 1] < 0.75:
            left = 0.0 if corner == 0 else 1 - width - rng.uniform(0, 0.15)
            film[: round(height * side), round(left * side) : round((left + width) * side)] = 0.0
    x, y, size = rng.uniform(0.04, 0.9), rng.uniform(0.05, 0.15), rng.uniform(0.8, 2.0)
    if chance[3] < 0.3:
        letter = "RLAP"[rng.integers(0, 4)]
        at = (round(x * side), round(y * side))
        weight = max(1, round(side / 300))
        layer = np.zeros(film.shape, np.uint8)
        cv2.putText(layer, letter, at, cv2.FONT_HERSHEY_SIMPLEX, size * side / 700, (255,), weight, cv2.LINE_AA)
        np.maximum(film, layer.astype(np.float32) * np.float32(1 / 255), out=film)
    edges = np.round(rng.uniform(0, 0.04, 4) * side).astype(int)
    shade = np.float32(rng.random() < 0.2)
    if rng.random() < 0.25:
        top, bottom, left, right = (int(edge) for edge in edges)
        film[:top] = film[side - bottom :] = shade
        film[:, :left] = film[:, side - right :] = shade
