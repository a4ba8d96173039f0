"""A record whose image may be shown to anybody: the run keeps its image, and the card of a release shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from chexmask_u import record, sources
from chexmask_u.runs.run import Run


def may_be_shown(source: str) -> bool:
    """Whether a source's terms let anybody show its images: drawings, and those whose provider restricts no use."""
    return sources.get(source).policy == "open"


def choose(records: ds.Dataset, of: Iterable[str]) -> dict[str, str] | None:
    """The record of median uncertainty of the first source that may be shown and has any; None if none has.

    Args:
        records: rows of `record.RECORD`.
        of: the run's sources.

    Returns:
        ``record_id`` and ``source``.
    """
    for source in sorted(filter(may_be_shown, of)):
        wanted = (pc.field("source") == source) & (pc.field("status") == record.OK)
        rows = records.to_table(columns=["uncertainty", "record_id"], filter=wanted)
        if len(rows):
            # Records that tie for a value are told apart by their id.
            ranked = rows.sort_by([("uncertainty", "ascending"), ("record_id", "ascending")])
            return {"record_id": ranked["record_id"][len(ranked) // 2].as_py(), "source": source}
    return None


def keep(run: Run, chosen: dict[str, str], image: NDArray[np.uint8]) -> None:
    """Keep the image uint8 [1024, 1024] of the record that was chosen, without loss."""
    run.write(_file(chosen["record_id"]), cv2.imencode(".png", image)[1].tobytes())


def kept(run: Run, report: dict[str, Any]) -> tuple[dict[str, str], NDArray[np.uint8]] | None:
    """The record that `report`, the run's report.json, names, and its image; None where there is none."""
    chosen = report.get("sample")
    if chosen is None or (data := run.read(_file(chosen["record_id"]))) is None:
        return None
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return None if image is None else (chosen, np.asarray(image, np.uint8))


def _file(record_id: str) -> str:
    """By its record, so that a report which was stopped leaves no other's image under its name."""
    return f"sample-{hashlib.sha256(record_id.encode()).hexdigest()[:12]}.png"
