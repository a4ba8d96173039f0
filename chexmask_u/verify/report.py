"""What `verify` found: text, JSON, the images that differ most as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import ORGANS
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder, as_csv
from chexmask_u.releases.diff.compare import QUANTILES, Mover
from chexmask_u.releases.diff.picture import draw
from chexmask_u.steps.read import read_image

REPORT = "verify.json"

_MISSING = {
    "without_record": "published, not regenerated",
    "failed": "published, failed here",
    "without_row": "regenerated, not published",
    "without_landmarks": "published without landmarks",
    "repeated": "rows of an image that an earlier row is of, left out",
    "other_size": "of another size than the CSV says, left out",
}


@dataclass(frozen=True)
class FarImage:
    """An image whose landmarks differ much: as a mover from published to regenerated, how it reads, and where it is."""

    mover: Mover
    reading: str
    uri: str | None


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    of = report["of"]
    weights = of["weights"]
    lines = [
        f"{of['kind']} {of['where']}: weights {weights['source']} (sha256 {str(weights['sha256'])[:12]}...),"
        f" N = {of['numbers']['samples']}"
    ]
    if not of["complete"]:
        lines.append(f"  incomplete: {of['records']:,} of {of['manifest_rows']:,} records, which are compared")
    for name, source in report["sources"].items():
        lines += ["", *_source_lines(name, source, (of["preparation"] or {}).get(name))]
    if report["movers"]:
        lines += ["", "differ most (pixels of the 1024 frame):"]
        lines += [
            f"  {mover['pixels']:8.2f}  {mover['organ']:10}  {mover['image']}  ({mover['reading'].replace('_', ' ')})"
            for mover in report["movers"]
        ]
    return "\n".join(lines)


def _source_lines(name: str, source: Mapping[str, Any], preparation: str | None) -> list[str]:
    lines = [f"{name}: {source['published']}"]
    if preparation:
        lines.append(f"  prepared: {preparation}")
    if source["verdict"] == "unusable":
        return [*lines, f"  {source['sentence']}"]
    lines.append(
        f"  {source['images']:,} images compared of {source['missing']['published']:,} rows, in pixels of the"
        f" {'original images' if source['frame'] == 'original' else '1024 frame'}"
    )
    lines += [f"  {source['missing'][kind]:,} {words}" for kind, words in _MISSING.items() if source["missing"][kind]]
    if swapped := source["missing"]["size_swapped"]:
        lines.append(f"  {swapped:,} rows have Height and Width exchanged")
    lines.append(f"  {'':32} " + " ".join(f"{quantile:>8}" for quantile in QUANTILES))
    rows = {"difference of means": source["difference"], "standard deviation expected of it": source["expected"]}
    lines += [f"  {label:33}" + " ".join(f"{row[key]:8.2f}" for key in QUANTILES) for label, row in rows.items()]
    lines.append(
        f"  coordinates within three of these {source['within_expected']:.2%};"
        f" within the rounding of the published integers {source['within_rounding']:.1%}"
    )
    if spread := source["spread"]:
        lines.append(
            f"  standard deviations, ours over published: {spread['median']:.3f}"
            f" ({spread['low']:.2f} to {spread['high']:.2f} in 90% of the images; {spread['expected']:.3f} expected)"
        )
    for organ, dice in source["dice"].items():
        if dice is not None:
            lines.append(
                f"  Dice, {organ.replace('_', ' '):10}: {dice['median']:.4f}, least {dice['least']:.4f}"
                f" ({dice['images']:,} images)"
            )
    lines.append(f"  {source['sentence']}")
    return [*lines, *(f"    - {reason}" for reason in source["reasons"])]


def movers(images: Sequence[FarImage]) -> list[dict[str, Any]]:
    """As the report lists them."""
    return [
        {
            "source": image.mover.source,
            "image": image.mover.record_id,
            "organ": image.mover.organ,
            "pixels": round(image.mover.pixels, 3),
            "reading": image.reading,
        }
        for image in images
    ]


def write(output: str, report: Mapping[str, Any], images: Sequence[FarImage]) -> None:
    """Write verify.json and, of the images that differ most, movers.csv and movers.png.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Folder(output)
    if images:
        title = "published and regenerated: the images that differ most"
        seen = _pictures(images)
        folder.write("movers.png", draw([image.mover for image in images], title, ("published", "regenerated"), seen))
    folder.write("movers.csv", as_csv(movers(images), ["source", "image", "organ", "pixels", "reading"]))
    folder.write_json(REPORT, report)


def dice(found: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any] | None]:
    """Median and least Dice of each organ's masks."""
    return {
        organ: {"images": len(found[organ]), "median": float(np.median(found[organ])), "least": min(found[organ])}
        if found[organ]
        else None
        for organ in ORGANS
    }


def _pictures(images: Sequence[FarImage]) -> dict[str, NDArray[np.uint8]]:
    """Prepared images by the mover's id, of those that can be read from here."""
    found = {}
    for image in images:
        if image.uri is None:
            continue
        try:
            found[image.mover.record_id] = read_image(image.uri, source=image.mover.source).image
        except InputError:
            # It may lie where only the workers see it, and the contours tell enough.
            continue
    return found
