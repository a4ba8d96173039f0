"""The segments of a JPEG or JPEG-LS file: what its frame declares, and whether they lead to its end."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

END = b"\xff\xd9"
"""The marker that ends a JPEG, and a codestream of JPEG-LS or JPEG 2000."""

_START = b"\xff\xd8"
# In image data, FF is followed by 00 or a restart marker; anything else begins the next segment.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# SOF0 to SOF15, less DHT, JPG and DAC, which lie between; and SOF55 of JPEG-LS.
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# Baseline, extended and progressive, in Huffman's or arithmetic coding; the others are lossless or hierarchical.
_LOSSY = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)


class Frame(NamedTuple):
    """What an image declares: its size in pixels, how many values a pixel has, and the bits of each."""

    height: int
    width: int
    components: int
    bits: int
    lossy: bool = True


def frame(data: bytes) -> Frame:
    """The first frame of a JPEG or JPEG-LS image.

    Raises:
        IndexError, struct.error: if the segments do not lead to one.
    """
    position = len(_START)
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            return Frame(height, width, components, bits, marker in _LOSSY)
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    raise IndexError


def ends(data: bytes) -> bool:
    """Whether the segments lead to the end marker; a thumbnail within a segment has one of its own."""
    position = len(_START)
    while marker := _MARKER.search(data, position):
        if marker[0] == END:
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
