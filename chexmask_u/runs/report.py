"""The report of one run, as report.json and report.html in its folder."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.record import ReadError
from chexmask_u.runs import page
from chexmask_u.runs.identity import UNTOLD_PREPARATION, told_preparation
from chexmask_u.runs.run import Run
from chexmask_u.runs.summary import chosen_rows, summarise
from chexmask_u.steps.read import read_image


def write_report(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Summarise the run's records and write report.json and report.html; `facts` are added to the summary.

    It scans every record and reads the contact sheet's images again, so a worker does it and not the driver.
    """
    dataset = run.dataset()
    try:
        summary = summarise(dataset)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            run.damaged_part() or f"{run.url}: cannot be read ({storage.explain(error)}); try again later"
        ) from error
    frozen = run.read_json("run.json") or {}
    summary |= {"preparation": told_preparation(frozen, summary["sources"])} | facts
    as_read = {
        "max_side": frozen["settings"]["max_side"],
        "preparation": frozen["numbers"].get("preparation", UNTOLD_PREPARATION),
    }
    pictures = []
    ranks = {chosen["record_id"]: chosen["rank"] for chosen in summary["contact_sheet"]}
    for row in chosen_rows(dataset, list(ranks)).to_pylist():
        try:
            image = read_image(row["uri"], source=row["source"], **as_read).image
        except ReadError:
            # It was there when its record was made; a report is not worth failing for.
            continue
        pictures.append(page.to_picture(row, image, ranks[row["record_id"]]))
    run.write("report.html", page.render_html(summary, frozen, pictures))
    # Last: it is what says that a run is complete.
    run.write_json("report.json", summary)
    return summary
