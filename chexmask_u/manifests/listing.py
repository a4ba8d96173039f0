"""What lies below a folder: paths of files, with links to folders followed on local disks."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from chexmask_u import storage
from chexmask_u.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

ANY_NAME = "--any-name takes files whatever their names, as DICOM files often have none of these endings"
"""The remedy where files are passed over for their names."""

DEAD_LINK = "a link that leads nowhere"


@dataclass(frozen=True)
class Files:
    """What lies below a folder.

    Attributes:
        paths: of all files, '/'-separated, below the folder, sorted.
        lost: paths below the folder behind which there may be more, and why it was not seen.
    """

    paths: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


def files_below(url: str) -> Files:
    """All files in a folder or under a URL prefix.

    On a local disk, links to folders are followed, each real folder once: under its own path where that is below
    `url`, else under that of the first link to it, links nearer to `url` first and then by path. Hidden links are not.

    Raises:
        InputError: if there is no such folder, or it cannot be listed.
    """
    if not storage.is_local(url):
        return Files(_objects_below(url))
    root = Path(storage.normalise(url))
    with storage.explained(url, "listed", missing="no such folder"):
        if root.is_file():
            raise InputError(_is_a_file(url))
        return _walk(root)


def is_image(path: str, any_name: bool = False) -> bool:
    """Whether a path is that of an image, hidden ones aside, as far as its name tells; with `any_name` all may be."""
    return (any_name or path.lower().endswith(IMAGE_SUFFIXES)) and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a path, or a folder on it, is hidden."""
    return any(part.startswith(".") for part in path.split("/"))


def _is_a_file(url: str) -> str:
    return f"{url}: is a file; give the folder that holds the images"


def _objects_below(url: str) -> list[str]:
    fs, path = storage.filesystem(url)
    with storage.explained(url, "listed", missing="no such folder"):
        files = fs.find(path)
        if not files and not fs.exists(path):
            raise FileNotFoundError
    if files == [path]:
        raise InputError(_is_a_file(url))
    base = path.rstrip("/") + "/"
    # An object store's own marks of folders are objects whose names end in a slash.
    return sorted(file.removeprefix(base) for file in files if not file.endswith("/"))


def _walk(root: Path) -> Files:
    """Files below a folder of the local disk; see `files_below`."""
    found = Files()
    seen: set[Path] = set()
    # The root, and then what links lead to.
    starts = [""]
    for start in starts:
        links: list[str] = []
        folders = [(start, (root / start).resolve())]
        while folders:
            folder, real = folders.pop()
            if real in seen:
                continue
            seen.add(real)
            try:
                entries = list(os.scandir(real))
            except OSError as error:
                if not folder:
                    raise
                found.lost[folder] = f"a folder that cannot be opened ({error.strerror})"
                continue
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append((path, real / entry.name))
                elif entry.is_file(follow_symlinks=False) or is_hidden(path):
                    found.paths.append(path)
                else:
                    _sort_out(real / entry.name, path, found, links)
        starts += sorted(links)
    return Files(sorted(found.paths), dict(sorted(found.lost.items())))


def _sort_out(entry: Path, path: str, found: Files, links: list[str]) -> None:
    """Add what is neither a folder nor a file itself, at `path` below the root, to the files, the links or the lost."""
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        nowhere = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        found.lost[path] = DEAD_LINK if nowhere else f"a link that cannot be followed ({error.strerror})"
        return
    if stat.S_ISREG(mode):
        found.paths.append(path)
    elif stat.S_ISDIR(mode):
        links.append(path)
    else:
        # To open a pipe is to wait for its other end.
        found.lost[path] = "neither a file nor a folder"
