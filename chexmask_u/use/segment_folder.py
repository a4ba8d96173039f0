"""The verb `segment`: images in; a folder of pictures, masks and measurements out."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u import storage
from chexmask_u.anatomy import ORGANS
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder, as_csv
from chexmask_u.manifests.check import check_source_name
from chexmask_u.manifests.listing import ANY_NAME
from chexmask_u.model.network import Network
from chexmask_u.pictures import segmented
from chexmask_u.record import FAILED, OK, RADIUS_COVERAGE, ReadError
from chexmask_u.result import BAD_INPUT, DONE, INCOMPLETE, Result
from chexmask_u.settings import SegmentSettings
from chexmask_u.use import page
from chexmask_u.use.analysis import by_region, landmark_radius
from chexmask_u.use.inputs import Input, find
from chexmask_u.use.measurements import INTERVAL, NAMES
from chexmask_u.use.segment import Segmentation, load, manifest_row, segment_rows

TABLE, DETAILS, PAGE = "measurements.csv", "measurements.json", "preview.html"

# As many as the read step fetches at once.
_AT_ONCE = 8

_COLUMNS = (
    *("image", "record_id", "status", "reason", "error", "height", "width"),
    *("uncertainty", "mean_radius", "ood_score", "warnings", "spacing"),
    *(f"{name}{part}" for name in NAMES for part in ("", "_low", "_high")),
)


def segment_folder(settings: SegmentSettings) -> dict[str, Any]:
    """Write a picture, masks and measurements of each image; one that gives none costs a row.

    Returns:
        ``ok``, ``failed``, ``lost`` (paths that could not be followed, and why), ``passed_over`` (other files),
        ``output``, ``table`` and, with --preview, ``preview``: where the page is.

    Raises:
        InputError: if there is no image, an argument cannot be used, or the output cannot be written, or holds other
            images of an earlier call and --overwrite does not say that it may replace them.
    """
    check_source_name(settings.source)
    output = Folder(storage.normalise(settings.output))
    output.check_own("segmentations", [TABLE])
    found = find(settings.images, output.url, settings.any_name)
    for path, why in found.lost.items():
        print(storage.redact(f"{path}: {why}; not followed"), file=sys.stderr)
    if found.passed_over:
        text = f"Other files, passed over (not named as PNG, JPEG or DICOM): {found.passed_over:,}; {ANY_NAME}"
        print(text, file=sys.stderr)
    inputs = found.images
    earlier = output.read_json(DETAILS) or {}
    if not settings.overwrite:
        _check_earlier(output, earlier, inputs)
    model, calibration = load(settings)
    rows: list[dict[str, Any]] = []
    # Before any work, since it tells whether the folder can be written.
    _write_tables(output, rows, settings, model, calibration)
    _remove_earlier(output, earlier)
    calibrated = calibration is not None and calibration.landmark is not None
    preview = page.Page(settings.samples, calibrated, settings.weights == "demo") if settings.preview else None
    try:
        for first in range(0, len(inputs), _AT_ONCE):
            rows += _segment(inputs[first : first + _AT_ONCE], output, model, calibration, settings, preview)
    finally:
        _write_tables(output, rows, settings, model, calibration)
    ok = sum(row["status"] == OK for row in rows)
    result: dict[str, Any] = {"ok": ok, "failed": len(rows) - ok, "lost": found.lost}
    result["passed_over"] = found.passed_over
    result |= {"output": output.url, "table": output.path(TABLE)}
    if preview is not None:
        output.write(PAGE, preview.render())
        result["preview"] = output.path(PAGE)
        _show(output.path(PAGE))
    return result


def _check_earlier(output: Folder, earlier: Mapping[str, Any], inputs: Sequence[Input]) -> None:
    """Check that what an earlier call segmented, as its measurements.json tells, is all among these images."""
    now = {storage.redact(one.uri) for one in inputs}
    others = [row["image"] for row in earlier.get("images", []) if row["status"] == OK and row["image"] not in now]
    if others:
        raise InputError(
            f"{output.url}: holds what an earlier call made of other images ({len(others):,}, such as {others[0]});"
            " choose another --output, or replace all that the earlier call made with --overwrite"
        )


def _remove_earlier(output: Folder, earlier: Mapping[str, Any]) -> None:
    """Remove the pictures and the page of an earlier call, which may not all be made again."""
    for row in earlier.get("images", []):
        for name in row.get("files", {}).values():
            # Somebody may have edited the file that names them.
            if PurePosixPath(name).suffix == ".png" and not {"..", "/"}.intersection(PurePosixPath(name).parts):
                output.remove(name)
    output.remove(PAGE)


def _segment(
    inputs: Sequence[Input],
    output: Folder,
    model: Network,
    calibration: Calibration | None,
    settings: SegmentSettings,
    preview: page.Page | None,
) -> list[dict[str, Any]]:
    """Write the files of a few images; returns their rows."""
    results = segment_rows(
        [manifest_row(one.uri, settings.source, one.image_id) for one in inputs],
        model,
        n_samples=settings.samples,
        seed=settings.seed,
        max_side=settings.max_side,
        calibration=calibration,
        unsure=settings.unsure,
    )
    rows = []
    for one, result in zip(inputs, results, strict=True):
        row: dict[str, Any] = {"image": storage.redact(one.uri), "record_id": f"{settings.source}/{one.image_id}"}
        if isinstance(result, ReadError):
            row |= {"status": FAILED, "reason": result.reason, "error": str(result)}
            print(storage.redact(f"{one.uri}: {result} ({result.reason})"), file=sys.stderr)
            if preview is not None:
                preview.add_failure(one.image_id, result)
        else:
            row |= told(result)
            drawn = result.picture()
            row["files"] = _write_files(output, one, result, drawn, settings.label_map)
            if preview is not None:
                preview.add(one.image_id, result, drawn)
            warned = "".join(f"; {warning}" for warning in result.warnings)
            ratio = result.measurements["cardiothoracic_ratio"]
            print(f"{one.image_id}: cardiothoracic ratio {ratio}, {result.trust()}{warned}")
        rows.append(row)
    return rows


def told(result: Segmentation) -> dict[str, Any]:
    """What measurements.json tells of an image that was segmented, but for its name."""
    return {
        "status": OK,
        "height": result.image.height,
        "width": result.image.width,
        "uncertainty": result.uncertainty,
        "mean_radius": result.mean_radius,
        "ood_score": result.ood_score,
        # Of organs and regions, pixels of the 1024 frame.
        "radius": None if result.radius is None else by_region(landmark_radius(result.record)),
        "warnings": list(result.warnings),
        "spacing": None if result.spacing is None else str(result.spacing),
        "measurements": {name: vars(measured) for name, measured in result.measurements.items()},
    }


def _write_files(
    output: Folder, one: Input, result: Segmentation, drawn: NDArray[np.uint8], label_map: bool
) -> dict[str, str]:
    """Write the picture and the masks; returns their paths below the output."""
    pictures = {"overlay": drawn} | {organ: result.masks[organ] * np.uint8(255) for organ in ORGANS}
    if label_map:
        pictures["labels"] = result.label_map
    files = {kind: f"{one.stem}.{kind}.png" for kind in pictures}
    for kind, pixels in pictures.items():
        output.write(files[kind], segmented.encode(pixels, ".png"))
    return files


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The text of measurements.csv: of each image its name, record id, and what `told` gives, or why there is none."""
    flat_rows = []
    for row in rows:
        flat = row | {"warnings": "; ".join(row.get("warnings", []))}
        for name, measured in row.get("measurements", {}).items():
            flat |= {name: measured["value"], f"{name}_low": measured["low"], f"{name}_high": measured["high"]}
        flat_rows.append(flat)
    return as_csv(flat_rows, _COLUMNS)


def _write_tables(
    output: Folder,
    rows: list[dict[str, Any]],
    settings: SegmentSettings,
    model: Network,
    calibration: Calibration | None,
) -> None:
    output.write(TABLE, as_table(rows))
    numbers = {
        "weights_sha256": model.sha256,
        "calibration": None if calibration is None else calibration.summary(RADIUS_COVERAGE),
        **settings.numbers(),
        "interval": INTERVAL,
    }
    output.write_json(DETAILS, {**numbers, "images": rows})


def _show(url: str) -> None:
    """Open a page in the browser where there is a display, and say where it is elsewhere."""
    display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (storage.is_local(url) and display and webbrowser.open(Path(url).as_uri())):
        print(f"Preview: {url}")


def verb(settings: SegmentSettings) -> Result:
    """`chexmask-u segment`."""
    facts = segment_folder(settings)
    ok, failed = facts["ok"], facts["failed"]
    text = f"{ok:,} of {ok + failed:,} images segmented: {facts['table']}"
    return Result(facts, text, BAD_INPUT if not ok else INCOMPLETE if failed else DONE)
