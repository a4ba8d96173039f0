"""Manifests: one row per source image, listed from a folder or read from a Parquet file and checked."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chexmask_u import record, storage
from chexmask_u.errors import InputError
from chexmask_u.settings import ManifestFolderSettings

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

# Rows of a manifest in memory at once: a few MB.
BATCH_ROWS = 1 << 14

# Read of a column at once, so that an object store is asked for megabytes and not for pages.
_BUFFER_BYTES = 1 << 22

_SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class ManifestFacts:
    """What a run records of its manifest: where it is, its digest, and how many rows each source has."""

    uri: str
    sha256: str
    rows: int
    sources: dict[str, int]

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Listing:
    """What a folder held: the images that became rows, and how many other files were passed over."""

    manifest: str
    rows: int
    passed_over: int


def list_folder(settings: ManifestFolderSettings) -> Listing:
    """Write a manifest of every PNG, JPEG and DICOM file below a folder or URL prefix, sorted by record id.

    An image's id is its path below the folder, and its record id is "source/image id". Hidden files and folders, as
    macOS and notebooks leave them between images, are passed over.

    Raises:
        InputError: if the folder cannot be listed or holds no image, or the source's name is not one.
        InputError: if the URL's scheme is unknown.
    """
    check_source_name(settings.source)
    root = storage.normalise(settings.uri)
    files = files_below(root)
    images = sorted(filter(is_image, files))
    if not images:
        raise InputError(f"{settings.uri}: holds no {', '.join(IMAGE_SUFFIXES)} file")
    try:
        rows = pa.table(
            {
                "record_id": [f"{settings.source}/{image}" for image in images],
                "uri": [storage.join(root, image) for image in images],
                "source": [settings.source] * len(images),
                "image_id": images,
                **{name: pa.nulls(len(images)) for name in ("dice_rca_mean", "dice_rca_max", "height", "width")},
            },
        ).cast(record.MANIFEST)
    except UnicodeEncodeError as error:
        raise InputError(f"{settings.uri}: the file name {error.object!a} is not UTF-8; rename the file") from error
    output = storage.normalise(settings.output)
    write([rows], output)
    return Listing(output, len(images), len(files) - len(images))


def files_below(url: str) -> list[str]:
    """Paths, below it, of all files in a folder or under a URL prefix.

    Raises:
        InputError: if there is no such folder, or it cannot be listed.
    """
    fs, path = storage.filesystem(url)
    try:
        files = fs.find(path)
        if not files and not fs.exists(path):
            raise FileNotFoundError
    except Exception as error:
        if storage.is_missing(error):
            raise InputError(f"{url}: no such folder") from error
        raise InputError(f"{url}: cannot be listed ({storage.explain(error)})") from error
    if files == [path]:
        raise InputError(f"{url}: is a file; give the folder that holds the images")
    base = path.rstrip("/") + "/"
    return [file.removeprefix(base) for file in files]


def check_columns(uri: str) -> None:
    """Check, from its footer alone, that a manifest is there and has the columns it needs.

    Raises:
        InputError
    """
    storage.check_scheme(uri)
    try:
        fs, path = storage.arrow_filesystem(uri)
        with fs.open_input_file(path) as file:
            schema = pq.read_schema(file)
    except Exception as error:
        raise InputError(_unreadable(uri, error)) from error
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
    """Read a manifest once, `BATCH_ROWS` at a time, and check it; of each row, 8 bytes are kept.

    Raises:
        InputError: on duplicate or missing ids, an empty manifest, or relative URIs.
        InputError: on URIs whose scheme nothing can open.
    """
    rows = 0
    missing: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    relative: list[str] = []
    schemes: dict[str, str] = {}
    # Whole ids would be 100 MB of a driver that is to stay small.
    hashes = [np.empty(0, np.int64)]
    digest = sha256(uri)
    for batch in _batches(uri, record.MANIFEST.names):
        rows += len(batch)
        _check_numbers(uri, batch)
        for name in record.REQUIRED_MANIFEST_COLUMNS:
            missing[name] += len(batch) - (pc.sum(pc.not_equal(batch[name], "")).as_py() or 0)
        relative += relative or batch["uri"].filter(_is_relative(batch["uri"])).slice(0, 1).to_pylist()
        schemes = _one_per_scheme(batch["uri"]) | schemes
        sources.update({row["values"].as_py(): row["counts"].as_py() for row in pc.value_counts(batch["source"])})
        hashes.append(_hashes(batch["record_id"]))
    if not rows:
        raise InputError(f"{uri}: holds no rows")
    for name in record.REQUIRED_MANIFEST_COLUMNS:
        if missing[name]:
            raise InputError(f"{uri}: {missing[name]} rows have no {name}; every row needs one")
    if relative:
        raise InputError(
            f"{uri}: uri {relative[0]!r} is relative, and workers run in other folders; write absolute paths or URLs"
        )
    if repeated := _repeated(uri, np.concatenate(hashes)):
        raise InputError(
            f"{uri}: {len(repeated)} record ids occur more than once, for instance {repeated[0]!r};"
            " each image needs one row with an id of its own"
        )
    for source in sources:
        check_source_name(source)
    for example in schemes.values():
        storage.check_scheme(example)
    return ManifestFacts(uri, digest, rows, dict(sorted(sources.items())))


def _check_numbers(uri: str, batch: pa.RecordBatch) -> None:
    """Raise InputError on a number that a step would stumble over hours later."""
    for name in set(batch.schema.names) - set(record.REQUIRED_MANIFEST_COLUMNS):
        type_ = record.MANIFEST.field(name).type
        try:
            _finite(batch[name]).cast(type_)
        except pa.ArrowInvalid as error:
            raise InputError(f"{uri}: column {name!r} must hold {type_} values ({storage.explain(error)})") from error


def _finite(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column with null for what is no number, as other tools write what is missing."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def sha256(uri: str) -> str:
    """Digest of a manifest's bytes.

    Raises:
        InputError: if it cannot be read.
    """
    fs, path = storage.arrow_filesystem(uri)
    digest = hashlib.sha256()
    try:
        with fs.open_input_stream(path) as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    except Exception as error:
        raise InputError(_unreadable(uri, error)) from error
    return digest.hexdigest()


def check_access(uri: str) -> None:
    """Ask each storage that a manifest names for one of its images, as a worker with the worker's credentials does.

    Missing credentials would fail every row after hours of nothing; a single missing image fails its row only.

    Raises:
        InputError: if a storage refuses.
    """
    schemes: dict[str, str] = {}
    for batch in _batches(uri, ["uri"]):
        schemes = _one_per_scheme(batch["uri"]) | schemes
    for example in schemes.values():
        _check_access(uri, example)


def _batches(uri: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Those of the columns that the manifest has, `BATCH_ROWS` at a time."""
    fs, path = storage.arrow_filesystem(uri)
    try:
        # What `pre_buffer` holds, all columns of a row group, is the whole manifest.
        with (
            fs.open_input_file(path) as stream,
            pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
        ):
            yield from file.iter_batches(BATCH_ROWS, columns=list(columns))
    except Exception as error:
        raise InputError(_unreadable(uri, error)) from error


def _hashes(ids: pa.Array) -> NDArray[np.int64]:
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))


def _repeated(uri: str, hashes: NDArray[np.int64]) -> list[str]:
    """The record ids that occur more than once; `hashes` are those of all of them."""
    hashes.sort()
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(suspects):
        return []
    # Different ids may have the same hash.
    counts: Counter[str] = Counter()
    for batch in _batches(uri, ["record_id"]):
        counts.update(batch["record_id"].filter(np.isin(_hashes(batch["record_id"]), suspects)).to_pylist())
    return [name for name, count in counts.items() if count > 1]


def _is_relative(uris: pa.Array) -> pa.Array:
    return pc.invert(pc.match_substring_regex(uris, r"^(/|[A-Za-z0-9+.-]+://)"))


def write(tables: Iterable[pa.Table], uri: str) -> int:
    """Write manifest rows, one table after the other; returns their number.

    Raises:
        InputError: if the file cannot be written.
    """
    if not uri.endswith(".parquet"):
        raise InputError(f"{uri}: a manifest is a Parquet file; let --output end in .parquet")
    fs, path = storage.arrow_filesystem(uri)
    rows = 0
    try:
        with pq.ParquetWriter(path, record.MANIFEST, filesystem=fs) as writer:
            for table in tables:
                writer.write_table(table)
                rows += len(table)
    except OSError as error:
        raise InputError(f"{uri}: cannot be written ({storage.explain(error)})") from error
    return rows


def complete(batch: pa.Table) -> pa.Table:
    """Manifest rows with every column of `record.MANIFEST`, null where the manifest has none; others are dropped."""
    columns = [
        _finite(batch[field.name]).cast(field.type)
        if field.name in batch.column_names
        else pa.nulls(len(batch), field.type)
        for field in record.MANIFEST
    ]
    return pa.table(columns, schema=record.MANIFEST)


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


def is_image(path: str) -> bool:
    """Whether a path is that of an image, hidden ones aside, as far as its name tells."""
    hidden = any(part.startswith(".") for part in path.split("/"))
    return path.lower().endswith(IMAGE_SUFFIXES) and not hidden


def _one_per_scheme(uris: pa.Array) -> dict[str, str]:
    """The first URI of each scheme."""
    schemes = pc.struct_field(pc.extract_regex(uris, r"^(?P<scheme>[A-Za-z0-9+.-]+)://"), "scheme")
    found = pc.unique(schemes).drop_null().to_pylist()
    return {scheme: uris[pc.index(schemes, scheme).as_py()].as_py() for scheme in found}


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


def _unreadable(uri: str, error: Exception) -> str:
    if storage.is_missing(error):
        return f"{uri}: no such manifest; `chexmask-u manifest folder URI --output {uri}` writes one"
    if isinstance(error, pa.ArrowInvalid):
        return f"{uri}: is no Parquet file ({storage.explain(error)}); `chexmask-u manifest` writes one"
    return f"{uri}: cannot be read ({storage.explain(error)})"
