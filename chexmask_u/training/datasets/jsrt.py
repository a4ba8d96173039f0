"""JSRT: ``JPCLN001.IMG`` and ``JPCNN001.IMG``, 2048 x 2048, 12 bits; published landmarks."""

from __future__ import annotations

import numpy as np

from chexmask_u.images.fetch import fetch
from chexmask_u.images.letterbox import prepare
from chexmask_u.images.preparation import ReadImage
from chexmask_u.record import ReadError
from chexmask_u.training.datasets.base import Form

_SIDE = 2048
_WHITE = 4095


def _read(uri: str, max_side: int) -> ReadImage:
    """A JSRT file: 2048 x 2048 big-endian 16-bit words without a header, 12 bits used, 0 for white.

    Values are inverted and scaled from 0-4095 to 0-255.

    Raises:
        ReadError: if the file has another length or range.
    """
    data = fetch(uri, max_bytes=2 * _SIDE**2)
    if len(data) != 2 * _SIDE**2:
        raise ReadError("damaged", f"{len(data):,} bytes, not the {2 * _SIDE**2:,} of a JSRT image")
    values = np.frombuffer(data, ">u2").reshape(_SIDE, _SIDE)
    if values.max() > _WHITE:
        raise ReadError(
            "damaged", f"values to {values.max()}, but JSRT images have 12 bits; is the byte order its own?"
        )
    grey = np.rint((_WHITE - values.astype(np.float32)) * np.float32(255 / _WHITE)).astype(np.uint8)
    image, letterbox = prepare(grey)
    return ReadImage(image, _SIDE, _SIDE, letterbox)


FORM = Form("jsrt", r"(^|/)JPC[LN]N\d{3}\.IMG$", reader=_read)
