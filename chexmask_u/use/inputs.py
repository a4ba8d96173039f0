"""The images that somebody names on a command line: files, folders and patterns, on any storage."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from fsspec.core import split_protocol

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.manifests.listing import ANY_NAME, DEAD_LINK, IMAGE_SUFFIXES, files_below, is_hidden, is_image

_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Input:
    """An image, and what it is called.

    Attributes:
        uri: absolute path or URL.
        image_id: as `manifest folder` has it: its path below the folder or below the pattern's fixed part, or the name
            of a file.
    """

    uri: str
    image_id: str

    @property
    def stem(self) -> str:
        """The id without its suffix: what files made of the image are called."""
        path = PurePosixPath(self.image_id)
        # The last number of a DICOM UID is no suffix.
        return self.image_id if path.suffix[1:].isdecimal() else str(path.with_suffix(""))


@dataclass(frozen=True)
class Found:
    """What is behind the names of a command line.

    Attributes:
        images: each once, in the order of their names.
        lost: paths behind which there may be more, and why they were not followed.
        passed_over: files of folders and patterns that are neither hidden nor named as images.
    """

    images: list[Input]
    lost: dict[str, str]
    passed_over: int


def find(named: Sequence[str], output: str, any_name: bool = False) -> Found:
    """All images that are named, each once, in the order of their names.

    One that is not there is an image of its own, which gives a row, unless it is all that is named.

    Args:
        named: files, folders and patterns.
        output: what lies below it is no input.
        any_name: whether files of folders and patterns are images whatever their names.

    Raises:
        InputError: if a folder or pattern has no image, none of what is named is there, a name is not UTF-8, or two
            images would give files of the same name.
    """
    found: dict[str, Input] = {}
    lost: dict[str, str] = {}
    passed_over: set[str] = set()
    for name in named:
        for one in _named(name, output.rstrip("/") + "/", any_name, lost, passed_over):
            try:
                one.uri.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"{one.uri!a}: the name is not UTF-8; rename the file") from error
            other = found.setdefault(one.stem, one)
            if other.uri != one.uri:
                raise InputError(
                    f"{one.uri}: its files would have the names of those of {other.uri};"
                    " rename one, give a folder that holds both, or another --output for each"
                )
    images = list(found.values())
    if images and all(storage.is_local(one.uri) and not os.path.lexists(one.uri) for one in images):
        what = "file" if is_image(images[0].uri) else "file or folder"
        raise InputError(f"{named[0]}: no such {what}{storage.nearest(images[0].uri)}")
    return Found(images, lost, len(passed_over))


def _named(name: str, output: str, any_name: bool, lost: dict[str, str], passed_over: set[str]) -> Iterator[Input]:
    """The images behind one argument; see `find`.

    What cannot be followed is added to `lost`, and other files to `passed_over`.
    """
    url = storage.normalise(name)
    file_name = _file_name(url)
    with storage.explained(name, "listed"):
        fs, path = storage.filesystem(url)
        if _is_pattern(url) and not fs.exists(path):
            folder, below = _fixed_part(url), fs.glob(path, detail=True)
            prefix = storage.filesystem(folder)[1].rstrip("/") + "/"
            paths = [
                short
                for one in sorted(below)
                if is_image(short := one.removeprefix(prefix)) or below[one]["type"] != "directory"
            ]
            missing = "matches no"
        elif not is_image(file_name) and fs.isdir(path):
            files = files_below(url)
            # Each that is named as an image gets a row that says so.
            dead = [path for path, why in files.lost.items() if why == DEAD_LINK and is_image(path)]
            folder, paths = url, sorted([*files.paths, *dead])
            lost |= {storage.join(url, path): why for path, why in files.lost.items() if path not in dead}
            missing = "holds no"
        else:
            yield Input(url, file_name)
            return
    paths = [path for path in paths if not is_hidden(path) and not storage.join(folder, path).startswith(output)]
    images = [path for path in paths if is_image(path, any_name)]
    others = [storage.join(folder, path) for path in paths if not is_image(path, any_name)]
    passed_over.update(others)
    if not images:
        also = "".join(f"; {path.removeprefix(url + '/')} is {why}" for path, why in list(lost.items())[:1])
        remedy = f"; {ANY_NAME}" if others else ""
        kinds = "" if any_name else f"{', '.join(IMAGE_SUFFIXES)} "
        raise InputError(f"{name}: {missing} {kinds}file{remedy}{also}")
    for image in images:
        yield Input(storage.join(folder, image), image)


def _is_pattern(url: str) -> bool:
    """Whether it has wildcards; in a web address a question mark is none."""
    return bool(_PATTERN.search(url)) and split_protocol(url)[0] not in ("http", "https")


def _fixed_part(url: str) -> str:
    """The folder in front of a pattern's first wildcard."""
    first = _PATTERN.search(url)
    assert first is not None
    return url[: first.start()].rpartition("/")[0] or "/"


def _file_name(url: str) -> str:
    """The name that a path ends in; of a web address without what follows the path, which may be a secret."""
    path = urlsplit(url).path if split_protocol(url)[0] in ("http", "https") else url
    return PurePosixPath(path).name
