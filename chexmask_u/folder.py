"""A folder that a verb makes, on any storage: whole files, JSON, and the question whether it is the verb's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chexmask_u import storage
from chexmask_u.errors import InputError


@dataclass(frozen=True)
class Folder:
    """A local folder or URL prefix; it need not be there.

    Its methods raise InputError, in one line that names the file or folder, where the storage fails.
    """

    url: str

    def path(self, name: str) -> str:
        """URL of a file in it."""
        return storage.join(self.url, name)

    def read(self, name: str) -> bytes | None:
        """A file's content, or None if it is not there."""
        fs, path = storage.filesystem(self.path(name))
        with storage.explained(self.path(name)):
            try:
                content: bytes = fs.cat_file(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return content

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object, or None if the file is not there."""
        data = self.read(name)
        if data is None:
            return None
        try:
            content = json.loads(data)
        except ValueError as error:
            raise InputError(f"{self.path(name)}: is no JSON; choose another folder") from error
        if not isinstance(content, dict):
            raise InputError(f"{self.path(name)}: is no JSON object; choose another folder")
        return content

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file whole."""
        with storage.explained(self.url, "written"):
            storage.put(self.path(name), content.encode() if isinstance(content, str) else content)

    def write_json(self, name: str, content: Any) -> None:
        """Write JSON whole, without the secrets that URLs in it may hold."""
        self.write(name, storage.redact(json.dumps(content, indent=2)) + "\n")

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        fs, path = storage.filesystem(self.path(name))
        with storage.explained(self.url, "written"):
            try:
                fs.rm_file(path)
            except (FileNotFoundError, NotADirectoryError):
                return

    def names(self) -> list[str]:
        """Names in it, sorted; none where there is no folder."""
        with storage.explained(self.url, "opened"):
            return storage.names_in(self.url)

    def check_own(self, what: str, marks: Sequence[str], ignored: Sequence[str] = (), flag: str = "--output") -> None:
        """Check that it is empty, or holds what the same verb made there before.

        Args:
            what: that the verb makes.
            marks: files of which one is there if the verb made it.
            ignored: beginnings of other names that say nothing; hidden files and folders do not either.
            flag: that named the folder.

        Raises:
            InputError: naming something else that is there.
        """
        names = self.names()
        strangers = [name for name in names if not name.startswith((".", *ignored))]
        if strangers and not set(marks).intersection(names):
            raise InputError(
                f"{self.url}: is not empty and holds no {what} (there is {strangers[0]!r});"
                f" choose another {flag} or a new folder in it"
            )


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV text, empty where a row lacks a value.

    Args:
        rows: values by column.
        columns: those that are written; None for all that a row has, in the order in which they are met.
    """
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
