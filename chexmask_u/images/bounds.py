"""How large the files may be that are read, and that they end where their image does."""

from __future__ import annotations

from chexmask_u.record import ReadError

# What the largest file may hold besides two bytes a pixel: headers, colour profiles, thumbnails.
_HEADER_BYTES = 16 * 2**20


def max_bytes(max_side: int) -> int:
    """Bytes of the largest file that is read: 16-bit grey of max_side x max_side, uncompressed."""
    return 2 * max_side**2 + _HEADER_BYTES


def cut(found: str = "") -> ReadError:
    """The error of a file that ends too early; `found` says how much of it there is."""
    return ReadError("damaged", "the data end before the image does" + (f": {found}" if found else ""))


def too_many(max_bytes: int) -> ReadError:
    """The error of a file that is larger than so many bytes."""
    return ReadError("too_large", f"more than {max_bytes} bytes, the limit for --max-side")
