"""Bytes of a DICOM file -> uint8 grey at its own size, and its spacing; of its text, only what tells these is parsed.

`header` finds what the file says of its pixels and, in `steps`, of how they are shown; `pixels` decodes them; `tones`
gives each value its grey.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

from chexmask_u.images.dicom.header import parse, recognised
from chexmask_u.images.dicom.pixels import pixel_data, stored_values
from chexmask_u.images.dicom.tones import grey
from chexmask_u.images.spacing import Spacing

_reading: ContextVar[bool] = ContextVar("reading", default=False)
_one_at_a_time = threading.Lock()
# pydicom's messages may quote values.
logging.getLogger("pydicom").addFilter(lambda _: not _reading.get())


def decode(data: bytes, *, max_side: int, standard: bool = True) -> tuple[NDArray[np.uint8], Spacing | None]:
    """Decode a single grey frame and map its values to 8 bits.

    Stored values x pass the VOI LUT, which is its table if the file has one, or else the first window whose width is
    not 0, by pydicom's `apply_windowing` (PS3.3 C.11.2); MONOCHROME1 changes the sign; and v becomes
    uint8((v - low) / (high - low) * 255), in float64 and cut, not rounded. An image of a single value becomes black.
    One whose values differ fails where a window, table, slope or padding of the header leaves next to nothing of it.

    Args:
        data: the whole file.
        max_side: longest side in pixels that is decoded.
        standard: as PS3.3 C.11.1 and C.7.5.1.1.2 ask, the modality LUT comes first, and what has the pixel padding
            value counts neither for low nor for high; stray values pass as the nearest that is none (`span.robust`).
            The published preparation of VinDr-CXR does nothing of that; it fails only where no two pixels differ.

    Returns:
        uint8 [H, W], and the spacing of its pixels where the header tells one.

    Raises:
        ReadError: "unsupported", "no_pixels", "not_radiograph", "damaged" or "too_large". Messages are in our own
            words and quote counts and sizes only.
    """
    with unheard():
        header, rest = parse(data, max_side, standard)
        stored = stored_values(header, *pixel_data(rest, header))
        return grey(stored, header, standard), header.spacing


@contextmanager
def unheard() -> Iterator[None]:
    """Keep what pydicom logs and warns; one file at a time, since filters of warnings belong to all threads."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = _reading.set(True)
        try:
            yield
        finally:
            _reading.reset(token)


__all__ = ["decode", "recognised"]
