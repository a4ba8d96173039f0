"""URLs and local paths: what they name, and whether anything here can open it."""

from __future__ import annotations

import inspect
import os
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.chained import ChainedFileSystem

from chexmask_u.errors import InputError

_LOCAL_SCHEMES = ("file", "local")

# In front of the path of a file: URI, where the machine itself may stand.
_LOCAL_HOST = re.compile("^localhost/", re.IGNORECASE)

# A path in which everything is encoded that RFC 3986 wants encoded.
_URI_PATH = re.compile(r"([\w.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*", re.ASCII)


def as_text(place: str | os.PathLike[str], name: str) -> str:
    """A path or URL as text, as somebody gave it from Python as the argument `name`.

    Raises:
        TypeError: if it is neither.
    """
    if not isinstance(place, str | os.PathLike):
        raise TypeError(f"{name} must be a path or URL, not a {type(place).__name__}")
    return os.fspath(place)


def is_local(url: str) -> bool:
    """Whether a URL or path names the local file system."""
    return len(chain(url)) == 1 and split_protocol(url)[0] in (None, *_LOCAL_SCHEMES)


def is_relative(url: str) -> bool:
    """Whether a URL or path means another place in another folder, as it or what follows its "::" is relative."""
    last = chain(url)[-1]
    return is_local(last) and not _without_host(last).startswith("/")


def normalise(url: str) -> str:
    """A URL as given, or an absolute local path, so that workers in other folders mean the same place.

    A path is taken literally. Of a `file:` URI (RFC 8089) the host `localhost` goes, and each name in it is taken as it
    stands where there is such a file or folder, else with its percent signs decoded where there is that. Of what is not
    there yet they are decoded unless the URI holds what an encoded one cannot, such as a space. So `file:///100%.png`
    and `file:///two%20words.png` name what their writers meant. Of a chained URL, what follows the last "::" is treated
    so.
    """
    *outer, last = chain(url)
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


def chain(url: str) -> list[str]:
    """The members of a chained URL, such as zip://1.png::s3://bucket/a.zip, outermost first; any other URL alone.

    Only behind a scheme that lies over another does "::" chain; elsewhere it is a part of the name, where fsspec itself
    would cut it.
    """
    first, mark, rest = url.partition("::")
    scheme, _, path = first.partition("://")
    if not mark or not (_is_archive(scheme) or _is_cache(scheme)):
        return [url]
    # Without a path, a cache has that of what follows, and an archive its root.
    return [first if path else scheme if _is_cache(scheme) else f"{scheme}://", *chain(rest)]


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
    return [one if _is_cache(one) else split_protocol(one)[0] or "" for one in chain(url)]


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


def join(url: str, *parts: str) -> str:
    """`url` with path components added; of a chained URL, to the path within the archive or behind the cache."""
    links = chain(url)
    # A cache stands as a bare word before the URL that it caches.
    place = next((index for index, one in enumerate(links) if "://" in one), len(links) - 1)
    start = links[place]
    links[place] = start + "/".join(parts) if start.endswith("://") else "/".join([start.rstrip("/"), *parts])
    return "::".join(links)


def local_folder(url: str) -> Path | None:
    """The local folder that a URL names, or None if it is on another storage."""
    return Path(normalise(url)) if is_local(url) else None
