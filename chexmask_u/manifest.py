"""Manifests: one row per source image, listed from a folder or read from a Parquet file and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexmask_u import record, storage
from chexmask_u.settings import ManifestFolderSettings

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

_SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class ManifestError(ValueError):
    """A manifest that cannot be used; the message is one line that names the file or field and the remedy."""


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
        ManifestError: if the folder cannot be listed or holds no image, or the source's name is not one.
        StorageError: if the URL's scheme is unknown.
    """
    check_source_name(settings.source)
    root = storage.normalise(settings.uri)
    files = files_below(root)
    images = sorted(filter(is_image, files))
    if not images:
        raise ManifestError(f"{settings.uri}: holds no {', '.join(IMAGE_SUFFIXES)} file")
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
        raise ManifestError(f"{settings.uri}: the file name {error.object!a} is not UTF-8; rename the file") from error
    output = storage.normalise(settings.output)
    write([rows], output)
    return Listing(output, len(images), len(files) - len(images))


def files_below(url: str) -> list[str]:
    """Paths, below it, of all files in a folder or under a URL prefix.

    Raises:
        ManifestError: if there is no such folder, or it cannot be listed.
    """
    fs, path = storage.filesystem(url)
    try:
        files = fs.find(path)
        if not files and not fs.exists(path):
            raise FileNotFoundError
    except Exception as error:
        if storage.is_missing(error):
            raise ManifestError(f"{url}: no such folder") from error
        raise ManifestError(f"{url}: cannot be listed ({storage.explain(error)})") from error
    if files == [path]:
        raise ManifestError(f"{url}: is a file; give the folder that holds the images")
    base = path.rstrip("/") + "/"
    return [file.removeprefix(base) for file in files]


def check_columns(uri: str) -> None:
    """Check, from its footer alone, that a manifest is there and has the columns it needs.

    Raises:
        ManifestError, StorageError
    """
    storage.check_scheme(uri)
    try:
        fs, path = storage.arrow_filesystem(uri)
        with fs.open_input_file(path) as file:
            schema = pq.read_schema(file)
    except Exception as error:
        raise ManifestError(_unreadable(uri, error)) from error
    for name in record.REQUIRED_MANIFEST_COLUMNS:
        if name not in schema.names:
            raise ManifestError(
                f"{uri}: has no column {name!r}; a manifest needs {', '.join(record.REQUIRED_MANIFEST_COLUMNS)}"
                " (`chexmask-u manifest folder` writes one)"
            )
        if not (pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type)):
            raise ManifestError(f"{uri}: column {name!r} must be string, not {schema.field(name).type}")
    for name in set(record.MANIFEST.names) & set(schema.names) - set(record.REQUIRED_MANIFEST_COLUMNS):
        type_ = schema.field(name).type
        if not (pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_null(type_)):
            raise ManifestError(f"{uri}: column {name!r} must be a number, not {type_}")


def inspect(uri: str) -> ManifestFacts:
    """Read a manifest's ids once and check them; memory grows with the ids, so a worker does it and not the driver.

    Raises:
        ManifestError: on duplicate or missing ids, an empty manifest, or URIs whose scheme nothing can open.
    """
    fs, path = storage.arrow_filesystem(uri)
    try:
        with fs.open_input_stream(path) as stream:
            digest = hashlib.sha256()
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
        table = pq.read_table(path, columns=list(record.REQUIRED_MANIFEST_COLUMNS), filesystem=fs)
    except Exception as error:
        raise ManifestError(_unreadable(uri, error)) from error
    if not table.num_rows:
        raise ManifestError(f"{uri}: holds no rows")
    for name in record.REQUIRED_MANIFEST_COLUMNS:
        if empty := table.num_rows - (pc.sum(pc.not_equal(table[name], "")).as_py() or 0):
            raise ManifestError(f"{uri}: {empty} rows have no {name}; every row needs one")
    relative = table.filter(pc.invert(pc.match_substring_regex(table["uri"], r"^(/|[A-Za-z0-9+.-]+://)")))
    if len(relative):
        raise ManifestError(
            f"{uri}: uri {relative['uri'][0].as_py()!r} is relative, and workers run in other folders;"
            " write absolute paths or URLs"
        )
    counts = pc.value_counts(table["record_id"])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise ManifestError(
            f"{uri}: {len(repeated)} record ids occur more than once, for instance {repeated[0]['values'].as_py()!r};"
            " each image needs one row with an id of its own"
        )
    sources = {row["values"].as_py(): row["counts"].as_py() for row in pc.value_counts(table["source"])}
    for source in sources:
        check_source_name(source)
    for example in _one_per_scheme(table["uri"]):
        storage.check_scheme(example)
        _check_access(uri, example)
    return ManifestFacts(uri, digest.hexdigest(), table.num_rows, dict(sorted(sources.items())))


def write(tables: Iterable[pa.Table], uri: str) -> int:
    """Write manifest rows, one table after the other; returns their number.

    Raises:
        ManifestError: if the file cannot be written.
    """
    if not uri.endswith(".parquet"):
        raise ManifestError(f"{uri}: a manifest is a Parquet file; let --output end in .parquet")
    fs, path = storage.arrow_filesystem(uri)
    rows = 0
    try:
        with pq.ParquetWriter(path, record.MANIFEST, filesystem=fs) as writer:
            for table in tables:
                writer.write_table(table)
                rows += len(table)
    except OSError as error:
        raise ManifestError(f"{uri}: cannot be written ({storage.explain(error)})") from error
    return rows


def complete(batch: pa.Table) -> pa.Table:
    """Manifest rows with every column of `record.MANIFEST`, null where the manifest has none; others are dropped."""
    columns = [
        batch[field.name].cast(field.type) if field.name in batch.column_names else pa.nulls(len(batch), field.type)
        for field in record.MANIFEST
    ]
    return pa.table(columns, schema=record.MANIFEST)


def check_source_name(name: str) -> None:
    """A source names a dataset config and a folder.

    Raises:
        ManifestError: if it is not made of lower case letters, digits and dashes.
    """
    if not _SOURCE_NAME.fullmatch(name) or name == "failures" or name.endswith("-masks"):
        raise ManifestError(
            f"source {name!r} cannot name a dataset config: use lower case letters, digits and dashes,"
            " other than 'failures' and names that end in '-masks'"
        )


def is_image(path: str) -> bool:
    """Whether a path is that of an image, hidden ones aside, as far as its name tells."""
    hidden = any(part.startswith(".") for part in path.split("/"))
    return path.lower().endswith(IMAGE_SUFFIXES) and not hidden


def _one_per_scheme(uris: pa.ChunkedArray) -> Iterator[str]:
    seen = set()
    schemes = pc.struct_field(pc.extract_regex(uris, r"^(?P<scheme>[A-Za-z0-9+.-]+)://"), "scheme")
    for scheme in pc.unique(schemes).to_pylist():
        if scheme is not None and scheme not in seen:
            seen.add(scheme)
            yield uris.filter(pc.equal(schemes, scheme))[0].as_py()


def _check_access(manifest: str, example: str) -> None:
    """Missing credentials would fail every row after hours of nothing; a single missing image fails its row only."""
    if storage.is_local(example):
        return
    try:
        fs, path = storage.filesystem(example)
        fs.exists(path)
    except Exception as error:
        if storage.is_forbidden(error):
            raise ManifestError(
                f"{manifest}: {example} cannot be opened ({storage.explain(error)}); set the credentials of its storage"
            ) from error


def _unreadable(uri: str, error: Exception) -> str:
    if storage.is_missing(error):
        return f"{uri}: no such manifest; `chexmask-u manifest folder URI --output {uri}` writes one"
    if isinstance(error, pa.ArrowInvalid):
        return f"{uri}: is no Parquet file ({storage.explain(error)}); `chexmask-u manifest` writes one"
    return f"{uri}: cannot be read ({storage.explain(error)})"
