"""Whether a release holds what it promises: files, checksums, schemas, ids, counts and numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chexmask_u import record, storage
from chexmask_u.errors import InputError
from chexmask_u.releases.release import ATTEMPT, MARKER, Release, config
from chexmask_u.result import Result
from chexmask_u.settings import ValidateSettings

# A run that was begun before there were such columns has none in its earlier parts.
_MAY_BE_NULL = (*record.NODE_COLUMNS, *record.CALIBRATED.names)

_SPREADS = ("_std", "_across", "_along", "_radius")

_REMEDY = "make it again from its run, with another --output"


def validate(folder: str) -> Release:
    """Check a release as a reader gets it: files, sizes, checksums, schemas, ids, counts and numbers.

    Raises:
        InputError: naming the first file that is missing, changed, unknown, or does not hold what it should.
    """
    release = Release.open(folder)
    # The last is the Hub's own, for releases that lie there.
    known = {MARKER, ATTEMPT, ".gitattributes", *release.paths}
    fs, path = storage.filesystem(folder)
    base = path.rstrip("/") + "/"
    with storage.explained(folder, "listed"):
        found = sorted(file.removeprefix(base) for file in fs.find(path))
    for name in found:
        if name not in known:
            raise InputError(f"{release.path(name)}: is no file of this release; move it away")
    release.check_bytes()
    check_content(release)
    return release


def check_content(release: Release) -> None:
    """Check rows and numbers, whatever the checksums say.

    Ids strictly increase within a config, so each is there once; masks have the ids of their landmarks.

    Raises:
        InputError: naming the first file, or config, that does not hold what it should.
    """
    ids: dict[str, str] = {}
    rows: dict[str, int] = {}
    for name, files in release.configs.items():
        last, digest, count = "", hashlib.sha256(), 0
        for file in files:
            where = release.path(file.path)
            before = count
            for group in release.rows_of(file):
                names = group["record_id"].to_pylist()
                if [*sorted({last, *names})] != [last, *names]:
                    raise InputError(f"{where}: record ids are not sorted, or occur twice; {_REMEDY}")
                last = names[-1]
                digest.update("\n".join([*names, ""]).encode())
                count += len(names)
                if file.kind == "landmarks":
                    _check_numbers(where, group)
                    _check_together(where, group)
            if count - before != file.rows:
                raise InputError(f"{where}: holds {count - before} rows, not {file.rows}; {_REMEDY}")
        ids[name], rows[name] = digest.hexdigest(), count
    for source, counts in release.counts.items():
        landmarks, masks = config(source, "landmarks"), config(source, "masks")
        for name in (landmarks, masks):
            if rows.get(name, 0) != counts["ok"]:
                raise InputError(
                    f"{release.url}: config {name} holds {rows.get(name, 0)} rows, not {counts['ok']}; {_REMEDY}"
                )
        if ids.get(landmarks) != ids.get(masks):
            raise InputError(
                f"{release.url}: masks of {source} are not of the same records as its landmarks; {_REMEDY}"
            )
    failed = sum(counts["failed"] for counts in release.counts.values())
    listed = rows.get(config(None, "failures"), 0)
    if listed != failed or failed != sum(release.content["failures"].values()):
        raise InputError(f"{release.url}: lists {listed} failures, not {failed}; {_REMEDY}")
    if release.records + failed + release.content["excluded_rows"] != release.manifest_rows:
        raise InputError(f"{release.url}: records and failures are not as many as the manifest's rows; {_REMEDY}")


def _check_numbers(where: str, group: pa.Table) -> None:
    """Check that the numbers of some rows of landmarks are there, finite, and no spread negative."""
    for name in ("landmarks_mean", "landmarks_std", "latent_mean", "latent_std", *_MAY_BE_NULL):
        if name in _MAY_BE_NULL and name not in group.column_names:
            continue
        values = group[name].combine_chunks()
        if name in _MAY_BE_NULL:
            values = values.drop_null()
        while pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
            if values.null_count:
                raise InputError(f"{where}: {name} has nulls; {_REMEDY}")
            values = values.flatten()
        numbers = values.to_numpy(zero_copy_only=False)
        if not np.isfinite(numbers).all():
            raise InputError(f"{where}: {name} holds values that are not finite; {_REMEDY}")
        if name.endswith(_SPREADS) and len(numbers) and numbers.min() < 0:
            raise InputError(f"{where}: {name} holds negative values; {_REMEDY}")


def _check_together(where: str, group: pa.Table) -> None:
    """Check that a row that has a column of one schema has those of it and of the schemas before.

    Only rows of before a column was there may lack it.
    """
    names = [name for name in record.SINCE if name in group.column_names]
    for later in names:
        there = record.released("landmarks", record.SINCE[later]).names
        for name in filter(there.__contains__, names):
            lacking = pc.and_(group[later].is_valid(), group[name].is_null())
            if pc.any(lacking).as_py():
                first = group["record_id"].filter(lacking)[0]
                raise InputError(
                    f"{where}: {name} of {first} is null, and its {later} is not: a column of schema"
                    f" {record.SINCE[name]} may be null only in records of runs that were begun before; {_REMEDY}"
                )


def verb(settings: ValidateSettings) -> Result:
    """`chexmask-u validate`."""
    release = validate(storage.normalise(settings.release))
    text = f"{settings.release}: valid, {release.records:,} records in {len(release.files)} files"
    return Result(release.content, text)
