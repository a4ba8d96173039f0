"""Millimetres per pixel are those that a DICOM file tells, and none are made up."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ImplicitVRLittleEndian

from chexmask_u.images.preparation import read_bytes
from chexmask_u.images.sandbox import Sandbox
from chexmask_u.images.spacing import Spacing
from chexmask_u.record import ReadError
from tests.support.dicom_files import dataset, encode

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [0.3, 0.2]}, Spacing(0.2, 0.3, "PixelSpacing", False)),
        ({"ImagerPixelSpacing": [0.3, 0.2]}, Spacing(0.2, 0.3, "ImagerPixelSpacing", True)),
        # Corrected for the magnification, and not.
        (
            {"PixelSpacing": [0.27, 0.27], "ImagerPixelSpacing": [0.3, 0.3]},
            Spacing(0.27, 0.27, "PixelSpacing", False),
        ),
        ({"PixelSpacing": [0.3, 0.3], "ImagerPixelSpacing": [0.3, 0.3]}, Spacing(0.3, 0.3, "PixelSpacing", True)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.3, 0.3]}, Spacing(0.3, 0.3, "ImagerPixelSpacing", True)),
        ({"PixelSpacing": [0.3]}, None),
        ({}, None),
    ],
)
def test_millimetres_are_those_that_a_dicom_file_tells(elements, expected):
    data = encode(dataset(PIXELS, **elements))
    assert read_bytes(data, source="folder", max_side=100).spacing == expected


def _endless(data: bytes, keyword: str) -> bytes:
    """A file of implicit VR whose element of that keyword has two million values instead of its own."""
    tag = tag_for_keyword(keyword)
    start = data.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    (length,) = struct.unpack_from("<L", data, start + 4)
    values = b"0.25\\" * 2_000_000
    return data[: start + 4] + struct.pack("<L", len(values)) + values + data[start + 8 + length :]


def test_a_hostile_header_costs_the_childs_time_and_memory_and_no_more_than_its_image():
    """With implicit VR a value may be gigabytes long; the parent that asks never parses any of it."""
    good = encode(dataset(PIXELS, PixelSpacing=[0.25, 0.5], WindowCenter=64, WindowWidth=128), ImplicitVRLittleEndian)
    harmless, deadly = _endless(good, "PixelSpacing"), _endless(good, "WindowCenter")
    box = Sandbox(bytes_per_pixel=0, spare_bytes=100 * 2**20)
    tracemalloc.start()
    try:
        assert box.read(harmless, source="folder", max_side=100).spacing is None
        with pytest.raises(ReadError):
            box.read(deadly, source="folder", max_side=100)
        assert box.read(good, source="folder", max_side=100).spacing == Spacing(0.5, 0.25, "PixelSpacing", False)
        # An answer is a MiB of pixels and a line.
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
        box.close()
