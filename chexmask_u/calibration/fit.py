"""Radii of annotated images: the expected error of some of them, its conformal scores of others, trials on the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.calibration.calibration import Of, Radius
from chexmask_u.calibration.conformal import Scores, images_needed
from chexmask_u.calibration.expected import Expected
from chexmask_u.calibration.seen import Seen
from chexmask_u.calibration.worth import covered, trust

CLEAN = "clean"

COVERAGES = (0.5, 0.8, 0.9, 0.95)

# Of three images one is for the expected error and two are for its scores: these decide which coverages there are.
_SHARE = 3

_FOLDS = 5


@dataclass(frozen=True)
class Measured:
    """Annotated images, each as it is and shifted, with what the network made of them.

    Attributes:
        names: B times "dataset/name".
        seen: of the B images by kind: `CLEAN`, and the shifts.
        errors: distances [B, 120] to the annotated landmarks or contours by kind, in pixels of the 1024 frame; NaN
            where there is no such annotation.
    """

    names: list[str]
    seen: Mapping[str, Seen]
    errors: Mapping[Of, Mapping[str, NDArray[np.float64]]]

    def spread_alone(self) -> Measured:
        """The same, as if there had been no images to look at."""
        return replace(self, seen={kind: seen.spread_alone() for kind, seen in self.seen.items()})

    def clean(self) -> Measured:
        """The images as they are alone."""
        return replace(self, seen={CLEAN: self.seen[CLEAN]})

    def with_further(self, features: NDArray[np.float64]) -> Measured:
        """Clean images with more features of each landmark [B, 120, F]."""
        seen = self.seen[CLEAN]
        parts = [features] if seen.further is None else [seen.further, features]
        return replace(self, seen={CLEAN: replace(seen, further=np.concatenate(parts, axis=-1))})

    def annotated(self, of: Of) -> NDArray[np.int64]:
        """Rows of the images with such an annotation, by dataset and then in an order that their names fix."""
        rows = np.flatnonzero(np.isfinite(self.errors[of][CLEAN]).any(axis=1))
        return np.array(sorted(rows, key=lambda row: _place(self.names[row])), np.int64)


def _place(name: str) -> tuple[str, str]:
    return name.partition("/")[0], hashlib.sha256(name.encode()).hexdigest()


def radius(
    measured: Measured,
    of: Of,
    rows: NDArray[np.int64],
    *,
    start: Radius | None = None,
    trained: Measured | None = None,
) -> Radius | None:
    """The radius that some images give, or None where there are too few for any.

    Args:
        measured: images that the weights were not trained on.
        of: which error.
        rows: those of them to take, as `Measured.annotated` orders them.
        start: keep its expected error, so that all of the images give scores.
        trained: images that the weights were trained on. They may say which landmarks err more than others, so that
            fewer of the images of their datasets must; scores, which say by how much, never come from them.
    """
    if start is not None:
        return Radius(start.expected, _scores(measured, of, rows, start.expected), True) if len(rows) else None
    known = set() if trained is None else {trained.names[row].partition("/")[0] for row in trained.annotated(of)}
    fitted = np.zeros(len(rows), bool)
    fitted[
        [index for index, row in enumerate(rows) if measured.names[row].partition("/")[0] not in known][::_SHARE]
    ] = True
    parts = [(measured, rows[fitted])] + ([] if trained is None else [(trained, trained.annotated(of))])
    if fitted.all() or not sum(len(taken) for _, taken in parts):
        return None
    # Shifted images too: what a large spread means is seen on those.
    features = [seen.take(taken).error_features() for part, taken in parts for seen in part.seen.values()]
    errors = [part.errors[of][kind][taken] for part, taken in parts for kind in part.seen]
    expected = Expected.fit(np.concatenate(features), np.concatenate(errors))
    return Radius(expected, _scores(measured, of, rows[~fitted], expected), True)


def further_images(images: int, scores: int, coverage: float) -> int:
    """How many more images a coverage takes of a dataset of which some are for the expected error.

    Args:
        images: that are annotated.
        scores: how many of them give scores.
        coverage: between 0 and 1.
    """
    fitted = images - scores
    # As many as there may be of datasets that the weights were not trained on: each first of `_SHARE` is fitted.
    share = min(images, _SHARE * fitted)
    more = max(0, images_needed(coverage) - scores)
    while fitted and images + more - -(-(share + more) // _SHARE) < images_needed(coverage):
        more += 1
    return more


def _scores(measured: Measured, of: Of, rows: NDArray[np.int64], expected: Expected) -> Scores:
    return Scores.of(measured.errors[of][CLEAN][rows] / expected(measured.seen[CLEAN].take(rows).error_features()))


def stretched(landmark: Radius, contour: Radius, by: Radius) -> Radius:
    """A landmark radius for images whose contours alone are annotated: as much longer as the contour's became.

    Args:
        landmark, contour: of a calibration elsewhere.
        by: the contour radius here.
    """
    images = min(by.scores.images, contour.scores.images)
    # Beyond 0.9 a handful of landmarks would decide.
    coverage = max(c for c in COVERAGES if c <= 0.9 and images_needed(c) <= images)
    factor = by.scores.at(coverage) / contour.scores.at(coverage)
    return Radius(landmark.expected, landmark.scores.scaled(factor), False)


def trial(
    measured: Measured, of: Of, *, start: Radius | None = None, trained: Measured | None = None
) -> dict[str, Any]:
    """What such a radius is worth on images that it was not made of: each fifth, by one made of the other four.

    Returns:
        ``images``, and ``made_of`` how many scores such a radius is made; by kind, for each coverage that so many
        suffice for, what `worth.covered` says, and what `worth.trust` says of the radius and, as ``std``,
        ``spread`` and ``across``, of the spread; and the coverage of clean images of each dataset alone.
    """
    rows = measured.annotated(of)
    fold = np.arange(len(rows)) % _FOLDS
    made = [radius(measured, of, rows[fold != one], start=start, trained=trained) for one in range(_FOLDS)]
    radii = [one for one in made if one is not None]
    if len(radii) < _FOLDS:
        return {"images": len(rows)}
    least = min(one.scores.images for one in radii)
    found: dict[str, Any] = {"images": len(rows), "made_of": least, "kinds": {}}
    for kind, seen in measured.seen.items():
        errors = measured.errors[of][kind][rows]
        expected = np.empty_like(errors)
        for one, made_apart in enumerate(radii):
            expected[fold == one] = made_apart.expected(seen.take(rows[fold == one]).error_features())
        by_coverage: dict[str, Any] = {}
        for coverage in (c for c in COVERAGES if images_needed(c) <= least):
            pixels = np.array([one.scores.at(coverage) for one in radii])[fold, None] * expected
            by_coverage[f"{coverage:g}"] = covered(errors, pixels)
            if kind == CLEAN:
                found["datasets"] = {
                    **found.get("datasets", {}),
                    f"{coverage:g}": _by_dataset(measured, rows, errors, pixels),
                }
        found["kinds"][kind] = {
            "coverages": by_coverage,
            **trust(expected, errors),
            **{name: trust(getattr(seen, name)[rows], errors) for name in ("std", "spread", "across")},
        }
    return found


def _by_dataset(
    measured: Measured, rows: NDArray[np.int64], errors: NDArray[np.float64], radius: NDArray[np.float64]
) -> dict[str, float]:
    """Share of the landmarks within their radius, by dataset, every image weighing alike."""
    of = np.array([measured.names[row].partition("/")[0] for row in rows])
    return {name: covered(errors[of == name], radius[of == name])["coverage"] for name in dict.fromkeys(of.tolist())}
