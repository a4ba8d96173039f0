"""What makes a manifest usable, found out before a run begins: its columns, ids, sources, URIs and storages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chexmask_u import record, storage
from chexmask_u.errors import InputError
from chexmask_u.manifests import parquet

_SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")

_SCHEME = r"^(?P<scheme>[A-Za-z0-9+.-]+)://"

# What begins with a scheme or a slash, and may be relative all the same: chained URLs, and file://images/1.png.
_ODD = r"::|^(file|local):"


@dataclass(frozen=True)
class ManifestFacts:
    """What a run records of its manifest: where it is, its digest, and how many rows each source has."""

    uri: str
    sha256: str
    rows: int
    sources: dict[str, int]

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def check_columns(uri: str) -> None:
    """Check, from its footer alone, that a manifest is there and has the columns it needs.

    Raises:
        InputError
    """
    storage.check_scheme(uri)
    schema = parquet.schema(uri)
    for name in record.REQUIRED_MANIFEST_COLUMNS:
        if name not in schema.names:
            raise InputError(
                f"{uri}: has no column {name!r}; a manifest needs {', '.join(record.REQUIRED_MANIFEST_COLUMNS)}"
                " (`chexmask-u manifest folder` writes one)"
            )
        if not (pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type)):
            raise InputError(f"{uri}: column {name!r} must be string, not {schema.field(name).type}")
    for name in set(record.MANIFEST.names) & set(schema.names) - set(record.REQUIRED_MANIFEST_COLUMNS):
        type_ = schema.field(name).type
        if not (pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_null(type_)):
            raise InputError(f"{uri}: column {name!r} must be a number, not {type_}")


def inspect(uri: str) -> ManifestFacts:
    """Read a manifest once, some rows at a time, and check it; of each row, 8 bytes are kept.

    Raises:
        InputError: on duplicate or missing ids, an empty manifest, and URIs that are relative or that nothing can open.
    """
    return inspect_all([uri])[0]


def inspect_all(uris: Sequence[str]) -> list[ManifestFacts]:
    """Check manifests whose rows are to be one's: as `inspect`, and that no id is in two of them.

    Raises:
        InputError
    """
    facts, hashes = zip(*map(_inspect, uris), strict=True)
    if repeated := _repeated(uris, np.concatenate(hashes)):
        name, where = next(iter(repeated.items()))
        raise InputError(
            f"{' and '.join(where)}: {len(repeated):,} record ids occur more than once, for instance {name!r};"
            " each image needs one row with an id of its own"
        )
    return list(facts)


def _inspect(uri: str) -> tuple[ManifestFacts, NDArray[np.int64]]:
    """Facts of a manifest that is sound but for ids that occur twice, and the hashes of all ids, int64 [N]."""
    rows = 0
    missing: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    relative: str | None = None
    examples: dict[str, str] = {}
    # Whole ids would be 100 MB of a driver that is to stay small.
    hashes = [np.empty(0, np.int64)]
    digest = parquet.sha256(uri)
    for batch in parquet.batches(uri, record.MANIFEST.names):
        rows += len(batch)
        _check_numbers(uri, batch)
        for name in record.REQUIRED_MANIFEST_COLUMNS:
            missing[name] += len(batch) - (pc.sum(pc.not_equal(batch[name], "")).as_py() or 0)
        relative = relative or _first_relative(batch["uri"])
        examples = _one_per_storage(batch["uri"]) | examples
        sources.update({row["values"].as_py(): row["counts"].as_py() for row in pc.value_counts(batch["source"])})
        hashes.append(_hashes(batch["record_id"]))
    if not rows:
        raise InputError(f"{uri}: holds no rows")
    for name in record.REQUIRED_MANIFEST_COLUMNS:
        if missing[name]:
            raise InputError(f"{uri}: {missing[name]} rows have no {name}; every row needs one")
    if relative:
        raise InputError(
            f"{uri}: uri {relative!r} is relative, and workers run in other folders; write absolute paths or URLs"
        )
    for source in sources:
        check_source_name(source)
    for example in examples.values():
        storage.check_scheme(example)
    return ManifestFacts(uri, digest, rows, dict(sorted(sources.items()))), np.concatenate(hashes)


def check_access(uri: str) -> None:
    """Ask each storage that a manifest names for one of its images, as a worker with the worker's credentials does.

    Missing credentials would fail every row after hours of nothing; a single missing image fails its row only.

    Raises:
        InputError: if a storage refuses.
    """
    examples: dict[str, str] = {}
    for batch in parquet.batches(uri, ["uri"]):
        examples = _one_per_storage(batch["uri"]) | examples
    for example in examples.values():
        _check_access(uri, example)


def check_source_name(name: str) -> None:
    """A source names a dataset config and a folder.

    Raises:
        InputError: if it is not made of lower case letters, digits and dashes.
    """
    if not _SOURCE_NAME.fullmatch(name) or name == "failures" or name.endswith("-masks"):
        raise InputError(
            f"source {name!r} cannot name a dataset config: use lower case letters, digits and dashes,"
            " other than 'failures' and names that end in '-masks'"
        )


def _check_numbers(uri: str, batch: pa.RecordBatch) -> None:
    """Raise InputError on a number that a step would stumble over hours later."""
    for name in set(batch.schema.names) - set(record.REQUIRED_MANIFEST_COLUMNS):
        type_ = record.MANIFEST.field(name).type
        try:
            parquet.finite(batch[name]).cast(type_)
        except pa.ArrowInvalid as error:
            raise InputError(f"{uri}: column {name!r} must hold {type_} values ({storage.explain(error)})") from error


def _hashes(ids: pa.Array) -> NDArray[np.int64]:
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))


def _repeated(uris: Sequence[str], hashes: NDArray[np.int64]) -> dict[str, list[str]]:
    """The record ids that occur more than once, each with the manifests that hold it; `hashes` are those of all."""
    hashes.sort()
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(suspects):
        return {}
    # Different ids may have the same hash.
    counts: Counter[str] = Counter()
    holders: dict[str, list[str]] = {}
    for uri in uris:
        for batch in parquet.batches(uri, ["record_id"]):
            for name in batch["record_id"].filter(np.isin(_hashes(batch["record_id"]), suspects)).to_pylist():
                counts[name] += 1
                holders.setdefault(name, []).append(uri)
    return {name: list(dict.fromkeys(holders[name])) for name, count in counts.items() if count > 1}


def _first_relative(uris: pa.Array) -> str | None:
    """The first URI that means another place to a worker in another folder."""
    plain = pc.and_not(pc.match_substring_regex(uris, f"^/|{_SCHEME}"), pc.match_substring_regex(uris, _ODD))
    return next((uri for uri in uris.filter(pc.invert(plain)).to_pylist() if uri and storage.is_relative(uri)), None)


def _one_per_storage(uris: pa.Array) -> dict[str, str]:
    """The first URI of each scheme; and of chained ones, that of each sequence of schemes."""
    schemes = pc.struct_field(pc.extract_regex(uris, _SCHEME), "scheme")
    found = pc.unique(schemes).drop_null().to_pylist()
    examples: dict[str, str] = {scheme: uris[pc.index(schemes, scheme).as_py()].as_py() for scheme in found}
    for uri in uris.filter(pc.match_substring(uris, "::")).to_pylist():
        examples.setdefault("::".join(storage.schemes(uri)), uri)
    return examples


def _check_access(manifest: str, example: str) -> None:
    if storage.is_local(example):
        return
    try:
        fs, path = storage.filesystem(example)
        fs.exists(path)
    except Exception as error:
        if storage.is_forbidden(error):
            raise InputError(
                f"{manifest}: {example} cannot be opened ({storage.explain(error)}); set the credentials of its storage"
            ) from error
