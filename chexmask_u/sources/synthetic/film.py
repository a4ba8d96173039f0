"""Appearance: attenuation summed over tissues, then a film's tone curve and a scanner's faults."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.sources.synthetic.body import (
    HEART_BOTTOM,
    KNOB,
    LEFT_DOME,
    LEFT_HEART,
    LEFT_HILUM,
    LEFT_MEDIASTINUM,
    RIGHT_DOME,
    RIGHT_HEART,
    RIGHT_MEDIASTINUM,
    RIGHT_WALL,
    RINGS,
    Floats,
    Warp,
    point,
    spline,
)

Bytes = NDArray[np.uint8]

_NECK_TO_HIP = np.array(
    [(0.41, -0.6), (0.4, -0.03), (0.33, 0.03), (0.15, 0.045), (-0.05, 0.09), (-0.35, 0.25), (-0.4, 0.8),
     (-0.1, 0.62), (0.0, 0.42), (0.035, 0.42), (0.05, 0.55), (0.045, 0.75), (0.05, 1.0), (0.03, 1.9)],
    np.float32,
)  # fmt: skip
_CLAVICLE = spline((0.455, 0.175), (0.38, 0.125), (0.27, 0.105), (0.15, 0.06), (0.03, 0.045), per_span=6)
_SCAPULA = spline((0.2, 0.1), (0.135, 0.2), (0.1, 0.32), (0.12, 0.4), (0.03, 0.22), per_span=6)
_RIB_COUNT = 11
# Soft tissue is computed on a grid this wide and enlarged: it holds no detail, and large blurs are slow.
_SOFT_SIDE = 128


def _ribs() -> tuple[list[Floats], list[Floats]]:
    """Posterior and anterior ribs of the right side: curves float32 [16, 2] on the canonical plane."""
    t = np.linspace(0, 1, 16, dtype=np.float32)
    wall_y, wall_x = RIGHT_WALL[:, 1], RIGHT_WALL[:, 0]
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
    """Points [M, 2] of the canonical plane on the other side of the body."""
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


def render(rng: np.random.Generator, warp: Warp, side: int) -> Bytes:
    """The radiograph uint8 [side, side] of a person."""
    sharp, soft = _Canvas(side), _Canvas(_SOFT_SIDE)
    lungs = [warp(np.concatenate([curve for curve, _ in RINGS[organ]])) for organ in ("right_lung", "left_lung")]
    heart = warp(np.concatenate([curve for curve, _ in RINGS["heart"]]))

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
    girth = point(rng.uniform(-0.06, 0.03), rng.uniform(-0.02, 0.03))
    shoulders = point(0.0, rng.uniform(-0.05, 0.05))
    outline = _NECK_TO_HIP + np.where(_NECK_TO_HIP[:, 1:] > 0.3, girth, shoulders)
    body = canvas.filled(warp(np.concatenate([outline, _mirrored(outline)[::-1]])))
    density = 0.1 + canvas.blurred(body, 0.004) * 0.3 + canvas.blurred(body, 0.05) * rng.uniform(0.2, 0.4)

    below = np.concatenate([RIGHT_DOME, HEART_BOTTOM[::-1], LEFT_DOME[::-1], [(0.96, 2.0), (0.04, 2.0)]])
    abdomen = canvas.filled(warp(below.astype(np.float32)))
    density += canvas.blurred(abdomen, 0.012) * rng.uniform(0.08, 0.3)

    between = np.concatenate(
        [RIGHT_HEART, RIGHT_MEDIASTINUM, LEFT_MEDIASTINUM[::-1], KNOB[::-1], LEFT_HILUM[::-1], LEFT_HEART[::-1]]
    )
    density += canvas.blurred(canvas.filled(warp(between)), 0.01) * rng.uniform(0.05, 0.2)
    density += canvas.blurred(canvas.filled(heart), 0.02) * rng.uniform(0.02, 0.12)

    middle = np.linspace((0.505, -0.7), (0.505, 1.8), 60).astype(np.float32)
    spine = np.zeros_like(body)
    canvas.stroke(spine, warp(middle), 0.085, 255)
    vertebrae = np.zeros_like(body)
    for disc in range(-4, 24):
        y = 0.02 + 0.058 * disc
        canvas.stroke(vertebrae, warp(np.stack([point(0.465, y), point(0.545, y)])), 0.011, 255)
    density += canvas.blurred(spine, 0.012) * rng.uniform(0.05, 0.2)
    density -= canvas.blurred(vertebrae, 0.005) * rng.uniform(0.0, 0.05)

    trachea = np.zeros_like(body)
    windpipe = spline((0.5, -0.3), (0.5, 0.1), (0.495, 0.25), (0.5, 0.33), per_span=5)
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
    """An ellipse as a polygon float32 [40, 2], from its centre and radii, x then y."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(np.asarray(centre) + circle * np.asarray(radii), np.float32)


def _bones(rng: np.random.Generator, warp: Warp, canvas: _Canvas, air: Floats) -> Floats:
    """Attenuation of ribs, clavicles and shoulder blades, float32 [side, side]."""
    shift = point(0.0, rng.uniform(-0.04, 0.04))
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
    lift = point(0.0, rng.uniform(-0.05, 0.06))
    for curve in _both_sides([_CLAVICLE]):
        canvas.stroke(layer, warp(curve + lift), width * 1.05, 255)
        canvas.stroke(layer, warp(curve + lift), width * 0.7, 170)
    drift = point(rng.uniform(-0.05, 0.06), rng.uniform(-0.03, 0.05))
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
        canvas.stroke(layer, warp(spline(*map(tuple, ends), per_span=8)), rng.uniform(0.001, 0.005), 220)
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
