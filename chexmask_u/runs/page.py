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
from matplotlib.colors import LogNorm, to_hex
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.runs.figures import Palette, draw_histograms, ticks_between
from chexmask_u.runs.summary import BIN_EDGES, Rank

_NOTHING = "\N{EN DASH}"
_PICTURE_SIDE = 640
# Bone and diaphragm are near white: dimmed, both ends of the colour map stand out from them.
_DIMMED = 0.62
# The darkest fifth of viridis would vanish in a radiograph.
_COLOURS = matplotlib.colormaps["viridis"].resampled(256)
_DARKEST = 0.2


@dataclass(frozen=True)
class Picture:
    """One record of the contact sheet, in the 1024 frame.

    Attributes:
        record_id, source: of the record.
        uncertainty: mean of `std`, in pixels of the 1024 frame.
        rank: why it was chosen.
        image: uint8 [1024, 1024], the image as the network saw it.
        landmarks: float32 [120, 2], x then y, pixels of the 1024 frame.
        std: float32 [120, 2], pixels of the 1024 frame.
    """

    record_id: str
    source: str
    uncertainty: float
    rank: Rank
    image: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    std: NDArray[np.float32]


def to_picture(row: Mapping[str, Any], image: NDArray[np.uint8], rank: Rank) -> Picture:
    """One ok row of `chosen_rows`, mapped from original pixels to the 1024 frame.

    Args:
        row: of `record.RECORD`, as from `Table.to_pylist`; landmarks [120, 2] in original pixels.
        image: uint8 [1024, 1024], prepared by the read step.
        rank: why the record was chosen.
    """
    letterbox = Letterbox.from_row(row["letterbox"])
    return Picture(
        record_id=row["record_id"],
        source=row["source"],
        uncertainty=float(row["uncertainty"]),
        rank=rank,
        image=image,
        landmarks=letterbox.to_frame(np.asarray(row["landmarks_mean"])).astype(np.float32),
        std=letterbox.spread_to_frame(np.asarray(row["landmarks_std"])).astype(np.float32),
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
    colour_bar = _ColourBar.of(pictures)
    return _template().render(
        summary=summary,
        run=run,
        demo=run.get("weights", {}).get("source") == "demo",
        chart=_histograms(summary["uncertainty"]),
        colour_bar=colour_bar,
        groups=[
            (rank, [_draw(picture, colour_bar) for picture in pictures if picture.rank == rank])
            for rank in dict.fromkeys(picture.rank for picture in pictures)
        ],
        frame=FRAME,
        organs=ORGANS,
        n_landmarks=N_LANDMARKS,
    )


@dataclass(frozen=True)
class _ColourBar:
    """Colours of the nodes' std, on one logarithmic scale for all pictures."""

    low: float
    high: float

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> _ColourBar:
        stds = [picture.std.mean(axis=1) for picture in pictures]
        values = np.concatenate([np.zeros(0), *stds])
        # A run with one draw per image has no spread at all.
        values = values[np.isfinite(values) & (values >= BIN_EDGES[0])]
        # A few extreme nodes may share the colours at the ends, so that the rest are told apart.
        low, high = map(float, np.quantile(values, (0.01, 0.99))) if len(values) else (1.0, 1.0)
        nice = [digit * 10.0**power for power in range(-2, 6) for digit in (1, 2, 5)]
        low = max(value for value in nice if value <= low)
        return cls(low, min(value for value in nice if value >= high and value > low))

    def hex(self, std: float) -> str:
        return self._colour(float(LogNorm(self.low, self.high, clip=True)(max(std, self.low))))

    def gradient(self) -> str:
        return ", ".join(self._colour(step / 16) for step in range(17))

    def ticks(self) -> list[tuple[str, float]]:
        """Label in pixels, and place in percent of the bar's length."""
        values = ticks_between(self.low, self.high)
        labels = [f"{value:g}" for value in values]
        labels[0], labels[-1] = f"≤ {labels[0]}", f"≥ {labels[-1]}"
        span = np.log(self.high / self.low)
        return [
            (label, float(100 * np.log(value / self.low) / span)) for label, value in zip(labels, values, strict=True)
        ]

    @staticmethod
    def _colour(share: float) -> str:
        return to_hex(_COLOURS(_DARKEST + (1 - _DARKEST) * share))


def _draw(picture: Picture, colour_bar: _ColourBar) -> dict[str, Any]:
    """What the template needs of a picture; coordinates in the 1024 frame."""
    small = cv2.resize(picture.image, (_PICTURE_SIDE, _PICTURE_SIDE), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.convertScaleAbs(small, alpha=_DIMMED), [cv2.IMWRITE_JPEG_QUALITY, 82])
    rings = []
    for organ in ORGANS:
        points = picture.landmarks[LANDMARKS[organ]]
        stds = picture.std[LANDMARKS[organ]].mean(axis=1)
        rings.append(
            {
                "organ": organ.replace("_", " "),
                "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
                "nodes": [
                    {"x": f"{x:.1f}", "y": f"{y:.1f}", "std": float(std), "colour": colour_bar.hex(float(std))}
                    for (x, y), std in zip(points, stds, strict=True)
                ],
            }
        )
    return {"picture": picture, "jpeg": base64.b64encode(jpeg.tobytes()).decode("ascii"), "rings": rings}


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
