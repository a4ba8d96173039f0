"""A complete run -> one immutable, validated, versioned dataset folder."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from chexmask_u import record, storage
from chexmask_u.columns import to_landmarks
from chexmask_u.errors import InputError
from chexmask_u.manifests import manifest
from chexmask_u.releases import card, versions
from chexmask_u.runs.repair import lost_parts
from chexmask_u.runs.run import Run
from chexmask_u.runs.summary import distribution
from chexmask_u.settings import ReleaseSettings

MARKER = "release.json"

# Names the attempt that writes the folder; it goes once the marker is there.
ATTEMPT = "release.unfinished"

# Run-length strings are long: smaller groups keep a group far below the 100 MB that the Hub's viewer can read.
MASK_ROWS_PER_GROUP = 5_000

# Masks of so many rows are some 100 MB.
READ_ROWS = 1_000

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
        before: release.json of the newest version in the same place, or None.
    """

    folder: str
    header: dict[str, Any]
    shards: tuple[Shard, ...]
    rows_per_group: int
    attempt: str
    excluded: tuple[str, ...] = ()
    before: dict[str, Any] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the version is known; if not, it hangs on the shards' bytes, see `settle`."""
        return bool(self.attempt)


def check_version(version: str) -> None:
    """Raise InputError if a version is not written vX.Y.Z."""
    if not versions.is_version(version):
        raise InputError(f"--version {version}: must be vX.Y.Z, for instance v1.0.0")


def plan(run: Run, settings: ReleaseSettings) -> Plan:
    """Check that a run is complete and cut it into shards by sorted record id.

    Only ids, sources and statuses are read; a worker does it, since memory grows with the ids. Nothing is written or
    deleted before all is found right.

    Returns:
        The plan; its version is settled unless this may be the newest version over again, with other words around it.

    Raises:
        InputError: if there is no such run, it is incomplete, its ids are not those of its manifest, more images
            failed than allowed, or the version exists or is not the one that follows.
    """
    frozen = run.read_json("run.json")
    if frozen is None:
        raise InputError(f"{run.url}: holds no run (no run.json); `chexmask-u generate --output {run.url}` makes one")
    if settings.version is not None:
        _check_folder(storage.join(storage.normalise(settings.output), settings.version))
    if lost := lost_parts(run):
        raise InputError(
            f"{run.url}: {len(lost)} parts of its records are lost or damaged, for instance that of {next(iter(lost))};"
            " run the same `generate` command again, which makes them anew"
        )
    columns = ["record_id", "source", "status", "reason", _FILE]
    table = _read(run, run.dataset(), columns).sort_by("record_id")
    _check_ids(run, frozen, table)
    if unknown := set(settings.exclude) - set(pc.unique(table["source"]).to_pylist()):
        raise InputError(f"{run.url}: holds no source {min(unknown)}, which --exclude names")
    manifest_rows = len(table)
    table = table.filter(pc.invert(pc.is_in(table["source"], value_set=pa.array(settings.exclude, pa.string()))))
    failed = table.filter(pc.equal(table["status"], record.FAILED))
    if settings.allow_failed is not None and len(failed) > settings.allow_failed:
        raise InputError(f"{run.url}: {len(failed)} images failed, more than --allow-failed {settings.allow_failed}")
    ok = table.filter(pc.equal(table["status"], record.OK))
    if not len(ok):
        raise InputError(f"{run.url}: no image succeeded, so there is nothing to release; see its report.html")
    shards: list[Shard] = []
    counts = {}
    for source in sorted(pc.unique(table["source"]).to_pylist()):
        rows = ok.filter(pc.equal(ok["source"], source))
        of_source = pc.sum(pc.equal(table["source"], source)).as_py()
        counts[source] = {"ok": len(rows), "failed": of_source - len(rows)}
        for kind, config in (("landmarks", source), ("masks", f"{source}-masks")):
            shards += _cut(kind, config, source, rows, settings.rows_per_shard)
    shards += _cut("failures", "failures", None, failed, settings.rows_per_shard)
    weights = dict(frozen["weights"])
    if storage.local_folder(weights["source"]) is not None:
        # A maintainer's own folders are nobody's business; the digest says which weights they were.
        weights["source"] = PurePosixPath(weights["source"]).name
    header = {
        "schema_version": record.SCHEMA_VERSION,
        "numbers": frozen["numbers"],
        "weights": weights,
        "manifest": {"sha256": frozen["manifest"]["sha256"], "rows": frozen["manifest"]["rows"]},
        "versions": frozen["versions"],
        "counts": counts,
        "failures": _value_counts(failed["reason"]),
        # Rows of the manifest whose sources are left out; which ones they are is nobody's business.
        "excluded_rows": manifest_rows - len(table),
    }
    before = newest(storage.normalise(settings.output))
    draft = Plan("", header, tuple(shards), settings.rows_per_shard, "", settings.exclude, before)
    return draft if before is not None and _may_have_the_numbers_of(before, draft) else settle(draft, settings)


def settle(plan: Plan, settings: ReleaseSettings, files: list[dict[str, Any]] | None = None) -> Plan:
    """Choose the version that follows the newest one, or check the given one, and take its folder.

    Args:
        plan: what is to be released.
        settings: of the release.
        files: what `describe_shard` says of each shard; None if the numbers are known to be new.

    Raises:
        InputError: if another version follows, nothing changed, or the version exists.
    """
    version = settings.version or versions.FIRST
    if (before := plan.before) is not None:
        now = plan.header | {"files": files or []}
        change = versions.change(before, now)
        if files is not None and _is_same(before, now):
            raise InputError(
                f"{settings.run}: is released already, as {before['version']} in {settings.output}; nothing changed"
            )
        follows = versions.after(before["version"], change)
        if settings.version not in (None, follows):
            raise InputError(
                f"--version {settings.version}: after {before['version']} comes {follows}, since"
                f" {versions.MEANING[change]}; leave --version out, or choose another --output"
            )
        version = follows
    folder = storage.join(storage.normalise(settings.output), version)
    _check_folder(folder)
    return replace(plan, folder=folder, header={"version": version, **plan.header}, attempt=_claim(folder))


def newest(output: str) -> dict[str, Any] | None:
    """The release.json of the highest finished version in a folder of releases, or None."""
    fs, path = storage.filesystem(output)
    try:
        names = [PurePosixPath(name.rstrip("/")).name for name in fs.ls(path, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{output}: cannot be listed ({storage.explain(error)})") from error
    for version in sorted(filter(versions.is_version, names), key=versions.parse, reverse=True):
        if fs.exists(storage.join(path, version, MARKER)):
            return read_marker(storage.join(output, version))
    return None


def _may_have_the_numbers_of(before: dict[str, Any], plan: Plan) -> bool:
    """Whether everything that the numbers come from, as far as is known, is as it was."""
    shards = {(shard.path, shard.rows) for shard in plan.shards if shard.kind != "failures"}
    return bool(
        before["schema_version"] == plan.header["schema_version"]
        and before["weights"]["sha256"] == plan.header["weights"]["sha256"]
        and before["numbers"] == plan.header["numbers"]
        and shards == {(file["path"], file["rows"]) for file in before["files"] if file["kind"] != "failures"}
    )


def _is_same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a release would be the one before, to the last byte of its pages."""
    again = {"version": before["version"], **now}
    return again | {"pages": _describe(card.pages(again))} == before


def _check_folder(folder: str) -> None:
    """A version's folder is new, or was left behind by an attempt that never finished."""
    fs, path = storage.filesystem(folder)
    try:
        if fs.exists(storage.join(path, MARKER)):
            raise InputError(f"{folder}: this version exists and a release never changes; choose another --version")
        foreign = fs.exists(path) and fs.find(path) and not fs.exists(storage.join(path, ATTEMPT))
    except OSError as error:
        raise InputError(f"{folder}: cannot be opened ({storage.explain(error)})") from error
    if foreign:
        raise InputError(f"{folder}: holds other files, and is no unfinished release; choose another --output")


def _claim(folder: str) -> str:
    """Empty the folder of what an unfinished attempt left, and say whose it is now; returns the attempt's name."""
    fs, path = storage.filesystem(folder)
    attempt = uuid.uuid4().hex
    try:
        for leftover in fs.find(path) if fs.exists(path) else []:
            fs.rm(leftover)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(storage.join(path, ATTEMPT), attempt.encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({storage.explain(error)})") from error
    return attempt


def _check_claim(plan: Plan) -> None:
    fs, path = storage.filesystem(plan.folder)
    try:
        owner = fs.cat_file(storage.join(path, ATTEMPT)).decode()
    except FileNotFoundError:
        owner = None
    if owner != plan.attempt or fs.exists(storage.join(path, MARKER)):
        raise InputError(f"{plan.folder}: another release of this version is under way; this one stops")


def calls(run: Run, plan: Plan) -> list[tuple[Run, Plan, Shard]]:
    """What `describe_shard` and `write_shard` take, for each shard; the others are long lists of files."""
    return [(run, replace(plan, shards=()), shard) for shard in plan.shards]


def write_shard(run: Run, plan: Plan, shard: Shard) -> dict[str, Any]:
    """Write one shard; returns its path, config, rows, bytes and sha256.

    Raises:
        InputError: if the run does not hold the rows that were planned.
    """
    facts, content = _encode(run, plan, shard)
    _check_claim(plan)
    fs, path = storage.filesystem(storage.join(plan.folder, shard.path))
    fs.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    fs.pipe_file(path, content)
    return facts


def describe_shard(run: Run, plan: Plan, shard: Shard) -> dict[str, Any]:
    """What `write_shard` would return, without writing."""
    return _encode(run, plan, shard)[0]


def _encode(run: Run, plan: Plan, shard: Shard) -> tuple[dict[str, Any], bytes]:
    """What release.json says of a shard, and its bytes."""
    wanted = pc.field("status") == (record.FAILED if shard.kind == "failures" else record.OK)
    if shard.source is not None:
        wanted &= pc.field("source") == shard.source
    wanted &= ~pc.field("source").isin(pa.array(plan.excluded, pa.string()))
    schema = record.RELEASED[shard.kind]
    dataset = run.dataset(shard.files)

    def rows(columns: list[str], first: str, last: str) -> pa.Table:
        within = (pc.field("record_id") >= first) & (pc.field("record_id") <= last)
        return _read(run, dataset, columns, wanted & within).sort_by("record_id")

    ids = rows(["record_id"], shard.first, shard.last)["record_id"]
    if len(ids) != shard.rows:
        raise InputError(f"{run.url}: {shard.path} needs {shard.rows} records, found {len(ids)}; is it still running?")
    facts: dict[str, Any] = {"path": shard.path, "config": shard.config, "kind": shard.kind, "rows": shard.rows}
    sink = io.BytesIO()
    rows_per_group = min(plan.rows_per_group, MASK_ROWS_PER_GROUP) if shard.kind == "masks" else plan.rows_per_group
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        # Group by group, since masks of a whole shard are more than a GB in memory.
        for start in range(0, len(ids), rows_per_group):
            group = ids.slice(start, rows_per_group)
            table = rows(schema.names, group[0].as_py(), group[-1].as_py())
            writer.write_table(table.cast(schema), row_group_size=rows_per_group)
    if shard.kind == "landmarks":
        # A shard of these is one group.
        facts["outside"] = _outside(table)
        facts["uncertainty"] = _histogram(table["uncertainty"])
    content = sink.getvalue()
    facts["arrow_bytes"] = _arrow_bytes(content)
    return facts | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, content


def _read(run: Run, dataset: pads.Dataset, columns: list[str], rows: pc.Expression | None = None) -> pa.Table:
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


def finish(plan: Plan, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the pages and, once everything else is there and valid, the marker that makes the folder a release."""
    _check_claim(plan)
    fs, path = storage.filesystem(plan.folder)
    content = plan.header | {"files": files}
    pages = card.pages(content)
    for name, page in pages.items():
        fs.pipe_file(storage.join(path, name), page)
    content["pages"] = _describe(pages)
    _check_content(plan.folder, content)
    _check_claim(plan)
    storage.put(storage.join(plan.folder, MARKER), (json.dumps(content, indent=2) + "\n").encode())
    fs.rm(storage.join(path, ATTEMPT))
    return content | {"folder": plan.folder}


def validate(folder: str) -> dict[str, Any]:
    """Check a release as a reader gets it: files, sizes, checksums, schemas, ids, counts and numbers.

    Returns:
        Its release.json.

    Raises:
        InputError: naming the first file that is missing, changed, unknown, or does not hold what it should.
    """
    content = read_marker(folder)
    files = content["files"]
    fs, path = storage.filesystem(folder)
    # The last is the Hub's own, for releases that lie there.
    known = {MARKER, ATTEMPT, ".gitattributes", *names(content)}
    base = path.rstrip("/") + "/"
    for name in sorted(file.removeprefix(base) for file in fs.find(path)):
        if name not in known:
            raise InputError(f"{folder}/{name}: is no file of this release")
    for name, page in content["pages"].items():
        _check_bytes(folder, name, page)
    for file in files:
        _check_bytes(folder, file["path"], file)
    _check_content(folder, content)
    return content


def names(content: Mapping[str, Any]) -> list[str]:
    """Paths of all files of a release, but for its release.json."""
    return [*content["pages"], *(file["path"] for file in content["files"])]


def read_marker(folder: str) -> dict[str, Any]:
    """The release.json of a release.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    fs, path = storage.filesystem(folder)
    try:
        content: dict[str, Any] = json.loads(fs.cat_file(storage.join(path, MARKER)))
        content["files"], content["pages"], content["counts"], content["failures"], content["manifest"]["rows"]
    except (FileNotFoundError, NotADirectoryError) as error:
        if found := [name for name in storage.names_in(folder) if versions.is_version(name)]:
            raise InputError(f"{folder}: holds the versions {', '.join(found)}; name one of them") from error
        raise InputError(f"{folder}: is no release (no {MARKER}), or one that was never finished") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/{MARKER}: is damaged ({storage.explain(error)})") from error
    except Exception as error:
        raise InputError(f"{folder}: cannot be opened ({storage.explain(error)})") from error
    return content


def _describe(pages: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": len(page), "sha256": hashlib.sha256(page).hexdigest()} for name, page in pages.items()}


def _check_bytes(folder: str, name: str, expected: dict[str, Any]) -> None:
    fs, path = storage.filesystem(storage.join(folder, name))
    digest, size = hashlib.sha256(), 0
    try:
        with fs.open(path, "rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError as error:
        raise InputError(f"{folder}/{name}: is missing") from error
    if size != expected["bytes"]:
        raise InputError(f"{folder}/{name}: has {size} bytes, not {expected['bytes']}; it was truncated or edited")
    if digest.hexdigest() != expected["sha256"]:
        raise InputError(f"{folder}/{name}: its sha256 is not that of {MARKER}; it was edited")


def _check_content(folder: str, content: dict[str, Any]) -> None:
    """Ids strictly increase within a config, so each is there once; masks have the ids of their landmarks."""
    fs, path = storage.arrow_filesystem(folder)
    ids: dict[str, Any] = {}
    rows: dict[str, int] = {}
    for config in dict.fromkeys(file["config"] for file in content["files"]):
        last, digest, count = "", hashlib.sha256(), 0
        for file in (file for file in content["files"] if file["config"] == config):
            where = f"{folder}/{file['path']}"
            before = count
            for group in read_rows(fs, storage.join(path, file["path"]), where, file["kind"]):
                names = group["record_id"].to_pylist()
                if [*sorted({last, *names})] != [last, *names]:
                    raise InputError(f"{where}: record ids are not sorted, or occur twice")
                last = names[-1]
                digest.update("\n".join([*names, ""]).encode())
                count += len(names)
                if file["kind"] == "landmarks":
                    _check_numbers(where, group)
            if count - before != file["rows"]:
                raise InputError(f"{where}: holds {count - before} rows, not {file['rows']}")
        ids[config], rows[config] = digest.hexdigest(), count
    for source, counts in content["counts"].items():
        for config in (source, f"{source}-masks"):
            if rows.get(config, 0) != counts["ok"]:
                raise InputError(f"{folder}: config {config} holds {rows.get(config, 0)} rows, not {counts['ok']}")
        if ids.get(source) != ids.get(f"{source}-masks"):
            raise InputError(f"{folder}: masks of {source} are not of the same records as its landmarks")
    failed = sum(counts["failed"] for counts in content["counts"].values())
    if rows.get("failures", 0) != failed or failed != sum(content["failures"].values()):
        raise InputError(f"{folder}: lists {rows.get('failures', 0)} failures, not {failed}")
    released = sum(rows.get(source, 0) for source in content["counts"]) + failed
    if released + content["excluded_rows"] != content["manifest"]["rows"]:
        raise InputError(f"{folder}: records and failures are not as many as the manifest's rows")


def read_rows(fs: Any, path: str, where: str, kind: str) -> Iterator[pa.Table]:
    """Rows of one shard of that kind, `READ_ROWS` at a time; `where` names the file in errors.

    Raises:
        InputError: if the file is missing, damaged, or has other columns.
    """
    try:
        with fs.open_input_file(path) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            if not file.schema_arrow.equals(record.RELEASED[kind]):
                raise InputError(f"{where}: its columns are not those of schema {record.SCHEMA_VERSION}")
            for batch in file.iter_batches(batch_size=READ_ROWS):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{where}: cannot be read ({storage.explain(error)})") from error


def _check_numbers(where: str, group: pa.Table) -> None:
    for name in ("landmarks_mean", "landmarks_std", "latent_mean", "latent_std"):
        values = group[name].combine_chunks()
        while pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
            if values.null_count:
                raise InputError(f"{where}: {name} has nulls")
            values = values.flatten()
        numbers = values.to_numpy(zero_copy_only=False)
        if not np.isfinite(numbers).all():
            raise InputError(f"{where}: {name} holds values that are not finite")
        if name.endswith("_std") and numbers.min() < 0:
            raise InputError(f"{where}: {name} holds negative values")


def _check_ids(run: Run, frozen: dict[str, Any], table: pa.Table) -> None:
    """In = done + quarantined: the ids of the manifest are those of the records, each once."""
    uri = frozen["manifest"]["uri"]
    if manifest.sha256(uri) != frozen["manifest"]["sha256"]:
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
    missing = len(expected) - pc.sum(pc.is_in(expected, value_set=actual)).as_py()
    if missing:
        raise InputError(
            f"{run.url}: the run is incomplete, {missing} of {len(expected)} images have no record yet;"
            " run the same `generate` command again"
        )
    if not actual.equals(expected):
        raise InputError(f"{run.url}: holds records that its manifest does not list")


def _cut(kind: str, config: str, source: str | None, rows: pa.Table, rows_per_shard: int) -> list[Shard]:
    total = -(-len(rows) // rows_per_shard)
    shards = []
    for index in range(total):
        part = rows.slice(index * rows_per_shard, rows_per_shard)
        ids, files = part["record_id"], tuple(sorted(pc.unique(part[_FILE]).to_pylist()))
        folder = source if source is not None else "failures"
        name = f"{folder}/{kind}-{index:05d}-of-{total:05d}.parquet"
        shards.append(Shard(name, kind, config, source, ids[0].as_py(), ids[-1].as_py(), len(part), files))
    return shards


def _outside(table: pa.Table) -> int:
    """Records with a mean landmark outside their image."""
    sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    return sum(
        bool(mean is not None and ((mean < 0) | (mean > np.array(size))).any())
        for mean, size in zip(to_landmarks(table["landmarks_mean"]), sizes, strict=True)
    )


def _histogram(uncertainty: pa.ChunkedArray) -> dict[str, int]:
    """Records by bin: bin k holds uncertainties from `summary.BIN_EDGES`[k] on, in pixels of the 1024 frame."""
    counts = distribution(np.sort(uncertainty.to_numpy()))["histogram"]
    return {str(index): count for index, count in enumerate(counts) if count}


def _arrow_bytes(parquet: bytes) -> int:
    """Size in memory of a Parquet file's rows, as `datasets` counts it: by row group, in its own types."""
    # It takes seconds to import, and only a release needs it.
    from datasets import Features
    from datasets.table import table_cast

    file = pq.ParquetFile(io.BytesIO(parquet))
    schema = Features.from_arrow_schema(file.schema_arrow).arrow_schema
    groups = (file.read_row_group(index) for index in range(file.num_row_groups))
    return sum(int(table_cast(group, schema).nbytes) for group in groups)


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted((row["values"].as_py(), row["counts"].as_py()) for row in pc.value_counts(column)))
