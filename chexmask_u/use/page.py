"""The preview of segmented images: one HTML file, which asks for nothing from anywhere."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from chexmask_u.pictures import segmented
from chexmask_u.record import ODD_SCORE, RADIUS_COVERAGE, ReadError
from chexmask_u.use.measurements import INTERVAL
from chexmask_u.use.segment import Segmentation

# The measurements of a table that is to be read, not searched; in millimetres where there are some.
_SHOWN = ("thorax_width", "heart_width", "right_lung_area", "left_lung_area", "heart_area")


@dataclass
class Page:
    """Collects what the page shows; of each image, its picture as JPEG.

    Attributes:
        n_samples: draws N of each image.
        calibrated: whether its colours are radii, and not standard deviations.
        demo: whether the bundled weights made it.
    """

    n_samples: int
    calibrated: bool
    demo: bool
    _cards: list[dict[str, Any]] = field(default_factory=list, init=False)
    _failures: list[dict[str, str]] = field(default_factory=list, init=False)

    def add_failure(self, name: str, error: ReadError) -> None:
        self._failures.append({"name": name, "reason": error.reason, "error": str(error)})

    def add(self, name: str, result: Segmentation, drawn: NDArray[np.uint8]) -> None:
        """Add an image with its picture, uint8 [rows, columns, 3]."""
        self._cards.append(
            {
                "name": name,
                "jpeg": base64.b64encode(segmented.encode(drawn, ".jpg")).decode("ascii"),
                "uncertainty": result.uncertainty,
                "mean_radius": result.mean_radius,
                "ood_score": result.ood_score,
                "warnings": result.warnings,
                "spacing": result.spacing,
                "measurements": {"cardiothoracic ratio": result.measurements["cardiothoracic_ratio"]}
                | {name.replace("_", " "): _best(result, name) for name in _SHOWN},
            }
        )

    def render(self) -> str:
        source = (resources.files("chexmask_u") / "templates" / "preview.html.j2").read_text("utf-8")
        template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
        return template.render(
            cards=self._cards,
            failures=self._failures,
            n_samples=self.n_samples,
            calibrated=self.calibrated,
            coverage=f"{RADIUS_COVERAGE:.0%}",
            odd_score=ODD_SCORE,
            demo=self.demo,
            interval=f"{INTERVAL:.0%}",
        )


def _best(result: Segmentation, name: str) -> Any:
    """A measurement in millimetres where there are some, else in pixels."""
    suffix = "2" if name.endswith("area") else ""
    return result.measurements.get(f"{name}_mm{suffix}", result.measurements.get(f"{name}_px{suffix}"))
