"""The bytes of one object on storage; every way in which they cannot be had is a reason."""

from __future__ import annotations

import random
import time

from chexmask_u import storage
from chexmask_u.images.bounds import too_many
from chexmask_u.record import ReadError

# Longer than a server's restart. What is out of reach for longer costs a row with the reason "storage", for `--retry`.
PATIENCE_SECONDS = 120.0
BACKOFF_SECONDS = (1.0, 16.0)


def fetch(uri: str, *, max_bytes: int) -> bytes:
    """The bytes at a local path or fsspec URL; what may be a storage's passing trouble is tried again.

    Args:
        uri: where.
        max_bytes: size of the largest object that is fetched; no more than that is ever asked for.

    Raises:
        ReadError: "missing", "forbidden", "empty", "too_large" or "storage".
    """
    try:
        data = _fetch(uri, max_bytes)
    except IsADirectoryError as error:
        raise ReadError("missing", "there is a folder, not an object") from error
    except Exception as error:
        if storage.is_missing(error):
            what = "file" if storage.is_local(uri) else "object"
            raise ReadError("missing", f"there is no such {what}") from error
        if storage.is_forbidden(error):
            raise ReadError("forbidden", storage.explain(error)) from error
        if storage.is_out_of_range(error):
            # The answer to a range of an object that has no first byte.
            raise ReadError("empty", "the object holds no bytes") from error
        raise ReadError("storage", storage.explain(error)) from error
    if not data:
        raise ReadError("empty", "the object holds no bytes")
    if len(data) > max_bytes:
        raise too_many(max_bytes)
    return data


def _fetch(uri: str, max_bytes: int) -> bytes:
    fs, path = storage.resolve(uri)
    deadline = time.monotonic() + PATIENCE_SECONDS
    pause, longest = BACKOFF_SECONDS
    while True:
        try:
            # A range is one request, which a size that is asked for first is not, and it bounds what comes.
            data: bytes = fs.cat_file(path, start=0, end=max_bytes + 1)
            return data
        except Exception as error:
            if not storage.is_transient(error) or time.monotonic() > deadline:
                raise
        # Full jitter: fetchers that were turned away together do not come back together.
        time.sleep(random.uniform(0, pause))
        pause = min(2 * pause, longest)
