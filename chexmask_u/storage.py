"""URLs to filesystems: fsspec for single objects, pyarrow for Parquet."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import fsspec
import pyarrow.fs as pafs
from fsspec.core import split_protocol

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")

# Schemes whose pyarrow filesystem is native; every other one goes through fsspec.
_NATIVE_SCHEMES = ("s3", "gs", "gcs")


class StorageError(ValueError):
    """A URL that cannot be used; the message is one line that names the remedy."""


def is_local(url: str) -> bool:
    """Whether a URL or path names the local file system."""
    return split_protocol(url)[0] in (None, "file", "local")


def normalise(url: str) -> str:
    """A URL as given, or an absolute local path, so that workers in other folders mean the same place."""
    if is_local(url):
        path = split_protocol(url)[1]
        # Not Path.expanduser, which raises where a name merely begins with "~".
        return os.path.normpath(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111
    check_scheme(url)
    return url.rstrip("/")


def check_scheme(url: str) -> None:
    """Raise StorageError if nothing here can open the scheme of `url`."""
    protocol, _ = split_protocol(url)
    if protocol is None:
        return
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise StorageError(
            f"{url}: unknown scheme {protocol}://; use a local path, s3:// or another fsspec URL"
        ) from error
    except ImportError as error:
        raise StorageError(f"{url}: {protocol}:// needs a package that is not installed ({error})") from error


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URL, without cached listings, and the path on it."""
    check_scheme(url)
    fs, path = resolve(url)
    fs.invalidate_cache()
    return fs, path


def resolve(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URL, as it may be cached, and the path on it; a local path is taken literally."""
    if is_local(url):
        # fsspec itself would cut a path at "::", its mark of a chained URL.
        return fsspec.filesystem("file"), normalise(url)
    fs, path = fsspec.url_to_fs(url)
    return fs, path


def arrow_filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URL and the path on it."""
    if is_local(url):
        return pafs.LocalFileSystem(), normalise(url)
    protocol, key = split_protocol(url)
    if protocol in _NATIVE_SCHEMES:
        # Keys are taken literally, as fsspec does; pyarrow would decode them, and cut them at "#".
        fs, path = pafs.FileSystem.from_uri(f"{protocol}://{quote(key)}")
        return fs, path
    fsspec_fs, path = filesystem(url)
    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_fs)), path


def join(url: str, *parts: str) -> str:
    """`url` with path components added."""
    return "/".join([url.rstrip("/"), *parts])


def explain(error: BaseException) -> str:
    """One line of an exception, with its type where the text alone would not tell."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text and text[0] else type(error).__name__


def is_missing(error: BaseException) -> bool:
    """Whether an exception says that the object is not there."""
    return isinstance(error, FileNotFoundError | NotADirectoryError)


def is_forbidden(error: BaseException) -> bool:
    """Whether an exception says that access was refused, or that no credentials were found."""
    # botocore's own errors, told by name since other storages need no botocore.
    return isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS


def local_folder(url: str) -> Path | None:
    """The local folder that a URL names, or None if it is on another storage."""
    return Path(normalise(url)) if is_local(url) else None
