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
from chexmask_u.pictures.scale import OUTLINES, gradient, hexes, tick_labels
from chexmask_u.use.analysis import landmark_uncertainty, region_uncertainty
from chexmask_u.use.measurements import INTERVAL, NAMES

# Of the image on the page; the downloaded picture is a PNG.
_JPEG_QUALITY = 88

# Pixels a side of what is clicked on to choose a sample.
_THUMBNAIL = 96

# Of the bars, pixels of the 1024 frame; beyond it a bar is full.
_FULL = 40.0

_PLACES = {node: region for region, nodes in REGIONS.items() for node in nodes}


def show_picture(seen: Seen) -> str:
    """The image with its contours, the draws around them and the landmarks by colour: an SVG in the 1024 frame."""
    result, letterbox = seen.result, seen.result.image.letterbox
    (left, top), (right, bottom) = letterbox.to_frame(np.array([[0, 0], [result.image.width, result.image.height]]))
    std = landmark_uncertainty(result.record)
    mean, draws = letterbox.to_frame(result.landmarks), letterbox.to_frame(result.draws)
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
                "draws": [_path(draw[nodes]) for draw in draws],
                "contour": _path(mean[nodes]),
                "nodes": list(_nodes(mean, std, nodes)),
            }
            for organ, nodes in LANDMARKS.items()
        ],
    )


def show_numbers(seen: Seen) -> str:
    """Uncertainty before and after, warnings and measurements."""
    after = region_uncertainty(seen.result.record)
    return _render(
        "app_numbers",
        n_samples=seen.choice.samples,
        changed=seen.choice != seen.choice.clean,
        bars=[
            {
                "name": organ.replace("_", " "),
                "colour": OUTLINES[organ],
                "before": seen.before[organ],
                "after": after[organ],
                "before_share": _share(seen.before[organ]),
                "after_share": _share(after[organ]),
            }
            for organ in ORGANS
        ],
        warnings=seen.result.warnings,
        ratio=seen.result.measurements["cardiothoracic_ratio"],
        measured={
            _words(name): seen.result.measurements[name] for name in NAMES[1:] if name in seen.result.measurements
        },
        spacing=seen.result.spacing,
        height=seen.result.image.height,
        width=seen.result.image.width,
        uncertainty=seen.result.uncertainty,
        interval=f"{INTERVAL:.0%}",
    )


def frame(most_bytes: int) -> str:
    """What stays around the picture: the samples, the place to drop an image, what is shown of it, and the colours."""
    return _render(
        "app_frame",
        samples=[_thumbnail(number) for number in range(len(SAMPLES))],
        organs=[(organ, organ.replace("_", " "), OUTLINES[organ]) for organ in ORGANS],
        colours=gradient(),
        ticks=[(label, 100 * place) for label, place in tick_labels()],
        frame=FRAME,
        most_bytes=most_bytes,
    )


def style() -> str:
    """The page's CSS."""
    return _text("app.css")


def script() -> str:
    """What the picture does when it is clicked on, or when a file is dropped on it."""
    return _text("app.js")


def _thumbnail(number: int) -> str:
    size = (_THUMBNAIL, _THUMBNAIL)
    return _jpeg(np.asarray(cv2.resize(sample(number).image.image, size, interpolation=cv2.INTER_AREA), np.uint8))


def _nodes(mean: NDArray[np.float64], std: NDArray[np.float64], nodes: slice) -> Iterator[dict[str, Any]]:
    colours = hexes(std)
    for node in range(nodes.start, nodes.stop):
        yield {
            "x": round(mean[node, 0], 1),
            "y": round(mean[node, 1], 1),
            "radius": round(std[node], 1),
            "colour": colours[node],
            "title": f"{_words(_PLACES[node]).replace('.', ', ')}: std {std[node]:.1f} px",
        }


def _path(ring: NDArray[np.float64]) -> str:
    """A closed contour [nodes, 2] as SVG writes it."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z"


def _share(std: float) -> float:
    """Percent of a bar."""
    return round(min(100.0, 100 * std / _FULL), 1)


def _words(name: str) -> str:
    return name.removesuffix("2").removesuffix("_px").removesuffix("_mm").replace("_", " ")


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
