"""URLs to filesystems: fsspec for single objects, pyarrow for Parquet."""

from __future__ import annotations

import errno
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import pyarrow.fs as pafs
from fsspec.core import split_protocol
from fsspec.implementations.chained import ChainedFileSystem

from chexmask_u.errors import InputError, StoppedError

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")

_FORBIDDEN_STATUS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

# What AWS's own clients try again after.
_TRANSIENT_STATUS = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

# aiohttp's and botocore's, by name since other storages need neither.
_LOST_CONNECTION = {"ClientConnectionError", "ClientPayloadError", "ConnectionError", "HTTPClientError"}

# How buckets and shares that are mounted as folders say it.
_TRANSIENT_ERRNO = (errno.EIO, errno.ESTALE)

# Attempts of a request that finds S3 out of reach or busy; with the clients' pauses about a minute. Their own defaults
# are five to nine seconds, after which a short outage would have failed images and ended runs.
S3_ATTEMPTS = 10

# Schemes of stores without folders, whose clients would make a bucket of a mistyped name.
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")

# Schemes whose pyarrow filesystem is native; every other one goes through fsspec.
_NATIVE_SCHEMES = ("s3", "gs", "gcs")

_LOCAL_SCHEMES = ("file", "local")

# In front of the path of a file: URI, where the machine itself may stand.
_LOCAL_HOST = re.compile("^localhost/", re.IGNORECASE)

# A path in which everything is encoded that RFC 3986 wants encoded.
_URI_PATH = re.compile(r"([\w.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*", re.ASCII)

# Up to the last "@" before a slash: a password may hold another.
_USER_INFO = re.compile(r"(://)[^/\s\"<>]*@")

# Parameters of presigned URLs (AWS, Google, Azure) and of those that web servers make up.
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;\s]*(?:sig|token|secret|passw|pwd|credential|key|auth|access|jwt)[^=&;\s]*=)[^&\s\"'<>)]*[^&\s\"'<>):,]",
    re.IGNORECASE,
)

# How long a web server may be silent; S3's client waits as long.
HTTP_SECONDS = 15.0


def is_local(url: str) -> bool:
    """Whether a URL or path names the local file system."""
    return len(_chain(url)) == 1 and split_protocol(url)[0] in (None, *_LOCAL_SCHEMES)


def is_relative(url: str) -> bool:
    """Whether a URL or path means another place in another folder, as it or what follows its "::" is relative."""
    last = _chain(url)[-1]
    return is_local(last) and not _without_host(last).startswith("/")


def normalise(url: str) -> str:
    """A URL as given, or an absolute local path, so that workers in other folders mean the same place.

    A path is taken literally. Of a `file:` URI (RFC 8089) the host `localhost` goes, and each name in it is taken as it
    stands where there is such a file or folder, else with its percent signs decoded where there is that. Of what is not
    there yet they are decoded unless the URI holds what an encoded one cannot, such as a space. So `file:///100%.png`
    and `file:///two%20words.png` name what their writers meant. Of a chained URL, what follows the last "::" is treated
    so.
    """
    *outer, last = _chain(url)
    if outer:
        return "::".join([*outer, normalise(last)])
    if is_local(url):
        # Not Path.expanduser, which raises where a name merely begins with "~".
        path = os.path.expanduser(_without_host(url))  # noqa: PTH111
        if _is_file_uri(url):
            path = _decoded(path)
        # Two slashes at the start stay where they are, by POSIX, and Ray then takes the path for a relative one.
        return re.sub("^//+", "/", os.path.normpath(Path(path).absolute()))
    check_scheme(url)
    return url.rstrip("/")


def _chain(url: str) -> list[str]:
    """The members of a chained URL, such as zip://1.png::s3://bucket/a.zip, outermost first; any other URL alone.

    Only behind a scheme that lies over another does "::" chain; elsewhere it is a part of the name, where fsspec itself
    would cut it.
    """
    first, mark, rest = url.partition("::")
    scheme, _, path = first.partition("://")
    if not mark or not (_is_archive(scheme) or _is_cache(scheme)):
        return [url]
    # Without a path, a cache has that of what follows, and an archive its root.
    return [first if path else scheme if _is_cache(scheme) else f"{scheme}://", *_chain(rest)]


@lru_cache
def _is_cache(scheme: str) -> bool:
    """Whether what the scheme names lies over another filesystem and has its paths."""
    kind = _kind(scheme)
    return kind is not None and issubclass(kind, ChainedFileSystem)


@lru_cache
def _is_archive(scheme: str) -> bool:
    """Whether what the scheme names lies in one object of another filesystem."""
    kind = _kind(scheme)
    return kind is not None and "fo" in inspect.signature(kind.__init__).parameters


def _kind(scheme: str) -> type[fsspec.AbstractFileSystem] | None:
    try:
        kind: type[fsspec.AbstractFileSystem] = fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError):
        return None
    return kind


def _is_file_uri(url: str) -> bool:
    return split_protocol(url)[0] in _LOCAL_SCHEMES or url.startswith("file:/")


def _without_host(url: str) -> str:
    """The path of a local URL or path, which may be relative; percent signs as they are."""
    if not _is_file_uri(url):
        return url
    return _LOCAL_HOST.sub("/", url.partition(":")[2].removeprefix("//"))


def _decoded(path: str) -> str:
    """The path of a file: URI with its percent signs decoded, name by name, where that is what was meant."""
    encoded = _URI_PATH.fullmatch(path) is not None
    found = ""
    for name in re.split("(/)", path):
        decoded = unquote(name, errors="surrogateescape")
        there = os.path.lexists(found + name)
        found += decoded if not there and (encoded or os.path.lexists(found + decoded)) else name
    return found


def schemes(url: str) -> list[str]:
    """The scheme of each member of a URL, of which only a chained one has several; "" for a path."""
    return [one if _is_cache(one) else split_protocol(one)[0] or "" for one in _chain(url)]


def check_scheme(url: str) -> None:
    """Raise InputError if nothing here can open the scheme of `url`, or one of those that it chains."""
    for scheme in filter(None, schemes(url)):
        try:
            fsspec.get_filesystem_class(scheme)
        except ValueError as error:
            raise InputError(
                f"{url}: unknown scheme {scheme}://; use a local path, s3:// or another fsspec URL"
            ) from error
        except ImportError as error:
            raise InputError(f"{url}: {scheme}:// needs a package that is not installed ({error})") from error


def filesystem(url: str, *, patient: bool = True) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URL, without cached listings, and the path on it.

    Args:
        url: of an object or folder.
        patient: whether requests wait for a storage that is out of reach; else they give up as the client does.
    """
    check_scheme(url)
    fs, path = resolve(url, patient=patient)
    fs.invalidate_cache()
    return fs, path


def resolve(url: str, *, patient: bool = True) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a URL, as it may be cached, and the path on it; a local path is taken literally."""
    if is_local(url):
        # fsspec itself would cut a path at "::", its mark of a chained URL.
        return fsspec.filesystem("file"), normalise(url)
    if len(_chain(url)) > 1:
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


def join(url: str, *parts: str) -> str:
    """`url` with path components added; of a chained URL, to the path within the archive or behind the cache."""
    chain = _chain(url)
    # A cache stands as a bare word before the URL that it caches.
    place = next((index for index, one in enumerate(chain) if "://" in one), len(chain) - 1)
    start = chain[place]
    chain[place] = start + "/".join(parts) if start.endswith("://") else "/".join([start.rstrip("/"), *parts])
    return "::".join(chain)


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


@contextmanager
def explained(url: str, done: str = "read", *, missing: str | None = None) -> Iterator[None]:
    """Turn whatever a storage or a parser raises into one line: "URL: cannot be read (why)".

    Args:
        url: of the file or folder that is at fault.
        done: what cannot be done with it: "read", "written", "opened", "listed".
        missing: what to say instead where nothing is there; None where that is a fault like any other.

    Raises:
        InputError: as said; one that is raised within passes, and so does a StoppedError.
    """
    try:
        yield
    except (InputError, StoppedError):
        raise
    except Exception as error:
        if missing is not None and is_missing(error):
            raise InputError(f"{url}: {missing}") from error
        raise InputError(f"{url}: cannot be {done} ({explain(error)})") from error


def explain(error: BaseException) -> str:
    """One line of an exception, with its type where the text alone would not tell, and without secrets."""
    text = redact(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text and text[0] else type(error).__name__


def redact(text: str) -> str:
    """A text without what its URLs may hold of credentials: user and password, signatures, tokens and keys."""
    return _SECRET_PARAMETER.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


def is_missing(error: BaseException) -> bool:
    """Whether an exception says that the object is not there."""
    return isinstance(error, FileNotFoundError | NotADirectoryError)


def is_forbidden(error: BaseException) -> bool:
    """Whether an exception says that access was refused, or that no credentials were found."""
    # botocore's own errors, told by name since other storages need no botocore.
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in _NO_CREDENTIALS
        or _http_status(error) in _FORBIDDEN_STATUS
    )


def is_out_of_range(error: BaseException) -> bool:
    """Whether an exception says that the object ends before the range that was asked for begins."""
    return _http_status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def is_transient(error: BaseException) -> bool:
    """Whether an exception is one after which trying again may help: a lost connection, a busy server, a timeout."""
    return (
        isinstance(error, TimeoutError | ConnectionError)
        or not _LOST_CONNECTION.isdisjoint(kind.__name__ for kind in type(error).__mro__)
        or _http_status(error) in _TRANSIENT_STATUS
        or (isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO)
    )


def _http_status(error: BaseException) -> int | None:
    """Status of the answer that an exception stands for, if there was one: aiohttp's, or botocore's below s3fs's."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(one, "status", None)
        if isinstance(status, int):
            return status
    return None


def local_folder(url: str) -> Path | None:
    """The local folder that a URL names, or None if it is on another storage."""
    return Path(normalise(url)) if is_local(url) else None
