"""URLs to filesystems: fsspec for single objects, pyarrow for Parquet."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow.fs as pafs
from fsspec.core import split_protocol

from chexmask_u.storage.faults import explained, is_missing
from chexmask_u.storage.urls import chain, check_scheme, is_local, normalise, schemes

# Attempts of a request that finds S3 out of reach or busy; with the clients' pauses about a minute. Their own defaults
# are five to nine seconds, after which a short outage would have failed images and ended runs.
S3_ATTEMPTS = 10

# Schemes of stores without folders, whose clients would make a bucket of a mistyped name.
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")

# Schemes whose pyarrow filesystem is native; every other one goes through fsspec.
_NATIVE_SCHEMES = ("s3", "gs", "gcs")

# How long a web server may be silent; S3's client waits as long.
HTTP_SECONDS = 15.0


def filesystem(url: str, *, patient: bool = True) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URL, without cached listings, and the path on it.

    Args:
        url: of an object or folder.
        patient: whether requests wait for a storage that is out of reach; else they give up as the client does.

    Raises:
        InputError: if its scheme is unknown, or it lies in an archive or on a server that cannot be opened.
    """
    check_scheme(url)
    # An archive is opened by that, and some servers are asked.
    with explained(url, "opened", missing="no such archive"):
        fs, path = resolve(url, patient=patient)
    fs.invalidate_cache()
    return fs, path


def resolve(url: str, *, patient: bool = True) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URL, as it may be cached, and the path on it; a local path is taken literally."""
    if is_local(url):
        # fsspec itself would cut a path at "::", its mark of a chained URL.
        return fsspec.filesystem("file"), normalise(url)
    if len(chain(url)) > 1:
        # Each member finds its options by its scheme.
        options = {scheme: told for scheme in schemes(url) if (told := _options(scheme, patient))}
        fs, path = fsspec.url_to_fs(normalise(url), **options)
        return fs, path
    scheme, _ = split_protocol(url)
    kind = fsspec.get_filesystem_class(scheme)
    fs = fsspec.filesystem(scheme, **{**kind._get_kwargs_from_urls(url), **_options(scheme, patient)})
    return fs, fs._strip_protocol(url)


def _options(scheme: str | None, patient: bool) -> dict[str, Any]:
    """What a scheme's client is told beyond its defaults."""
    if scheme == "s3" and patient:
        return {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": s3_attempts()}}}
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    # Its own limit, of five minutes for the whole object, says nothing of a server that is silent.
    return {"timeout": ClientTimeout(total=None, sock_connect=HTTP_SECONDS, sock_read=HTTP_SECONDS)}


def arrow_filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URL and the path on it."""
    if is_local(url):
        return pafs.LocalFileSystem(), normalise(url)
    protocol, key = split_protocol(url)
    if protocol in _NATIVE_SCHEMES:
        # Keys are taken literally, as fsspec does; pyarrow would decode them, and cut them at "#".
        fs, path = pafs.FileSystem.from_uri(f"{protocol}://{quote(key)}")
        return PatientS3(**_arguments(fs)) if isinstance(fs, pafs.S3FileSystem) else fs, path
    fsspec_fs, path = filesystem(url)
    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_fs)), path


class PatientS3(pafs.S3FileSystem):  # type: ignore[misc]
    """S3 whose requests are tried `s3_attempts()` times, on workers too: pyarrow's own arrive there with three."""

    def __init__(self, **arguments: Any) -> None:
        strategy = pafs.AwsStandardS3RetryStrategy(max_attempts=s3_attempts())
        # Small files then take one request, and a writer that is killed leaves no upload that nobody sees and all pay.
        super().__init__(**{**arguments, "allow_delayed_open": True, "retry_strategy": strategy})

    def __reduce__(self) -> tuple[Any, ...]:
        return _patient_s3, (_arguments(self),)


def _patient_s3(arguments: dict[str, Any]) -> PatientS3:
    return PatientS3(**arguments)


def _arguments(fs: pafs.S3FileSystem) -> dict[str, Any]:
    """What makes the same filesystem again."""
    arguments: dict[str, Any] = pafs.S3FileSystem.__reduce__(fs)[1][0]
    return arguments


def s3_attempts() -> int:
    """How often a request to S3 is tried; AWS's own variable says otherwise."""
    return int(os.environ.get("AWS_MAX_ATTEMPTS", S3_ATTEMPTS))


def put(url: str, content: bytes) -> None:
    """Write one object whole: whatever ends this process, or fills the disk, leaves the old one or the new one."""
    fs, path = filesystem(url)
    if split_protocol(url)[0] not in _BUCKET_SCHEMES:
        fs.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    if not is_local(url):
        fs.pipe_file(path, content)
        return
    target = Path(path)
    draft = target.with_name(f".{target.name}.partial")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def names_in(url: str) -> list[str]:
    """Names in a folder, sorted; none where there is no folder."""
    fs, path = filesystem(url)
    try:
        found = fs.ls(path, detail=False)
    except Exception as error:
        if is_missing(error):
            return []
        raise
    # A file, or an object store's own mark of a folder, is listed as being in itself.
    return sorted({PurePosixPath(one).name for one in found if one.rstrip("/") != path.rstrip("/")})
