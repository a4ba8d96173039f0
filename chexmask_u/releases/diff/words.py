"""A comparison in words: for a terminal, and as a draft of the changelog's entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from chexmask_u.anatomy import ORGANS
from chexmask_u.releases import versions
from chexmask_u.releases.diff.compare import QUANTILES

_DIGEST = re.compile(r"[0-9a-f]{64}")


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    before, after = report["before"], report["after"]
    lines = [f"{before['version']} ({before['where']}) -> {after['version']} ({after['where']})"]
    lines += [f"  {name}: {_short(old)} -> {_short(new)}" for name, (old, new) in report["settings"].items()]
    for name, source in report["sources"].items():
        lines.append(
            f"{name}: {source['before']:,} -> {source['after']:,} records; {source['added']:,} added,"
            f" {source['removed']:,} removed, {source['changed']:,} changed of {source['in_both']:,} in both"
        )
        for label, reasons in (("failed -> ok", source["failed_to_ok"]), ("ok -> failed", source["ok_to_failed"])):
            if reasons:
                lines.append(f"  {label}: {_reasons(reasons)}")
        if source["resized"]:
            lines.append(f"  of another image size: {source['resized']:,}")
        if source["masks_differ"] and not source["columns"].get("landmarks_mean"):
            lines.append("  the masks differ")
        if source["changed"]:
            lines += [f"  {'pixels of the 1024 frame':26} " + " ".join(f"{name:>8}" for name in QUANTILES)]
            for label, values in _table(source):
                lines.append(f"  {label:26} " + " ".join(f"{values[name]:8.2f}" for name in QUANTILES))
    failures = report["failures"]
    lines.append(
        f"failures: {failures['before']:,} -> {failures['after']:,}"
        + (f"; other reason: {_reasons(failures['other_reason'])}" if failures["other_reason"] else "")
    )
    if report["movers"]:
        lines.append("moved most:")
        lines += [f"  {mover['pixels']:8.2f}  {mover['organ']:10}  {mover['record_id']}" for mover in report["movers"]]
    lines.append(_version_line(report))
    return "\n".join(lines)


def changelog(report: Mapping[str, Any]) -> str:
    """A draft of the changelog's entry, in Markdown."""
    before, after = report["before"]["version"], report["after"]["version"]
    # Two runs may be called the same, released into folders of their own; two entries may not.
    title = report["follows"] if after == before and report["change"] is not None else after
    lines = [f"## [{title}] - {datetime.now(UTC).date()}", ""]
    lines += [f"Compared with {before}. {_version_line(report)}", ""]
    changed, added, removed = [], [], []
    for name, (old, new) in report["settings"].items():
        changed.append(f"- {name}: {_short(old)} -> {_short(new)}")
    for name, source in report["sources"].items():
        if source["added"]:
            added.append(f"- {_records(source['added'])} of {name}")
        if source["failed_to_ok"]:
            added.append(f"- records of {name} whose images had failed: {_reasons(source['failed_to_ok'])}")
        if source["removed"]:
            removed.append(f"- {_records(source['removed'])} of {name}")
        if source["ok_to_failed"]:
            removed.append(f"- records of {name} whose images now fail: {_reasons(source['ok_to_failed'])}")
        if source["changed"]:
            columns = ", ".join(source["columns"])
            changed += [
                f"- {source['changed']:,} of {source['in_both']:,} records of {name} ({columns}):",
                "",
                f"  | pixels of the 1024 frame | {' | '.join(QUANTILES)} |",
                f"  |---|{'---:|' * len(QUANTILES)}",
                *(
                    f"  | {label} | {' | '.join(f'{values[quantile]:.2f}' for quantile in QUANTILES)} |"
                    for label, values in _table(source)
                ),
                "",
            ]
        elif source["masks_differ"] and source["in_both"]:
            changed.append(f"- masks of {name}")
    if reasons := report["failures"]["other_reason"]:
        changed.append(f"- failures with another reason: {_reasons(reasons)}")
    for title, entries in (("Added", added), ("Changed", changed), ("Removed", removed)):
        if entries:
            lines += [f"### {title}", "", *entries, ""]
    if not (added or changed or removed):
        lines += ["No record changed.", ""]
    return "\n".join(lines)


def _table(source: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    rows = [(f"{organ.replace('_', ' ')} moved", source["movement"][organ]) for organ in ORGANS]
    rows += [(f"{organ.replace('_', ' ')}, farthest node", source["farthest"][organ]) for organ in ORGANS]
    rows += [(f"{organ.replace('_', ' ')} std, change", source["std_change"][organ]) for organ in ORGANS]
    return [*rows, ("uncertainty, change", source["uncertainty_change"])]


def _version_line(report: Mapping[str, Any]) -> str:
    if report["change"] is None:
        return "They are the same release."
    what = versions.MEANING[report["change"]]
    before, version, follows = report["before"]["version"], report["after"]["version"], report["follows"]
    if version == follows:
        return f"Version: {follows} follows {before}, since {what} ({report['change']})."
    is_called = f"this is {version}" + (" too, until it is released beside the other" if version == before else "")
    return f"Version: {follows} would follow, since {what} ({report['change']}); {is_called}."


def _records(count: int) -> str:
    return f"{count:,} record{'s' * (count != 1)}"


def _short(value: Any) -> str:
    """As it is, or the beginning of a digest, which is enough for people."""
    return f"{value[:12]}..." if isinstance(value, str) and _DIGEST.fullmatch(value) else str(value)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
