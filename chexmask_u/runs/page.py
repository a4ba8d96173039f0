"""The report of one run as a page: one file, which asks for nothing from anywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import cv2
import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.calibration.columns import of_record as calibrated
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.pictures.scale import BRIGHTNESS, OUTLINES, UNIT, WORDS, Shown, gradient, hexes, tick_labels
from chexmask_u.record import ODD_SCORE
from chexmask_u.runs.figures import Palette, draw_histograms
from chexmask_u.runs.summary import Rank

_NOTHING = "\N{EN DASH}"
_PICTURE_SIDE = 640


@dataclass(frozen=True)
class Picture:
    """One record of the contact sheet, in the 1024 frame.

    Attributes:
        record_id, source: of the record.
        uncertainty: mean of the std over landmarks and axes, in pixels of the 1024 frame.
        rank: why it was chosen.
        image: uint8 [1024, 1024], the image as the network saw it.
        landmarks: float32 [120, 2], x then y, pixels of the 1024 frame.
        pixels: of each landmark, float64 [120], pixels of the 1024 frame.
        shown: what they are.
        ood_score: percentile among known radiographs; None where nothing tells.
    """

    record_id: str
    source: str
    uncertainty: float
    rank: Rank
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    pixels: NDArray[np.float64]
    shown: Shown
    ood_score: float | None


def to_picture(
    row: Mapping[str, Any], image: NDArray[np.uint8], rank: Rank, calibration: Calibration | None = None
) -> Picture:
    """One ok row of `chosen_rows`, mapped from original pixels to the 1024 frame.

    Args:
        row: of `record.RECORD`, as from `Table.to_pylist`; landmarks [120, 2] in original pixels.
        image: uint8 [1024, 1024], prepared by the read step.
        rank: why the record was chosen.
        calibration: of the weights: radii are shown then, if the record has what they are made of.
    """
    letterbox = Letterbox.from_row(row["letterbox"])
    told = calibrated(row, calibration) if calibration and row["landmarks_across"] is not None else {}
    pixels = letterbox.spread_to_frame(np.asarray(row["landmarks_std"])).mean(axis=1)
    if "landmarks_radius" in told:
        pixels = letterbox.spread_to_frame(told["landmarks_radius"])
    return Picture(
        record_id=row["record_id"],
        source=row["source"],
        uncertainty=float(row["uncertainty"]),
        rank=rank,
        image=image,
        landmarks=letterbox.to_frame(np.asarray(row["landmarks_mean"])).astype(np.float32),
        pixels=pixels,
        shown="radius" if "landmarks_radius" in told else "std",
        ood_score=told.get("ood_score"),
    )


def render_html(summary: Mapping[str, Any], run: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page that people look at: one file, which asks for nothing from anywhere.

    Args:
        summary: as from `summarise`; may also carry ``seconds`` (wall clock), ``images_per_second`` and
            ``network_idle_share``, all of the last attempt, and ``already_done``, the images of those before it.
        run: as in ``run.json``: ``settings``, ``manifest``, ``weights``, ``versions``.
        pictures: the contact sheet, in the order to show; none is fine.

    Returns:
        HTML with all texts escaped.
    """
    return _template().render(
        summary=summary,
        run=run,
        demo=run.get("weights", {}).get("source") == "demo",
        chart=_histograms(summary["uncertainty"]),
        gradient=", ".join(gradient()),
        ticks=[(label, 100 * place) for label, place in tick_labels()],
        outlines={organ.replace("_", " "): colour for organ, colour in OUTLINES.items()},
        shown=" or ".join(dict.fromkeys(WORDS[picture.shown] for picture in pictures)),
        unit=UNIT,
        odd_score=ODD_SCORE,
        groups=[
            (rank, [_draw(picture) for picture in pictures if picture.rank == rank])
            for rank in dict.fromkeys(picture.rank for picture in pictures)
        ],
        frame=FRAME,
        organs=ORGANS,
        n_landmarks=N_LANDMARKS,
    )


def _draw(picture: Picture) -> dict[str, Any]:
    """What the template needs of a picture; coordinates in the 1024 frame."""
    small = cv2.resize(picture.image, (_PICTURE_SIDE, _PICTURE_SIDE), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.convertScaleAbs(small, alpha=BRIGHTNESS), [cv2.IMWRITE_JPEG_QUALITY, 82])
    colours = hexes(picture.pixels)
    nodes = [
        {"x": f"{x:.1f}", "y": f"{y:.1f}", "pixels": float(pixels), "colour": colour}
        for (x, y), pixels, colour in zip(picture.landmarks, picture.pixels, colours, strict=True)
    ]
    rings = [
        {
            "organ": organ.replace("_", " "),
            "outline": OUTLINES[organ],
            "points": " ".join(f"{node['x']},{node['y']}" for node in nodes[LANDMARKS[organ]]),
            "nodes": nodes[LANDMARKS[organ]],
        }
        for organ in ORGANS
    ]
    return {
        "picture": picture,
        "jpeg": base64.b64encode(jpeg.tobytes()).decode("ascii"),
        "rings": rings,
        # Where discs overlap the smallest is seen.
        "band": sorted(nodes, key=lambda node: -node["pixels"]),
    }


# matplotlib writes literal colours; these stand for the page's own, which change with light, dark and paper.
_PAGE_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--bar)"}


def _histograms(uncertainty: Mapping[str, Any]) -> Markup | None:
    """`draw_histograms` as inline SVG."""
    # Texts stay texts, in the page's own font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "chexmask-u"}):
        figure = draw_histograms(uncertainty, Palette(*_PAGE_COLOURS))
        if figure is None:
            return None
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for literal, of_page in _PAGE_COLOURS.items():
        svg = svg.replace(literal, of_page)
    # matplotlib escapes the texts it writes.
    return Markup(svg)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"thousands": _thousands, "digits": _digits, "duration": _duration}
    environment.filters |= {"percent": _percent, "json": json.dumps}
    text = resources.files("chexmask_u").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _thousands(value: int | None) -> str:
    return _NOTHING if value is None else f"{value:,}"


def _digits(value: float | None) -> str:
    """Three significant digits, and none cut off before the point: 0.0123, 1.23, 12,345."""
    if value is None or not np.isfinite(value):
        return _NOTHING
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    if seconds < 100:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _percent(part: int, whole: int) -> str:
    """Share in percent; never "0 %" of something or "100 %" of less than all."""
    if not whole:
        return _NOTHING
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"
