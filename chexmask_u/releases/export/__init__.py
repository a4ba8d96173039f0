"""A release -> the files that other software reads: CheXmask's CSVs or COCO, each whole or not there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.releases import release
from chexmask_u.releases.export import chexmask, coco
from chexmask_u.releases.export.output import Journal, whole_files
from chexmask_u.releases.export.rows import SourceRows
from chexmask_u.settings import ExportSettings

__all__ = ["ExportReport", "InputError", "export"]

_FORMATS = {"chexmask-csv": chexmask, "coco": coco}


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
        InputError: if there is no release, or it is damaged.
        InputError: if the output cannot be written, or holds something else.
    """
    folder, output = storage.normalise(settings.release), storage.normalise(settings.output)
    content = release.read_marker(folder)
    if f"{output}/".startswith(f"{folder}/"):
        raise InputError(f"{output}: is in the release, which never changes; choose another --output")
    format_ = _FORMATS[settings.format]
    counts = {source: count["ok"] for source, count in content["counts"].items() if count["ok"]}
    files = {source: format_.files(source) for source in counts}
    journal = Journal.open(output, settings.format, content, chain.from_iterable(files.values()))
    made_before = tuple(source for source in counts if journal.is_done(files[source]))
    for source, count in counts.items():
        if source in made_before:
            continue
        rows = SourceRows(folder, content["version"], source, tuple(content["files"]), count)
        try:
            with whole_files([storage.join(output, file) for file in files[source]]) as streams:
                format_.write(rows, *streams)
            journal.add(files[source])
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({storage.explain(error)})") from error
    return ExportReport(output, counts, files, made_before)
