"""Where an export goes: files that are whole or not there, and a journal that says which of them are its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.settings import EXPORT_FORMATS
from chexmask_u.version import __version__


@dataclass(frozen=True)
class Journal:
    """Which release an output folder was exported from, and the bytes of each file in it that is done."""

    output: str
    url: str
    content: dict[str, Any]

    @classmethod
    def open(cls, output: str, format: str, release: dict[str, Any], files: Iterable[str]) -> Journal:
        """The journal of an output folder, for a release.json in one format; a new one if there is none.

        Raises:
            InputError: if the folder cannot be written, is of another export, or has one of `files` from elsewhere.
            InputError: if it holds no export, in either format, and something else.
        """
        url = storage.join(output, _journal(format))
        digest = hashlib.sha256(json.dumps(release, sort_keys=True).encode()).hexdigest()
        made_of = {"release": release["version"], "release_sha256": digest, "chexmask_u": __version__}
        try:
            content = _read_json(url)
            if content is None:
                _refuse_foreign(output, files)
                Folder(output).check_own("export", [_journal(one) for one in EXPORT_FORMATS])
                content = {"made_of": made_of, "files": {}}
                _write_json(url, content)
            theirs = content["made_of"]
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{url}: is damaged ({storage.explain(error)}); choose another --output") from error
        except Exception as error:
            raise InputError(f"{output}: cannot be written ({storage.explain(error)})") from error
        if theirs != made_of:
            raise InputError(
                f"{output}: was exported from another release or by another version, {_names(theirs)}, not"
                f" {_names(made_of)}; choose another --output"
            )
        return cls(output, url, content)

    def is_done(self, files: Iterable[str]) -> bool:
        """Whether all of these files are there as they were written.

        Raises:
            InputError: if one of them was changed since.
        """
        done = self.content["files"]
        sizes = {file: _size(storage.join(self.output, file)) if file in done else None for file in files}
        for file, size in sizes.items():
            if size is not None and size != done[file]:
                raise InputError(
                    f"{storage.join(self.output, file)}: has {size:,} bytes, not the {done[file]:,} that were exported;"
                    " move it away, or choose another --output"
                )
        return None not in sizes.values()

    def add(self, files: Iterable[str]) -> None:
        """Note that these files are done."""
        self.content["files"] |= {file: _size(storage.join(self.output, file)) for file in files}
        _write_json(self.url, self.content)


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


def _refuse_foreign(output: str, files: Iterable[str]) -> None:
    for file in files:
        if _size(storage.join(output, file)) is not None:
            raise InputError(
                f"{storage.join(output, file)}: exists, and nothing in {output} says that it was exported from this"
                " release; move it away, or choose another --output"
            )


def _size(url: str) -> int | None:
    """Bytes of a file, or None if there is none."""
    fs, path = storage.filesystem(url)
    try:
        return int(fs.size(path))
    except FileNotFoundError:
        return None


def _read_json(url: str) -> dict[str, Any] | None:
    fs, path = storage.filesystem(url)
    try:
        content: dict[str, Any] = json.loads(fs.cat_file(path))
    except FileNotFoundError:
        return None
    return content


def _write_json(url: str, content: dict[str, Any]) -> None:
    with whole_files([url]) as (stream,):
        json.dump(content, stream, indent=2)
