"""Where an export goes: files that are whole or not there, and a journal that says which of them are its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.releases.release import Release
from chexmask_u.settings import EXPORT_FORMATS
from chexmask_u.version import __version__

_MOVE = "move it away, or choose another --output"


@dataclass(frozen=True)
class Journal:
    """Which release an output folder was exported from, and of each file in it that is done its bytes and SHA-256."""

    folder: Folder
    name: str
    content: dict[str, Any]

    @classmethod
    def find(cls, output: str, format: str, release: Release, files: Iterable[str]) -> Journal:
        """The journal of an output folder, for a release in one format; a new one, not yet written, if there is none.

        Raises:
            InputError: if the folder cannot be read, is of another export, has one of `files` from elsewhere, or holds
                something else and no export, in whatever format.
        """
        folder, name = Folder(output), _journal(format)
        digest = hashlib.sha256(json.dumps(release.content, sort_keys=True).encode()).hexdigest()
        made_of = {"release": release.version, "release_sha256": digest, "chexmask_u": __version__}
        content = folder.read_json(name)
        if content is None:
            _refuse_foreign(folder, files)
            folder.check_own("export", [_journal(one) for one in EXPORT_FORMATS])
            content = {"made_of": made_of, "files": {}}
        content = {"sha256": {}, **content}
        try:
            theirs, _ = _names(content["made_of"]), {**content["files"], **content["sha256"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder.path(name)}: is damaged ({storage.explain(error)}); choose another --output"
            ) from error
        if content["made_of"] != made_of:
            raise InputError(
                f"{output}: was exported from another release or by another version, {theirs}, not {_names(made_of)};"
                " choose another --output"
            )
        return cls(folder, name, content)

    def is_done(self, files: Iterable[str]) -> bool:
        """Whether all of these files are there as they were written.

        Raises:
            InputError: if one of them was changed since.
        """
        done, digests = self.content["files"], self.content["sha256"]
        sizes = {file: _size(self.folder, file) if file in done else None for file in files}
        for file, size in sizes.items():
            if size is not None and size != done[file]:
                raise InputError(
                    f"{self.folder.path(file)}: has {size:,} bytes, not the {done[file]:,} that were exported; {_MOVE}"
                )
            if size is not None and file in digests and digests[file] != _sha256(self.folder, file):
                raise InputError(f"{self.folder.path(file)}: its sha256 is not that of what was exported; {_MOVE}")
        return None not in sizes.values()

    def begin(self) -> None:
        """Mark the folder as an export's, before its first file."""
        self.folder.write_json(self.name, self.content)

    def add(self, files: Mapping[str, str]) -> None:
        """Note that these files are done, with the SHA-256 of what was written to each."""
        self.content["files"] |= {file: _size(self.folder, file) for file in files}
        self.content["sha256"] |= files
        self.folder.write_json(self.name, self.content)


class TextSink(Protocol):
    """What a format writes to."""

    def write(self, text: str, /) -> int: ...


class Hashed:
    """Passes text on to a stream of UTF-8, and keeps the SHA-256 of its bytes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    def write(self, text: str, /) -> int:
        self._digest.update(text.encode())
        return self._stream.write(text)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def whole_files(urls: Sequence[str]) -> Iterator[list[TextIO]]:
    """Text files that appear under their names when the context ends without an error, and otherwise not at all."""
    with ExitStack() as stack:
        if storage.is_local(urls[0]):
            yield [stack.enter_context(_whole_local_file(Path(url))) for url in urls]
        else:
            fs, _ = storage.filesystem(urls[0])
            stack.enter_context(fs.transaction)
            yield [stack.enter_context(fs.open(url, "w", encoding="utf-8", newline="")) for url in urls]


@contextmanager
def _whole_local_file(path: Path) -> Iterator[TextIO]:
    # In the same folder: fsspec's own would be in /tmp, which may be small, and on another disk.
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not truncated before it is ours: two that write one file at a time would give neither's content.
    with partial.open("a", encoding="utf-8", newline="") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{path}: another export writes it; wait for it, or choose another --output") from error
        except OSError:
            # Some shared file systems have no locks.
            pass
        stream.truncate(0)
        try:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _journal(format: str) -> str:
    # Hidden, since people take all *.json files of a folder for COCO's.
    return f".export-{format}.json"


def _names(made_of: dict[str, str]) -> str:
    return f"{made_of['release']} (release.json {made_of['release_sha256'][:8]}, chexmask-u {made_of['chexmask_u']})"


def _refuse_foreign(folder: Folder, files: Iterable[str]) -> None:
    for file in files:
        if _size(folder, file) is not None:
            raise InputError(
                f"{folder.path(file)}: exists, and nothing in {folder.url} says that it was exported from this release;"
                f" {_MOVE}"
            )


def _size(folder: Folder, name: str) -> int | None:
    """Bytes of a file, or None if there is none."""
    fs, path = storage.filesystem(folder.path(name))
    with storage.explained(folder.path(name)):
        try:
            return int(fs.size(path))
        except (FileNotFoundError, NotADirectoryError):
            return None


def _sha256(folder: Folder, name: str) -> str:
    fs, path = storage.filesystem(folder.path(name))
    with storage.explained(folder.path(name)), fs.open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
