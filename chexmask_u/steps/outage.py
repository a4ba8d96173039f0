"""A storage that is out of reach, told from images that cannot be had: the run stops, and no image fails for it."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

from chexmask_u import storage
from chexmask_u.errors import StoppedError
from chexmask_u.record import ReadError

# Images of one storage in a row, each tried for as long as `images.fetch` has patience. Those that are fetched side by
# side are as many, so that an outage is told after the patience for one.
IN_A_ROW = 8


class Outages:
    """Watches what the storages of one batch answer; its methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, int] = {}

    def check(self, uri: str) -> None:
        """Raise StoppedError if the storage of `uri` is out of reach."""
        place = _place(uri)
        with self._lock:
            failures = self._failures.get(place, 0)
        if failures >= IN_A_ROW:
            raise StoppedError(f"{place} is out of reach: {failures} images in a row could not be fetched")

    def answered(self, uri: str, error: ReadError | None) -> None:
        """Note how fetching an image ended.

        Args:
            uri: of the image; a local one says nothing, since a disk fails file by file.
            error: why it could not be fetched; None if it could.

        Raises:
            StoppedError: as `check` does.
        """
        if storage.is_local(uri):
            return
        passing = error is not None and error.__cause__ is not None and storage.is_transient(error.__cause__)
        place = _place(uri)
        with self._lock:
            self._failures[place] = self._failures.get(place, 0) + 1 if passing else 0
        self.check(uri)


def _place(uri: str) -> str:
    """Scheme and host, or bucket, of a URL, without what it may hold of credentials."""
    parts = urlsplit(uri)
    return storage.redact(f"{parts.scheme}://{parts.netloc}")
