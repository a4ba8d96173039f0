"""The bytes of one object on storage; every way in which they cannot be had is a reason."""

from __future__ import annotations

from chexmask_u import storage
from chexmask_u.record import ReadError


def fetch(uri: str) -> bytes:
    """The bytes at a local path or fsspec URL.

    Raises:
        ReadError: "missing", "forbidden", "empty" or "storage".
    """
    try:
        fs, path = storage.resolve(uri)
        data: bytes = fs.cat_file(path)
    except IsADirectoryError as error:
        raise ReadError("missing", "there is a folder, not an object") from error
    except Exception as error:
        if storage.is_missing(error):
            raise ReadError("missing", "there is no such object") from error
        if storage.is_forbidden(error):
            raise ReadError("forbidden", storage.explain(error)) from error
        raise ReadError("storage", storage.explain(error)) from error
    if not data:
        raise ReadError("empty", "the object holds no bytes")
    return data
