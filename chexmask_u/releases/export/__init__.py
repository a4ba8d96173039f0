"""A release -> the files that other software reads, each whole or not there: one format per module in `formats`."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Protocol, cast

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.releases.export import formats
from chexmask_u.releases.export.output import Hashed, Journal, TextSink, whole_files
from chexmask_u.releases.export.rows import SourceRows
from chexmask_u.releases.release import Release
from chexmask_u.result import Result
from chexmask_u.settings import ExportSettings

__all__ = ["ExportReport", "InputError", "export"]


class Format(Protocol):
    """What a module in `formats` must have."""

    def files(self, source: str) -> tuple[str, ...]:
        """The files of a source, below the output."""

    def write(self, rows: SourceRows, *streams: TextSink) -> None:
        """Write them, record by record."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        output: its folder.
        rows: records by source.
        files: the files of each source, below the output.
        made_before: sources whose files were there already, of the same release.
    """

    output: str
    rows: dict[str, int]
    files: dict[str, tuple[str, ...]]
    made_before: tuple[str, ...]

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def export(settings: ExportSettings) -> ExportReport:
    """Write every source of a release in another format, a few records at a time.

    A source's files appear when they are whole. The same command goes on after an interruption, with the first source
    that is not there; what it finds in the output and did not write itself is never changed.

    Raises:
        InputError: if there is no release, or it is not whole: then before anything is written; or if the output cannot
            be written, or holds something else.
    """
    release, output = Release.open(storage.normalise(settings.release)), storage.normalise(settings.output)
    if f"{output}/".startswith(f"{release.url}/"):
        raise InputError(f"{output}: is in the release, which never changes; choose another --output")
    format_ = _format(settings.format)
    files = {source: format_.files(source) for source in release.sources}
    journal = Journal.find(output, settings.format, release, chain.from_iterable(files.values()))
    made_before = tuple(source for source in release.sources if journal.is_done(files[source]))
    if len(made_before) < len(files):
        release.check_bytes()
        journal.begin()
    for source in release.sources:
        if source in made_before:
            continue
        with storage.explained(output, "written"):
            with whole_files([storage.join(output, file) for file in files[source]]) as streams:
                hashed = [Hashed(stream) for stream in streams]
                format_.write(SourceRows(release, source), *hashed)
            journal.add({file: one.sha256 for file, one in zip(files[source], hashed, strict=True)})
    counts = {source: release.counts[source]["ok"] for source in release.sources}
    return ExportReport(output, counts, files, made_before)


def _format(name: str) -> Format:
    return cast("Format", importlib.import_module(f"{formats.__name__}.{name.replace('-', '_')}"))


def verb(settings: ExportSettings) -> Result:
    """`chexmask-u export`."""
    report = export(settings)
    lines = [f"{report.output}: {sum(report.rows.values()):,} records"]
    for source, files in report.files.items():
        before = " (made before)" if source in report.made_before else ""
        lines += [f"  {file}: {report.rows[source]:,}{before}" for file in files]
    return Result(report.asdict(), "\n".join(lines))
