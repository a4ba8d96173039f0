"""Each source's published preparation, to the last bit: recipes written out here with OpenCV, pydicom and numpy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.pixels.processing import apply_voi_lut

from chexmask_u.images.preparation import ReadImage
from chexmask_u.record import ReadError
from chexmask_u.steps.read import read_image
from tests.steps.test_read import texture
from tests.support.dicom_files import compress, dataset, encode

# Height and width: odd and even paddings, extreme aspects, a row, a column, one pixel, and 1024 after or before it all.
SIZES = [
    *[(1024, 1024), (1, 1), (1, 640), (640, 1), (2, 1999), (1999, 3), (777, 776), (1025, 1022), (1022, 1025)],
    *[(1601, 1906), (512, 512), (1024, 900), (301, 1024)],
]
BORDERS = [(0, 0, 0, 0), (12, 0, 7, 101), (0, 333, 1, 0), (5, 6, 640, 9)]  # top, bottom, left, right


def bordered(height: int, width: int, border: tuple[int, int, int, int], high: int = 255) -> NDArray[Any]:
    """A picture inside a border of what the crop takes for black, black pixels within it."""
    top, bottom, left, right = border
    picture = np.maximum(texture(height, width).astype(np.float64) / 255, 0.05) * high
    picture[height // 3 : height // 2, width // 3 : width // 2] = 0
    picture.flat[[0, -1]] = high
    dtype = np.uint8 if high < 256 else np.uint16
    faint = np.random.default_rng(0).integers(0, 2, (height + top + bottom, width + left + right))
    # After 16 bits become 8, everything below 1.5 / 255 of the range is 0 or 1.
    whole = (faint * (1 if high < 256 else high // 300)).astype(dtype)
    whole[top : top + height, left : left + width] = picture.astype(dtype)
    return whole


def crop(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The rows and columns from the first to the last that hold a pixel above 1."""
    rows, columns = np.flatnonzero((grey > 1).any(axis=1)), np.flatnonzero((grey > 1).any(axis=0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def frame(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Black around it to a square, the odd pixel on the right and bottom, and bilinear to 1024."""
    height, width = grey.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = int(np.floor((side - height) / 2)), int(np.floor((side - width) / 2))
    square[top : top + height, left : left + width] = grey
    return np.asarray(cv2.resize(square, (1024, 1024), interpolation=cv2.INTER_LINEAR), np.uint8)


def check(result: ReadImage, grey: NDArray[np.uint8], kept: NDArray[np.uint8]) -> None:
    """`result` is `grey`, of which `kept` was left before it became the frame."""
    assert result.image.dtype == np.uint8
    assert (result.image == frame(kept)).all()
    assert (result.height, result.width) == grey.shape
    assert (result.letterbox.crop_height, result.letterbox.crop_width) == kept.shape


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(ReadError, match=r"/notes\.png: not a PNG, JPEG or DICOM file") as error:
        read_image(str(tmp_path / "notes.png"))
    assert error.value.reason == "unsupported"


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_chestx_ray8(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), bordered(height, width, BORDERS[0]))
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    result = read_image(str(path), source="chestx-ray8")
    check(result, grey, grey)
    if (height, width) == (1024, 1024):
        assert (result.image == grey).all()


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_chexpert_keeps_its_border(tmp_path: Path, height: int, width: int, border: tuple[int, int, int, int]) -> None:
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), bordered(height, width, border))
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    check(read_image(str(path), source="chexpert"), grey, grey)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_mimic_cxr_jpg_loses_its_border(
    tmp_path: Path, height: int, width: int, border: tuple[int, int, int, int]
) -> None:
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), bordered(height, width, border), [cv2.IMWRITE_JPEG_QUALITY, 100])
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    lossless = read_image(str(path), source="mimic-cxr-jpg", preparation="lossless")
    check(lossless, grey, crop(grey))
    published = read_image(str(path), source="mimic-cxr-jpg")
    # As the published script had it: OpenCV's own default quality, and read again from the file.
    cv2.imwrite(str(tmp_path / "prepared.jpg"), frame(crop(grey)))
    assert (published.image == cv2.imread(str(tmp_path / "prepared.jpg"), cv2.IMREAD_GRAYSCALE)).all()
    if height > 300 < width:
        assert (published.image != lossless.image).any()
    assert (published.height, published.width, published.letterbox) == (
        grey.shape[0],
        grey.shape[1],
        lossless.letterbox,
    )


@pytest.mark.parametrize("high", [255, 4095, 65535])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("height", "width"), SIZES[1::2])
def test_padchest_becomes_8_bit_and_loses_its_border(
    tmp_path: Path, height: int, width: int, border: tuple[int, int, int, int], high: int
) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), bordered(height, width, border, high))
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    grey = values if high < 256 else cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    if values.min() == values.max() and high > 255:
        pytest.skip("an image of one value is black, and blank once cropped")
    kept = crop(grey)
    if border != BORDERS[0]:
        assert kept.shape == (height, width)
    check(read_image(str(path), source="padchest"), grey, kept)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("bits", "window"),
    [
        (12, {}),
        (14, {"WindowCenter": 8000, "WindowWidth": 9000}),
        (16, {"WindowCenter": [30000, 9], "WindowWidth": [40000, 9]}),
    ],
)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_vindr_cxr(
    tmp_path: Path, height: int, width: int, bits: int, window: dict[str, Any], photometric: str
) -> None:
    pixels = bordered(height, width, BORDERS[1], 2**bits - 1).astype(np.uint16)
    made = dataset(pixels, bits, PhotometricInterpretation=photometric, RescaleSlope=1, RescaleIntercept=0, **window)
    syntax = uid.JPEG2000Lossless if (height, width) == (512, 512) else uid.ImplicitVRLittleEndian
    data = compress(made, syntax) if syntax.is_compressed else encode(made, syntax)
    path = tmp_path / "image.dicom"
    path.write_bytes(data)

    file = pydicom.dcmread(io.BytesIO(data))
    values = apply_voi_lut(file.pixel_array, file).astype(np.float64)
    if file.PhotometricInterpretation == "MONOCHROME1":
        values = np.max(values) - values
    values = values - np.min(values)
    grey = (values / np.max(values) * 255).astype(np.uint8)
    result = read_image(str(path), source="vindr-cxr")
    check(result, grey, grey)
    assert 0 < result.image.mean() < 255


@pytest.mark.parametrize(("border", "inner"), [(300, (1024, 1024)), (1, (1022, 1024))])
def test_what_is_1024_once_it_is_cropped_keeps_its_pixels(tmp_path: Path, border: int, inner: tuple[int, int]) -> None:
    image = bordered(*inner, (border, border, border, border))
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), image)
    result = read_image(str(path), source="padchest")
    top = (1024 - inner[0]) // 2
    kept = image[border:-border, border:-border]
    assert (result.image[top : top + inner[0]] == kept).all()
    assert result.letterbox.scale == 1
