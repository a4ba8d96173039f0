"""What a release of a run is to hold, which version it is, and whether it was made before."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from chexmask_u import record, storage
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.manifests import parquet
from chexmask_u.releases import card, quality, sample, versions
from chexmask_u.releases.release import ATTEMPT, MARKER, File, Release, config
from chexmask_u.releases.sample import Sample
from chexmask_u.runs.identity import comparable_numbers, told_preparation
from chexmask_u.runs.repair import lost_parts
from chexmask_u.runs.run import Run
from chexmask_u.runs.summary import quantiles
from chexmask_u.settings import ReleaseSettings

# Arrow's own name for the file that a row comes from.
_FILE = "__filename"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a release: the rows of one kind and source whose ids lie in [first, last].

    `files` of the run hold them: looking for them in all of its thousands would take longer than writing them.
    """

    path: str
    kind: str
    config: str
    source: str | None
    first: str
    last: str
    rows: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Where a release goes, what it says of itself, its shards, and the attempt that writes them.

    Attributes:
        folder, attempt: "" as long as the version is not settled.
        header: what release.json is to say, but for its files.
        shards: the files with records.
        rows_per_group: rows in one row group.
        excluded: sources of the run that are left out.
        before: the newest version in the same place, or the one that is asked for where that is there; or None.
        calibration: that radii are of; None for none.
        sample: the picture of a record, for the card; None for none.
        is_made: whether `before` is this very release, so that nothing is to be written.
    """

    folder: str
    header: dict[str, Any]
    shards: tuple[Shard, ...]
    rows_per_group: int
    attempt: str
    excluded: tuple[str, ...] = ()
    before: Release | None = None
    calibration: Calibration | None = None
    sample: Sample | None = None
    is_made: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether the version is known; if not, it hangs on the shards' bytes, see `settle`."""
        return bool(self.attempt) or self.is_made

    def release(self, files: Sequence[File]) -> Release:
        """What is to be released, but for its pages."""
        return Release(self.folder, {**self.header, "files": [file.to_json() for file in files]})


def check(run: Run, settings: ReleaseSettings) -> None:
    """Refuse what a run's own words and the names in the output tell at once, before a cluster reads any record.

    Raises:
        InputError: if there is no such run, it ended incomplete, more images failed than allowed, it lacks a source
            that is to be left out, the output is a file, or the version is none or exists with other numbers.
    """
    if settings.version is not None and not versions.is_version(settings.version):
        raise InputError(f"--version {settings.version}: must be vX.Y.Z, for instance {versions.FIRST}")
    frozen = _frozen(run)
    output = storage.local_folder(settings.output)
    if output is not None and output.is_file():
        raise InputError(f"--output {settings.output}: is a file; give the folder that holds the versions")
    if settings.version is not None:
        before = _before(settings)
        if before is not None and before.version == settings.version and not _may_be_of(before, frozen):
            raise _exists(before.url)
        if before is None or before.version != settings.version:
            _check_folder(storage.join(storage.normalise(settings.output), settings.version))
    report = run.read_json("report.json")
    if report is None:
        # It comes last: the run is at work, or was stopped; its records tell.
        return
    if not report["complete"]:
        raise _incomplete(run, report["left"], report["manifest_rows"])
    _check_counts(run, report["sources"], settings)


def plan(run: Run, settings: ReleaseSettings, calibration: Calibration | None = None) -> Plan:
    """Check that a run is complete and cut it into shards by sorted record id.

    Only ids, sources, statuses and uncertainties are read; a worker does it, since memory grows with the ids. Nothing
    is written or deleted before all is found right.

    Returns:
        The plan; its version is settled unless this may be a version that is there, with other words around it or not.

    Raises:
        InputError: if there is no such run, it is incomplete, its ids are not those of its manifest, more images
            failed than allowed, or the version exists or is not the one that follows.
    """
    frozen = _frozen(run)
    if lost := lost_parts(run):
        raise InputError(
            f"{run.url}: {len(lost)} parts of its records are lost or damaged, for instance that of {next(iter(lost))};"
            " run the same `generate` command again, which makes them anew"
        )
    columns = ["record_id", "source", "status", "reason", "uncertainty", _FILE]
    table = read(run, run.dataset(), columns).sort_by("record_id")
    _check_ids(run, frozen, table)
    manifest_rows = len(table)
    by_source = {name: table.filter(pc.equal(table["source"], name)) for name in _names(table["source"])}
    counts = {name: {"ok": len(rows) - _failures(rows), "failed": _failures(rows)} for name, rows in by_source.items()}
    counts = _check_counts(run, counts, settings)
    shards: list[Shard] = []
    spread: dict[str, dict[str, float]] = {}
    for source in counts:
        ok = by_source[source].filter(pc.equal(by_source[source]["status"], record.OK))
        for kind in ("landmarks", "masks"):
            shards += _cut(kind, source, ok, settings.rows_per_shard)
        if len(ok):
            spread[source] = quantiles(ok["uncertainty"].to_numpy())
    table = table.filter(pc.invert(pc.is_in(table["source"], value_set=pa.array(settings.exclude, pa.string()))))
    failed = table.filter(pc.equal(table["status"], record.FAILED))
    shards += _cut("failures", None, failed, settings.rows_per_shard)
    weights = dict(frozen["weights"])
    if storage.local_folder(weights["source"]) is not None:
        # A maintainer's own folders are nobody's business; the digest says which weights they were.
        weights["source"] = PurePosixPath(weights["source"]).name
    header = {
        "schema_version": record.SCHEMA_VERSION,
        "numbers": frozen["numbers"],
        "preparation": told_preparation(frozen, counts),
        "weights": weights,
        "manifest": {"sha256": frozen["manifest"]["sha256"], "rows": frozen["manifest"]["rows"]},
        "versions": frozen["versions"],
        "counts": counts,
        "failures": _value_counts(failed["reason"]),
        # As the run's report has them; a shard's histogram tells them to a bin's width only.
        "uncertainty": spread,
        # Rows of the manifest whose sources are left out; which ones they are is nobody's business.
        "excluded_rows": manifest_rows - len(table),
    }
    if calibration is not None:
        header["calibration"] = calibration.summary(record.RADIUS_COVERAGE)
    if scores := quality.scores(frozen["weights"]):
        header["scores"] = scores
    if picture := sample.draw(run, run.read_json("report.json"), set(counts), calibration):
        header["sample"] = picture.about
    before = _before(settings)
    draft = Plan("", header, tuple(shards), settings.rows_per_shard, "", settings.exclude, before, calibration, picture)
    return draft if before is not None and _may_have_the_numbers_of(before, draft) else settle(draft, settings)


def settle(plan: Plan, settings: ReleaseSettings, files: list[File] | None = None) -> Plan:
    """Choose the version that follows the newest one, or check the given one, and take its folder.

    Args:
        plan: what is to be released.
        settings: of the release.
        files: what `describe_shard` says of each shard; None if the numbers are known to be new.

    Raises:
        InputError: if another version follows, or the version exists with other content.
    """
    version = settings.version or versions.FIRST
    if (before := plan.before) is not None:
        now = plan.release(files or [])
        if files is not None and _is_same(before, now, plan.sample):
            if settings.version not in (None, before.version):
                raise InputError(
                    f"--version {settings.version}: this run is released already, as {before.version}, and nothing"
                    " changed; leave --version out, or choose another --output"
                )
            return replace(plan, is_made=True)
        if before.version == settings.version:
            raise _exists(before.url)
        change = versions.change(before, now)
        follows = versions.after(before.version, change)
        if settings.version not in (None, follows):
            raise InputError(
                f"--version {settings.version}: after {before.version} comes {follows}, since"
                f" {versions.MEANING[change]}; leave --version out, or choose another --output"
            )
        version = follows
    folder = storage.join(storage.normalise(settings.output), version)
    _check_folder(folder)
    return replace(plan, folder=folder, header={"version": version, **plan.header}, attempt=_claim(folder))


def calls(run: Run, plan: Plan) -> list[tuple[Run, Plan, Shard]]:
    """What `describe_shard` and `write_shard` take, for each shard; the others are long lists of files."""
    return [(run, replace(plan, shards=(), sample=None), shard) for shard in plan.shards]


def described(pages: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """What release.json says of its pages."""
    return {name: {"bytes": len(page), "sha256": hashlib.sha256(page).hexdigest()} for name, page in pages.items()}


def read(run: Run, dataset: pads.Dataset, columns: list[str], rows: pc.Expression | None = None) -> pa.Table:
    """Columns of the run's records, checked against their pages' checksums.

    Raises:
        InputError: naming the part that is damaged.
    """
    try:
        return dataset.to_table(columns=columns, filter=rows)
    except (OSError, pa.ArrowInvalid) as error:
        if damaged := run.damaged_part():
            raise InputError(damaged) from error
        raise


def _frozen(run: Run) -> dict[str, Any]:
    frozen = run.read_json("run.json")
    if frozen is None:
        raise InputError(
            f"{run.url}: holds no run (no run.json); `chexmask-u generate --output {run.url}` makes one{run.nearest()}"
        )
    return frozen


def _before(settings: ReleaseSettings) -> Release | None:
    """The version that is asked for, where it is there, else the highest finished one in the same place."""
    output = Folder(storage.normalise(settings.output))
    found = sorted(filter(versions.is_version, output.names()), key=versions.parse, reverse=True)
    if settings.version in found:
        found.insert(0, settings.version)
    for version in found:
        if Folder(output.path(version)).read(MARKER) is not None:
            return Release.open(output.path(version))
    return None


def _may_be_of(before: Release, frozen: Mapping[str, Any]) -> bool:
    """Whether a release may be of a run, as far as what froze the run's numbers tells."""
    return bool(
        before.content["schema_version"] == record.SCHEMA_VERSION
        and before.content["weights"]["sha256"] == frozen["weights"]["sha256"]
        and comparable_numbers(before.content["numbers"], before.counts)
        == comparable_numbers(frozen["numbers"], before.counts)
    )


def _may_have_the_numbers_of(before: Release, plan: Plan) -> bool:
    """Whether everything that the numbers come from, as far as is known, is as it was."""
    shards = {(shard.path, shard.rows) for shard in plan.shards if shard.kind != "failures"}
    files = {(file.path, file.rows) for file in before.files if file.kind != "failures"}
    return _may_be_of(before, plan.header) and shards == files


def _is_same(before: Release, now: Release, picture: Sample | None) -> bool:
    """Whether a release would be the one before, to the last byte of its pages."""
    again = {"version": before.version, **now.content}
    return again | {"pages": described(card.pages(Release(before.url, again), picture))} == before.content


def _exists(folder: str) -> InputError:
    return InputError(
        f"{folder}: this version exists with other content, and a release never changes; choose another --version"
    )


def _incomplete(run: Run, missing: int, rows: int) -> InputError:
    return InputError(
        f"{run.url}: the run is incomplete, {missing} of {rows} images have no record yet;"
        " run the same `generate` command again"
    )


def _check_counts(
    run: Run, counts: Mapping[str, Mapping[str, int]], settings: ReleaseSettings
) -> dict[str, dict[str, int]]:
    """Check a run's counts by source against the settings; returns those of the sources that are not left out."""
    if unknown := set(settings.exclude) - set(counts):
        raise InputError(
            f"{run.url}: holds no source {min(unknown)}, which --exclude names; there are {', '.join(sorted(counts))}"
        )
    kept = {
        source: {status: counts[source][status] for status in (record.OK, record.FAILED)}
        for source in sorted(counts)
        if source not in settings.exclude
    }
    failed = sum(count[record.FAILED] for count in kept.values())
    if settings.allow_failed is not None and failed > settings.allow_failed:
        raise InputError(f"{run.url}: {failed} images failed, more than --allow-failed {settings.allow_failed}")
    if not any(count[record.OK] for count in kept.values()):
        raise InputError(f"{run.url}: no image succeeded, so there is nothing to release; see its report.html")
    return kept


def _check_folder(folder: str) -> None:
    """Check that a version's folder is new, or was left behind by an attempt that never finished."""
    names = Folder(folder).names()
    if MARKER in names:
        raise _exists(folder)
    if names and ATTEMPT not in names:
        raise InputError(f"{folder}: holds other files, and is no unfinished release; choose another --output")


def _claim(folder: str) -> str:
    """Empty the folder of what an unfinished attempt left, and say whose it is now; returns the attempt's name."""
    fs, path = storage.filesystem(folder)
    attempt = uuid.uuid4().hex
    with storage.explained(folder, "written"):
        for leftover in fs.find(path) if fs.exists(path) else []:
            fs.rm(leftover)
    Folder(folder).write(ATTEMPT, attempt)
    return attempt


def _check_ids(run: Run, frozen: dict[str, Any], table: pa.Table) -> None:
    """In = done + quarantined: the ids of the manifest are those of the records, each once."""
    uri = frozen["manifest"]["uri"]
    if parquet.sha256(uri) != frozen["manifest"]["sha256"]:
        raise InputError(f"{uri}: the manifest changed since the run began; restore it, or run again")
    fs, path = storage.arrow_filesystem(uri)
    expected = pq.read_table(path, columns=["record_id"], filesystem=fs)["record_id"].cast(pa.string())
    expected = expected.take(pc.sort_indices(expected)).combine_chunks()
    actual = table["record_id"].combine_chunks()
    if twice := len(actual) - len(pc.unique(actual)):
        counts = pc.value_counts(actual)
        name = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
        files = pc.unique(table.filter(pc.equal(table["record_id"], name))[_FILE]).to_pylist()
        raise InputError(
            f"{run.url}: {twice} records occur more than once, for instance {name.as_py()!r} in {' and '.join(files)};"
            " delete these parts and run the same `generate` command again"
        )
    if missing := len(expected) - pc.sum(pc.is_in(expected, value_set=actual)).as_py():
        raise _incomplete(run, missing, len(expected))
    if not actual.equals(expected):
        raise InputError(f"{run.url}: holds records that its manifest does not list")


def _cut(kind: str, source: str | None, rows: pa.Table, rows_per_shard: int) -> list[Shard]:
    total = -(-len(rows) // rows_per_shard)
    shards = []
    for index in range(total):
        part = rows.slice(index * rows_per_shard, rows_per_shard)
        ids, files = part["record_id"], tuple(sorted(pc.unique(part[_FILE]).to_pylist()))
        name = f"{source or 'failures'}/{kind}-{index:05d}-of-{total:05d}.parquet"
        shards.append(
            Shard(name, kind, config(source, kind), source, ids[0].as_py(), ids[-1].as_py(), len(part), files)
        )
    return shards


def _names(column: pa.ChunkedArray) -> Collection[str]:
    return sorted(pc.unique(column).to_pylist())


def _failures(rows: pa.Table) -> int:
    return int(pc.sum(pc.equal(rows["status"], record.FAILED)).as_py())


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted((row["values"].as_py(), row["counts"].as_py()) for row in pc.value_counts(column)))
