"""The report of one run, as report.json and report.html in its folder."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from chexmask_u import storage
from chexmask_u.calibration.calibration import Calibration, chosen
from chexmask_u.errors import InputError
from chexmask_u.record import ReadError
from chexmask_u.runs import page, sample
from chexmask_u.runs.identity import UNTOLD_PREPARATION, told_preparation
from chexmask_u.runs.run import Run
from chexmask_u.runs.summary import chosen_rows, summarise
from chexmask_u.steps.read import read_image


def calibration_of(run: Run, given: str | None = None) -> Calibration | None:
    """The calibration of a run's records: the one that is named, or the one that lies beside its weights on disk.

    The driver asks, since nobody sees the stderr of a worker.

    Raises:
        InputError: if the one that is named is none, of other weights, or of many more draws, or has too few images for
            the radii.
    """
    frozen = run.read_json("run.json")
    if frozen is None:
        return None
    weights = frozen["weights"]
    return chosen(given, weights["source"], weights["sha256"], frozen["numbers"]["samples"])


def write_report(run: Run, facts: dict[str, Any], calibration: Calibration | None) -> dict[str, Any]:
    """Summarise the run's records and write report.json and report.html; `facts` are added to the summary.

    It scans every record and reads the contact sheet's images again, so a worker does it and not the driver.
    """
    dataset = run.dataset()
    frozen = run.read_json("run.json") or {}
    try:
        summary = summarise(dataset, calibration.known if calibration else None)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            run.damaged_part() or f"{run.url}: cannot be read ({storage.explain(error)}); try again later"
        ) from error
    summary |= {"preparation": told_preparation(frozen, summary["sources"])} | facts
    as_read = {
        "max_side": frozen["settings"]["max_side"],
        "preparation": frozen["numbers"].get("preparation", UNTOLD_PREPARATION),
    }
    images = {}
    sheet = summary["contact_sheet"]
    sampled = sample.choose(dataset, summary["sources"])
    wanted = [one["record_id"] for one in [*sheet, *([sampled] if sampled else [])]]
    rows = {row["record_id"]: row for row in chosen_rows(dataset, wanted).to_pylist()}
    for row in rows.values():
        try:
            images[row["record_id"]] = read_image(row["uri"], source=row["source"], **as_read).image
        except ReadError:
            # It was there when its record was made; a report is not worth failing for.
            continue
    shown = [one for one in sheet if one["record_id"] in images]
    pictures = [
        page.to_picture(rows[one["record_id"]], images[one["record_id"]], one["rank"], calibration) for one in shown
    ]
    if sampled and sampled["record_id"] in images:
        sample.keep(run, sampled, images[sampled["record_id"]])
        summary["sample"] = sampled
    run.write("report.html", page.render_html(summary, frozen, pictures))
    # Last: it is what says that a run is complete.
    run.write_json("report.json", summary)
    return summary
