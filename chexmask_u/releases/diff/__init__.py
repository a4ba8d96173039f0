"""What changed from one release to another: records, pixels, failures; as JSON, a picture and a changelog entry."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chexmask_u import storage
from chexmask_u.folder import Folder
from chexmask_u.releases import versions
from chexmask_u.releases.diff import picture
from chexmask_u.releases.diff.compare import Comparison, Mover, failures
from chexmask_u.releases.diff.words import changelog, text
from chexmask_u.releases.release import Release
from chexmask_u.result import Result
from chexmask_u.runs.identity import comparable_numbers, told_preparation
from chexmask_u.settings import DiffSettings

__all__ = ["diff", "text"]

# It comes last, so where it is, the others are whole.
_REPORT = "diff.json"

# Says whose the files of a comparison are that was stopped before its report.
_UNFINISHED = ".diff.unfinished"

_HUB = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+", re.ASCII)


def diff(settings: DiffSettings) -> dict[str, Any]:
    """Compare two releases, each a local folder, a URL, or a version on the Hugging Face Hub.

    Movement is the distance between a landmark's two positions on the image, in pixels of the 1024 frame. Where the
    image kept its size, both are mapped by the letterbox of the earlier release, so that a frame that was cut otherwise
    is no movement; else each is mapped by its own.

    Returns:
        What diff.json holds; "change" and "follows" are None for the same release twice. Quantiles are over the
        records in both releases: of each organ's mean movement ("movement"), of its landmark that moved farthest
        ("farthest"), of the absolute change of its mean standard deviation ("std_change") and of the record's
        uncertainty, all in pixels of the 1024 frame.

    Raises:
        InputError: if one of them is no release, or damaged; their landmarks are not alike; or the output holds
            something else than an earlier comparison.
    """
    if settings.output is not None:
        # Somebody's own CHANGELOG.md may be there.
        Folder(storage.normalise(settings.output)).check_own("comparison", [_REPORT, _UNFINISHED])
    before, after = (Release.open(locate(name)) for name in (settings.before, settings.after))
    comparison = Comparison(before, after, failures(before), failures(after), settings.movers)
    sources = {source: comparison.of_source(source) for source in sorted({*before.counts, *after.counts})}
    change = None if before.content == after.content else versions.change(before, after)
    report = {
        "before": {"where": before.url, "version": before.version},
        "after": {"where": after.url, "version": after.version},
        "change": change,
        "follows": versions.after(before.version, change) if change is not None else None,
        "settings": _settings(before, after),
        "sources": sources,
        "failures": _compare_failures(comparison, sources),
        "examples": comparison.examples,
        "movers": [
            {"record_id": mover.record_id, "source": mover.source, "organ": mover.organ, "pixels": mover.pixels}
            for mover in comparison.movers
        ],
    }
    if settings.output is not None:
        _write(Folder(storage.normalise(settings.output)), report, comparison.movers)
    return report


def locate(name: str) -> str:
    """The folder or URL of a release; ORG/NAME@REVISION is one on the Hub unless there is such a folder."""
    if _HUB.fullmatch(name) and not Path(name).exists():
        return f"hf://datasets/{name}"
    return storage.normalise(name)


def _compare_failures(comparison: Comparison, sources: Mapping[str, Any]) -> dict[str, Any]:
    before, after = comparison.failed_before, comparison.failed_after
    both = before.keys() & after.keys()
    reasons = Counter(f"{before[key]} -> {after[key]}" for key in both if before[key] != after[key])
    lost = sum(sum(source["ok_to_failed"].values()) for source in sources.values())
    return {
        "before": len(before),
        "after": len(after),
        "added": len(after) - len(both) - lost,
        "removed": len(before) - len(both) - len(comparison.recovered),
        "other_reason": dict(sorted(reasons.items())),
    }


def _settings(before: Release, after: Release) -> dict[str, list[Any]]:
    """What the releases say of how they were made, where that differs: [before, after]."""
    facts = [
        {
            "schema": content["schema_version"],
            "weights": content["weights"]["source"],
            "weights commit": content["weights"].get("commit"),
            "weights sha256": content["weights"]["sha256"],
            "manifest sha256": content["manifest"]["sha256"],
            **comparable_numbers(content["numbers"], content["counts"]),
            **{f"preparation of {name}": told for name, told in told_preparation(content, content["counts"]).items()},
            **content["versions"],
        }
        for content in (before.content, after.content)
    ]
    names = dict.fromkeys([*facts[0], *facts[1]])
    pairs = {name: [fact.get(name) for fact in facts] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _write(folder: Folder, report: dict[str, Any], movers: Sequence[Mover]) -> None:
    folder.write(_UNFINISHED, "")
    folder.remove(_REPORT)
    folder.write("CHANGELOG.md", changelog(report))
    if movers:
        title = f"{report['before']['version']} -> {report['after']['version']}: records that moved most"
        folder.write("diff.png", picture.draw(movers, title))
    else:
        # An earlier comparison's would be taken for this one's.
        folder.remove("diff.png")
    folder.write_json(_REPORT, report)
    folder.remove(_UNFINISHED)


def verb(settings: DiffSettings) -> Result:
    """`chexmask-u diff`."""
    report = diff(settings)
    return Result(report, text(report))
