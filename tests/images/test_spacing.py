"""Millimetres per pixel are those that a DICOM file tells, and none are made up."""

from __future__ import annotations

import numpy as np
import pytest

from chexmask_u.images.spacing import Spacing, find_spacing
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
    assert find_spacing(encode(dataset(PIXELS, **elements))) == expected
