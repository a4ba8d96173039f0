"""What the page shows of an image, as HTML: the picture, how much surer it was before, and the measurements."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS, REGIONS
from chexmask_u.app.study import SAMPLES, Seen, sample
from chexmask_u.pictures.scale import OUTLINES, UNIT, WORDS, Shown, gradient, hexes, tick_labels
from chexmask_u.use.analysis import landmark_uncertainty
from chexmask_u.use.measurements import INTERVAL
from chexmask_u.use.segment import Segmentation, shown_pixels

# Of the image on the page; the downloaded picture is a PNG.
_JPEG_QUALITY = 88

# Pixels a side of what is clicked on to choose a sample.
_THUMBNAIL = 96

# Of a full bar, pixels of the 1024 frame: what the bundled weights come to where much is hidden.
_FULL: dict[Shown, float] = {"radius": 80.0, "std": 30.0}

# What the discs around landmarks are called.
_BANDS: dict[Shown, str] = {"radius": "radii", "std": "spread"}

# Of the bar of what is hidden.
_SQUARE = "#8a949c"

_PLACES = {node: region for region, nodes in REGIONS.items() for node in nodes}


def show_picture(seen: Seen) -> str:
    """The image with its contours, the draws around them and the landmarks by colour: an SVG in the 1024 frame."""
    result, letterbox = seen.result, seen.result.image.letterbox
    (left, top), (right, bottom) = letterbox.to_frame(np.array([[0, 0], [result.image.width, result.image.height]]))
    mean, draws = letterbox.to_frame(result.landmarks), letterbox.to_frame(result.draws)
    nodes = list(_nodes(result, mean))
    return _render(
        "app_picture",
        name=seen.case.name,
        box=[round(value, 1) for value in (left, top, right - left, bottom - top)],
        jpeg=_jpeg(result.image.image),
        frame=FRAME,
        organs=[
            {
                "name": organ,
                "colour": OUTLINES[organ],
                "draws": [_path(draw[ring]) for draw in draws],
                "contour": _path(mean[ring]),
                "nodes": nodes[ring],
                # Where discs overlap the smallest is seen.
                "discs": sorted(nodes[ring], key=lambda node: -node["radius"]),
            }
            for organ, ring in LANDMARKS.items()
        ],
    )


def show_numbers(seen: Seen) -> str:
    """What is told of each landmark, by organ, as it was before and as it is; warnings and measurements."""
    result = seen.result
    (before, _), (after, shown) = shown_pixels(seen.before), shown_pixels(result.record)
    parts: dict[str, Any] = {organ: (ring, OUTLINES[organ]) for organ, ring in LANDMARKS.items()}
    under = seen.under()
    if under.any():
        parts["under_the_square"] = under, _SQUARE
    return _render(
        "app_numbers",
        name=seen.case.name,
        n_samples=seen.choice.samples,
        changed=seen.choice != seen.choice.clean,
        spread=(seen.before["uncertainty"], result.uncertainty),
        radius=None if shown == "std" else (before.mean(), after.mean()),
        ood_score=result.ood_score,
        what=f"{WORDS[shown]}, mean, {UNIT}",
        bars=[
            {
                "name": name.replace("_", " "),
                "colour": colour,
                "before": before[nodes].mean(),
                "after": after[nodes].mean(),
                "shares": [round(100 * min(1, values[nodes].mean() / _FULL[shown]), 1) for values in (before, after)],
            }
            for name, (nodes, colour) in parts.items()
        ],
        warnings=result.warnings,
        ratio=result.measurements["cardiothoracic_ratio"],
        # Of a width or an area, millimetres come last and take the place of pixels.
        measured={_words(name): measured for name, measured in list(result.measurements.items())[1:]},
        spacing=result.spacing,
        height=result.image.height,
        width=result.image.width,
        interval=f"{INTERVAL:.0%}",
    )


def frame(first: Seen, most_bytes: int) -> str:
    """What stays around the picture: the samples, the place to drop an image, what is shown of it, and the colours.

    Args:
        first: what is shown first, whose colours mean what all later ones do.
        most_bytes: of the largest file that is worth uploading.
    """
    shown = shown_pixels(first.result.record)[1]
    return _render(
        "app_frame",
        samples=[_thumbnail(number) for number in range(len(SAMPLES))],
        organs=[(organ, organ.replace("_", " "), OUTLINES[organ]) for organ in ORGANS],
        colours=gradient(),
        ticks=[(label, 100 * place) for label, place in tick_labels()],
        band=_BANDS[shown],
        what=f"{WORDS[shown]}, {UNIT}",
        most_bytes=most_bytes,
    )


def head(local: bool) -> str:
    """What the page is, and what becomes of images; `local` says whether visitors sit at the machine that serves it."""
    return _render("app_head", local=local)


def style() -> str:
    """The page's CSS."""
    return _text("app.css")


def script() -> str:
    """What the picture does when it is clicked on, or when a file is dropped on it."""
    return _text("app.js")


def _nodes(result: Segmentation, mean: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """What is drawn of each landmark, whose places [120, 2] are in pixels of the 1024 frame."""
    pixels, shown = shown_pixels(result.record)
    std = landmark_uncertainty(result.record)
    for node, colour in enumerate(hexes(pixels)):
        radius = f", {WORDS[shown].partition(' of ')[0]} {pixels[node]:.0f} px" if shown == "radius" else ""
        yield {
            "x": round(mean[node, 0], 1),
            "y": round(mean[node, 1], 1),
            "radius": round(pixels[node], 1),
            "colour": colour,
            "title": f"{_words(_PLACES[node]).replace('.', ', ')}: std {std[node]:.1f} px{radius}",
        }


def _path(ring: NDArray[np.float64]) -> str:
    """A closed contour [nodes, 2] as SVG writes it."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z"


def _words(name: str) -> str:
    return name.removesuffix("2").removesuffix("_px").removesuffix("_mm").replace("_", " ")


def _thumbnail(number: int) -> str:
    size = (_THUMBNAIL, _THUMBNAIL)
    return _jpeg(np.asarray(cv2.resize(sample(number).image.image, size, interpolation=cv2.INTER_AREA), np.uint8))


def _jpeg(image: NDArray[np.uint8]) -> str:
    """An image uint8 [H, W] as a data URL's content."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return base64.b64encode(data.tobytes()).decode("ascii")


def _render(template: str, **values: Any) -> str:
    return _template(template).render(values)


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text(f"{name}.html.j2"))


def _text(name: str) -> str:
    return (resources.files("chexmask_u") / "templates" / name).read_text("utf-8")
