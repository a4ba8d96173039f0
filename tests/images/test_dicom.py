"""What `decode` makes of DICOM files, against pydicom's functions applied here step by step."""

from __future__ import annotations

import io
import logging
import os
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_voi_lut, apply_windowing
from pydicom.sequence import Sequence

from chexmask_u import record
from chexmask_u.images.decode import decode
from chexmask_u.record import ReadError
from chexmask_u.steps.read import read_image
from tests.steps.test_read import read_file, texture
from tests.support.dicom_files import compress, dataset, encode, jpeg, lookup_table, lossless_jpeg, wrap
from tests.support.mutants import mutate

LIMIT = 4000


def shades(bits: int, *, signed: bool = False, height: int = 96, width: int = 131, seed: int = 0) -> NDArray[Any]:
    """Smooth grey values with some noise that span all of so many bits."""
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    smooth = texture(height, width, seed=seed) / 255
    noise = np.random.default_rng(seed).normal(0, 0.01, (height, width))
    values = np.clip(lowest + (smooth + noise) * (highest - lowest), lowest, highest)
    values.flat[:2] = lowest, highest
    return values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def stretch(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Minimum and maximum to 0 and 255, cut."""
    values = values.astype(np.float64)
    values = values - values.min()
    if not values.max():
        return np.zeros(values.shape, np.uint8)
    return (values / values.max() * 255).astype(np.uint8)


def published(data: bytes) -> NDArray[np.uint8]:
    """VinDr-CXR's recipe: VOI LUT, MONOCHROME1 inverted, stretched."""
    file = pydicom.dcmread(io.BytesIO(data), force=True)
    values = apply_voi_lut(file.pixel_array, file).astype(np.float64)
    if file.PhotometricInterpretation == "MONOCHROME1":
        values = values.max() - values
    return stretch(values)


def reason_of(data: bytes, **settings: Any) -> tuple[str, str]:
    with pytest.raises(ReadError) as caught:
        decode(data, **{"max_side": LIMIT} | settings)
    assert caught.value.reason in record.REASONS
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return caught.value.reason, message


# Pixels


DEPTHS = [(8, False), (10, False), (12, False), (14, False), (16, False), (12, True), (16, True)]


@pytest.mark.parametrize(("bits", "signed"), DEPTHS)
@pytest.mark.parametrize(
    "syntax",
    [
        *[uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian],
        *[uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless],
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_every_lossless_form_gives_back_its_pixels(syntax: uid.UID, bits: int, signed: bool) -> None:
    pixels = shades(bits, signed=signed)
    data = compress(dataset(pixels, bits), syntax) if syntax.is_compressed else encode(dataset(pixels, bits), syntax)
    assert (decode(data, max_side=LIMIT) == stretch(pixels)).all()


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    "syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless], ids=lambda syntax: syntax.keyword
)
def test_lossless_jpeg_gives_back_its_pixels(tmp_path: Path, syntax: uid.UID, bits: int) -> None:
    pixels = shades(bits)
    data = lossless_jpeg(dataset(pixels, bits), syntax, tmp_path)
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == syntax
    assert (decode(data, max_side=LIMIT) == stretch(pixels)).all()


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit], ids=lambda syntax: syntax.keyword)
def test_lossy_jpeg_of_8_bits_is_what_opencv_reads(syntax: uid.UID) -> None:
    grey = texture(96, 131)
    data = jpeg(dataset(grey), syntax, grey)
    lossy = cv2.imdecode(cv2.imencode(".jpg", grey)[1], cv2.IMREAD_GRAYSCALE)
    assert (decode(data, max_side=LIMIT) == stretch(lossy)).all()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored_do_not_count(syntax: uid.UID, signed: bool) -> None:
    pixels = shades(12, signed=signed)
    # An overlay in the upper bits, as old files have it.
    dirty = (pixels.view(np.uint16) & 0x0FFF | (texture(*pixels.shape, seed=9).astype(np.uint16) & 0xF0) << 8).view(
        pixels.dtype
    )
    made = dataset(dirty, 12)
    data = encode(made) if syntax == uid.ExplicitVRLittleEndian else compress(made, syntax)
    assert (decode(data, max_side=LIMIT) == stretch(pixels)).all()


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [13, 14])
def test_values_that_need_more_bits_than_are_said_to_be_stored_are_taken_whole(
    syntax: uid.UID, signed: bool, bits: int
) -> None:
    pixels = shades(bits, signed=signed)
    made = dataset(pixels, 12)
    data = encode(made) if syntax == uid.ExplicitVRLittleEndian else compress(made, syntax)
    assert (decode(data, max_side=LIMIT) == stretch(pixels)).all()


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian], ids=lambda syntax: syntax.keyword
)
@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (1, 300), (300, 1), (3, 5)])
def test_a_line_of_pixels_is_an_image(syntax: uid.UID, bits: int, height: int, width: int) -> None:
    pixels = np.arange(height * width).reshape(height, width).astype(np.uint16 if bits > 8 else np.uint8)
    made = dataset(pixels, bits)
    if syntax == uid.ExplicitVRBigEndian and bits == 8:
        # Bytes are written one by one.
        made["PixelData"].VR = "OB"
    grey = decode(encode(made, syntax), max_side=LIMIT)
    assert grey.shape == (height, width)
    assert (grey == stretch(pixels)).all()


def test_bytes_that_big_endian_swaps_pairwise_are_swapped_back() -> None:
    pixels = shades(8, height=9, width=7)
    made = dataset(pixels)
    made.PixelData = np.frombuffer(made.PixelData, "<u2").byteswap().tobytes()
    made["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    pydicom.dcmwrite(buffer, made, enforce_file_format=True, implicit_vr=False, little_endian=False)
    assert (decode(buffer.getvalue(), max_side=LIMIT) == stretch(pixels)).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("value", [0, 777, 65535])
def test_an_image_of_one_value_is_black(photometric: str, value: int) -> None:
    made = dataset(np.full((9, 7), value, np.uint16), PhotometricInterpretation=photometric)
    for standard in (True, False):
        assert not decode(encode(made), max_side=LIMIT, dicom_standard=standard).any()


# How values are shown


WINDOWS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"WindowCenter": 1800, "WindowWidth": 1500},
    "linear, odd": {"WindowCenter": "1047.5", "WindowWidth": "1001.3"},
    "linear, wider than the data": {"WindowCenter": 2048, "WindowWidth": 9000},
    "several": {"WindowCenter": [1500, 500, 3000], "WindowWidth": [900, 100, 50]},
    "exact": {"WindowCenter": 1800, "WindowWidth": 1500, "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 1800, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    "function without a window": {"VOILUTFunction": "SIGMOID"},
    "centre without a width": {"WindowCenter": 1800},
    "empty": {"WindowCenter": "", "WindowWidth": ""},
}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian], ids=["explicit", "implicit"]
)
@pytest.mark.parametrize("signed", [False, True])
def test_windows_are_applied_as_pydicom_does(window: str, photometric: str, syntax: uid.UID, signed: bool) -> None:
    made = dataset(shades(12, signed=signed), 12, PhotometricInterpretation=photometric, **WINDOWS[window])
    data = encode(made, syntax)
    expected = published(data)
    assert 0 < expected.mean() < 255
    for standard in (True, False):
        assert (decode(data, max_side=LIMIT, dicom_standard=standard) == expected).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian], ids=["explicit", "implicit"]
)
@pytest.mark.parametrize(("first", "signed"), [(0, False), (500, False), (-1000, True)])
@pytest.mark.parametrize("depth", [10, 16])
def test_a_voi_table_goes_before_a_window(
    photometric: str, syntax: uid.UID, first: int, signed: bool, depth: int
) -> None:
    # Neither rising nor falling, and shorter than the values reach.
    entries = (np.sin(np.arange(2000) / 300) * 0.5 + 0.5) * (2**depth - 1)
    made = dataset(shades(12, signed=signed), 12, PhotometricInterpretation=photometric, WindowCenter=9, WindowWidth=3)
    made.VOILUTSequence = Sequence([lookup_table(first, entries.astype(int), depth), lookup_table(0, np.zeros(9), 8)])
    made.VOILUTSequence[0].LUTExplanation = "NORMAL"
    data = encode(made, syntax)
    for standard in (True, False):
        assert (decode(data, max_side=LIMIT, dicom_standard=standard) == published(data)).all()


def test_a_table_for_signed_values_may_say_so_in_unsigned_words() -> None:
    pixels = shades(12, signed=True)
    entries = (np.sin(np.arange(4096) / 900) * 0.5 + 0.5) * 60_000
    item = lookup_table(0, entries.astype(int), 16)
    item.LUTDescriptor = [4096, 65536 - 2048, 16]
    made = dataset(pixels, 12, VOILUTSequence=Sequence([item]))
    assert (decode(encode(made), max_side=LIMIT) == stretch(entries.astype(int)[pixels.astype(int) + 2048])).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [4095, 4096])
def test_a_voi_table_of_bytes_covers_all_values(packed: bool, count: int) -> None:
    # pydicom's own function looks such values up modulo 256.
    pixels = np.minimum(shades(12), count - 1)
    entries = 255 - np.arange(count) // 16
    made = dataset(pixels, 12, VOILUTSequence=Sequence([lookup_table(0, entries, 8, packed=packed)]))
    assert (decode(encode(made), max_side=LIMIT) == stretch(entries[pixels])).all()


@pytest.mark.filterwarnings("ignore:The value for the data element")
def test_a_voi_table_may_have_as_many_entries_as_there_are_values() -> None:
    pixels = shades(16)
    entries = np.arange(65536)[::-1].copy()
    made = dataset(pixels, VOILUTSequence=Sequence([lookup_table(0, entries, 16)]))
    data = encode(made)
    assert (decode(data, max_side=LIMIT) == stretch(entries[pixels])).all()
    assert (decode(data, max_side=LIMIT) == stretch(apply_voi(pixels, made))).all()


RESCALED = {"RescaleSlope": "0.5", "RescaleIntercept": "-1024"}


def test_other_sources_pass_the_modality_lut_first_and_vindr_does_not() -> None:
    made = dataset(shades(12), 12, WindowCenter=200, WindowWidth=700, **RESCALED)
    data = encode(made)
    values = apply_modality_lut(made.pixel_array, made)
    standard = stretch(apply_windowing(values, made))
    assert (decode(data, max_side=LIMIT) == standard).all()
    assert (decode(data, max_side=LIMIT, dicom_standard=False) == published(data)).all()
    assert (standard != published(data)).mean() > 0.5


def test_an_identical_rescale_changes_nothing() -> None:
    windowed = {"WindowCenter": "1800.5", "WindowWidth": 1500}
    plain = decode(encode(dataset(shades(12), 12, **windowed)), max_side=LIMIT)
    data = encode(dataset(shades(12), 12, RescaleSlope=1, RescaleIntercept=0, **windowed))
    for standard in (True, False):
        assert (decode(data, max_side=LIMIT, dicom_standard=standard) == plain).all()


def test_a_negative_slope_turns_an_image_around_once() -> None:
    pixels = shades(12)
    made = dataset(pixels, 12, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2048, WindowWidth=4096)
    grey = decode(encode(made), max_side=LIMIT)
    assert np.abs(grey.astype(int) - stretch(4095 - pixels.astype(int))).max() <= 1


def test_a_modality_table_goes_before_the_window() -> None:
    pixels = shades(12)
    entries = np.sqrt(np.arange(4096)) * 1000
    made = dataset(pixels, 12, WindowCenter=30_000, WindowWidth=40_000)
    made.ModalityLUTSequence = Sequence([lookup_table(0, entries.astype(int), 16)])
    made.ModalityLUTSequence[0].ModalityLUTType = "US"
    data = encode(made)
    window = dataset(pixels, 16, WindowCenter=30_000, WindowWidth=40_000)
    expected = stretch(apply_windowing(apply_modality_lut(made.pixel_array, made), window))
    assert (decode(data, max_side=LIMIT) == expected).all()
    made.WindowCenter, made.WindowWidth = 2000, 3000
    data = encode(made)
    assert (decode(data, max_side=LIMIT, dicom_standard=False) == published(data)).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("signed", "padding", "limit"),
    [(False, 0, None), (False, 4095, None), (False, 4000, 4095), (True, -2048, None), (True, -2048, -2000)],
)
def test_padding_does_not_take_part_in_the_stretch(
    photometric: str, signed: bool, padding: int, limit: int | None
) -> None:
    pixels = np.clip(shades(12, signed=signed), *((-900, 900) if signed else (1000, 3000)))
    padded = np.full((200, 200), padding, pixels.dtype)
    padded[50:146, 30:161] = pixels
    if limit is not None:
        padded[:, :10] = limit
    kept = padded.astype(int)
    kept = np.clip(kept, pixels.min(), pixels.max())
    made = dataset(padded, 12, PhotometricInterpretation=photometric)
    # Signed pixels, and yet the padding's VR says unsigned, as many files have it.
    made.add_new("PixelPaddingValue", "US", padding % 65536)
    if limit is not None:
        made.add_new("PixelPaddingRangeLimit", "US", limit % 65536)
    expected = stretch(-kept if photometric == "MONOCHROME1" else kept)
    data = encode(made)
    assert (decode(data, max_side=LIMIT) == expected).all()
    assert (decode(data, max_side=LIMIT, dicom_standard=False) == published(data)).all()


def test_an_image_of_padding_alone_is_black() -> None:
    made = dataset(np.full((9, 7), 63, np.uint16), 12)
    made.add_new("PixelPaddingValue", "US", 63)
    assert not decode(encode(made), max_side=LIMIT).any()


# What a header can do to an image


PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "0 and 0": {"WindowCenter": 0, "WindowWidth": 0},
    "0, exact": {"WindowCenter": "128", "WindowWidth": "0.0", "VOILUTFunction": "LINEAR_EXACT"},
    "0, sigmoid": {"WindowCenter": 128, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
    "several, all 0": {"WindowCenter": [0, 0], "WindowWidth": [0, 0]},
    "0 with an unknown function": {"WindowCenter": 0, "WindowWidth": 0, "VOILUTFunction": "NONE"},
}


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
@pytest.mark.parametrize("standard", [True, False])
def test_a_window_of_width_0_is_none(placeholder: str, standard: bool) -> None:
    pixels = shades(12)
    data = encode(dataset(pixels, 12, **PLACEHOLDERS[placeholder]))
    assert (decode(data, max_side=LIMIT, dicom_standard=standard) == stretch(pixels)).all()


@pytest.mark.parametrize(("centers", "widths"), [([0, 1800], [0, 1500]), (["", "1800"], ["", "1500"])])
def test_of_several_windows_the_first_that_is_one_counts(centers: list[Any], widths: list[Any]) -> None:
    pixels = shades(12)
    expected = decode(encode(dataset(pixels, 12, WindowCenter=1800, WindowWidth=1500)), max_side=LIMIT)
    made = dataset(pixels, 12, WindowCenter=centers, WindowWidth=widths)
    assert (decode(encode(made), max_side=LIMIT) == expected).all()


def _table_of(entries: NDArray[Any], **elements: Any) -> dict[str, Any]:
    return {"VOILUTSequence": Sequence([lookup_table(0, entries, 16)])} | elements


BLANKING: dict[str, tuple[dict[str, Any], str]] = {
    "window far below": ({"WindowCenter": 1, "WindowWidth": 1}, "0028,1050"),
    "window far above": ({"WindowCenter": 60000, "WindowWidth": 100}, "0028,1050"),
    "window of 8 bits": ({"WindowCenter": 128, "WindowWidth": 256}, "0028,1050"),
    "window of a CT": ({"WindowCenter": -600, "WindowWidth": 400}, "0028,1050"),
    "exact window far away": ({"WindowCenter": 1, "WindowWidth": "0.1", "VOILUTFunction": "LINEAR_EXACT"}, "0028,1050"),
    "sigmoid far away": ({"WindowCenter": 50000, "WindowWidth": 1, "VOILUTFunction": "SIGMOID"}, "0028,1050"),
    "slope 0": ({"RescaleSlope": 0, "RescaleIntercept": 0}, "0028,1053"),
    "slope 0, then a window": (
        {"RescaleSlope": "0.0", "RescaleIntercept": -1024, "WindowCenter": 1800, "WindowWidth": 1500},
        "0028,1053",
    ),
    "slope that is lost beside its intercept": ({"RescaleSlope": 1, "RescaleIntercept": "1e30"}, "0028,1053"),
    "slope beyond all numbers": ({"RescaleSlope": "1e308", "RescaleIntercept": 0}, "0028,1053"),
    "table of zeros": (_table_of(np.zeros(4096, int)), "0028,3010"),
    "table for other values": (_table_of(np.arange(90)), "0028,3010"),
    "padding alone": ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "0028,0120"),
    "padding but for a few": ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 3999}, "0028,0120"),
}
VINDRS = [name for name in BLANKING if not name.startswith(("slope", "padding", "sigmoid"))]


def _of_the_chest() -> NDArray[Any]:
    """12 bits, nothing below 300, few above 3900."""
    pixels = np.clip(shades(12), 300, 3900)
    pixels[:2, :3] = 4000, 4050, 4095
    return pixels


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("name", BLANKING)
def test_what_a_header_leaves_nothing_of_fails_and_names_the_element(name: str, photometric: str) -> None:
    elements, tag = BLANKING[name]
    made = dataset(_of_the_chest(), 12, PhotometricInterpretation=photometric)
    for keyword, value in elements.items():
        made.add_new(keyword, "US", value) if keyword.startswith("PixelPadding") else setattr(made, keyword, value)
    for standard in (True, False) if name in VINDRS else (True,):
        reason, message = reason_of(encode(made), dicom_standard=standard)
        assert (reason, tag in message) == ("damaged", True), message


THRESHOLDS: dict[str, dict[str, Any]] = {
    "linear": {"WindowCenter": 2000, "WindowWidth": 1},
    "exact": {"WindowCenter": 1800, "WindowWidth": "0.5", "VOILUTFunction": "LINEAR_EXACT"},
    "sigmoid": {"WindowCenter": 1800, "WindowWidth": 1, "VOILUTFunction": "SIGMOID"},
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("window", THRESHOLDS)
def test_a_window_that_leaves_black_and_white_is_kept_for_vindr_alone(window: str) -> None:
    data = encode(dataset(shades(12), 12, **THRESHOLDS[window]))
    expected = published(data)
    assert 0 < expected.mean() < 255
    assert (decode(data, max_side=LIMIT, dicom_standard=False) == expected).all()
    reason, message = reason_of(data)
    assert (reason, "0028,1050" in message, "remove it" in message) == ("damaged", True, True)


BITS = [(128, 256), ("127.5", 255), (127, 255), (128, 255)]


@pytest.mark.parametrize(("center", "width"), BITS)
def test_a_window_over_fewer_bits_than_the_picture_has_fails(center: Any, width: Any) -> None:
    pixels = shades(10)
    kept = ((pixels > 0) & (pixels < 255)).mean()
    assert 0.1 < kept < 0.3
    data = encode(dataset(pixels, 10, WindowCenter=center, WindowWidth=width))
    reason, message = reason_of(data)
    assert (reason, "0028,1050" in message, "values of 8 bits" in message) == ("damaged", True, True)
    assert (decode(data, max_side=LIMIT, dicom_standard=False) == published(data)).all()
    # Of a picture that has no more bits, or of which less than half lies beyond them, it is a window like any other;
    # and so is one of that width elsewhere.
    data = encode(dataset(pixels // 4, 12, WindowCenter=center, WindowWidth=width))
    assert (decode(data, max_side=LIMIT) == published(data)).all()
    data = encode(dataset(pixels // 3, 12, WindowCenter=center, WindowWidth=width))
    assert (decode(data, max_side=LIMIT) == published(data)).all()
    data = encode(dataset(pixels, 10, WindowCenter=500, WindowWidth=width))
    assert (decode(data, max_side=LIMIT) == published(data)).all()


def test_a_black_background_that_a_window_cuts_off_is_no_fault() -> None:
    # A plate in three quarters of noisy dark, as collimated films are.
    pixels = np.random.default_rng(0).integers(0, 60, (400, 400)).astype(np.uint16)
    pixels[100:300, 100:300] = np.clip(shades(12, height=200, width=200), 400, 4000)
    data = encode(dataset(pixels, 12, WindowCenter=2048, WindowWidth=3600))
    assert (decode(data, max_side=LIMIT) == published(data)).all()


@pytest.mark.parametrize("name", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("order", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("vr", ["OW", "US"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("present", [0, 1, 2047, 2048, 3000, 4095, 4096])
def test_a_table_holds_as_many_entries_as_it_says(name: str, order: uid.UID, vr: str, bits: int, present: int) -> None:
    entries = np.linspace(0, 2**bits - 1, 4096).astype(int)
    item = lookup_table(0, entries, bits)
    words = entries[:present].astype("<u2" if order.is_little_endian else ">u2").tobytes()
    item.add_new("LUTData", vr, words if vr == "OW" else entries[:present].tolist())
    made = dataset(shades(12), 12)
    setattr(made, name, Sequence([item]))
    data = encode(made, order)
    if present == 4096:
        assert (decode(data, max_side=LIMIT) == stretch(entries[shades(12)])).all()
        return
    reason, message = reason_of(data)
    assert (reason, f"holds {present} of 4096 entries" in message) == ("damaged", True), message


def test_entries_are_never_negative_whatever_their_vr_says() -> None:
    pixels, entries = shades(12), np.arange(4096) * 15
    item = lookup_table(0, entries, 16)
    item.add_new("LUTData", "SS", entries.astype(np.uint16).view(np.int16).tolist())
    made = dataset(pixels, 12, VOILUTSequence=Sequence([item]))
    assert (decode(encode(made), max_side=LIMIT) == stretch(entries[pixels])).all()


def test_a_packed_table_is_counted_in_entries_too() -> None:
    item = lookup_table(0, np.arange(4096) // 16, 8, packed=True)
    item.LUTData = item.LUTData[:3000]
    reason, message = reason_of(encode(dataset(shades(12), 12, VOILUTSequence=Sequence([item]))))
    assert (reason, "holds 3000 of 4096 entries" in message) == ("damaged", True), message


def test_a_table_that_does_not_say_how_long_it_is_fails_and_an_empty_item_is_none() -> None:
    pixels = shades(12)
    item = lookup_table(0, np.arange(4096), 12)
    del item.LUTDescriptor
    made = dataset(pixels, 12, VOILUTSequence=Sequence([item]))
    assert reason_of(encode(made)) == (
        "damaged",
        "the VOI LUT (0028,3010) of the DICOM header does not say how many entries it has",
    )
    made.VOILUTSequence = Sequence([Dataset()])
    assert (decode(encode(made), max_side=LIMIT) == stretch(pixels)).all()


STRAYS = {
    "one": {(5, 7): 65535},
    "a few": {(0, 0): 65535, (20, 20): 40000, (50, 3): 9000},
    "dead": {(5, 7): 0},
    "hot and dead": {(5, 7): 65535, (6, 7): 0},
}


@pytest.mark.parametrize("strays", STRAYS)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 32768, "WindowWidth": 65536}])
def test_stray_pixels_leave_the_rest_as_it_is(strays: str, photometric: str, window: dict[str, Any]) -> None:
    pixels = (shades(12) // 4 + 3000).astype(np.uint16)
    clean = decode(encode(dataset(pixels, PhotometricInterpretation=photometric, **window)), max_side=LIMIT)
    hot = pixels.copy()
    for at, value in STRAYS[strays].items():
        hot[at] = value
    data = encode(dataset(hot, PhotometricInterpretation=photometric, **window))
    grey = decode(data, max_side=LIMIT)
    assert (grey != clean).sum() <= len(STRAYS[strays])
    assert {grey[at] for at in STRAYS[strays]} <= {0, 255}
    assert (decode(data, max_side=LIMIT, dicom_standard=False) == published(data)).all()


# Files


def _spliced(data: bytes, inserted: bytes) -> bytes:
    """A file with other elements in front of its pixels."""
    start = data.rindex(b"\xe0\x7f\x10\0")
    return data[:start] + inserted + data[start:]


ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
EMPTY = bytes(4)
# An icon's elements, which must not be taken for the image's own.
ICON = b"\x28\0\x10\0US\x02\0\x05\0" + b"\x28\0\x11\0US\x02\0\x05\0" + b"\xe0\x7f\x10\0OW\0\0\x02\0\0\0ab"
STRAY_ITEMS = {
    "empty": ITEM + EMPTY,
    "two": 2 * (ITEM + EMPTY),
    "of a length": ITEM + struct.pack("<L", len(ICON)) + ICON,
    "to its end": ITEM + b"\xff\xff\xff\xff" + ICON + ITEM_END + EMPTY,
    "to its end and its sequence's": ITEM + b"\xff\xff\xff\xff" + ICON + ITEM_END + EMPTY + SEQUENCE_END + EMPTY,
    "nested": (ITEM + b"\xff\xff\xff\xff") * 2 + (ITEM_END + EMPTY) * 2,
    "an end alone": ITEM_END + EMPTY,
    "a sequence's end alone": SEQUENCE_END + EMPTY,
}


@pytest.mark.parametrize("stray", STRAY_ITEMS)
def test_an_item_after_a_sequence_of_length_0_is_passed_over(stray: str) -> None:
    pixels = shades(12)
    data = _spliced(encode(dataset(pixels, 12)), b"\x40\0\x55\x05SQ\0\0" + EMPTY + STRAY_ITEMS[stray])
    assert (decode(data, max_side=LIMIT) == stretch(pixels)).all()


def test_an_item_that_never_ends_costs_the_image() -> None:
    data = _spliced(encode(dataset(shades(12), 12)), ITEM + b"\xff\xff\xff\xff")
    assert reason_of(data)[0] in ("no_pixels", "damaged")


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_groups_may_stand_in_any_order(syntax: uid.UID) -> None:
    pixels = shades(12)
    implicit = syntax.is_implicit_VR
    private = b"\xe1\x7f\x10\0" + (b"" if implicit else b"LO") + struct.pack("<L" if implicit else "<H", 4) + b"GEMS"
    late = b"\x28\0\x50\x10" + (b"" if implicit else b"DS") + struct.pack("<L" if implicit else "<H", 4) + b"1800"
    late += b"\x28\0\x51\x10" + (b"" if implicit else b"DS") + struct.pack("<L" if implicit else "<H", 4) + b"1500"
    made = dataset(pixels, 12)
    assert (decode(_spliced(encode(made, syntax), private), max_side=LIMIT) == stretch(pixels)).all()
    made.WindowCenter, made.WindowWidth = 1800, 1500
    windowed = decode(encode(made, syntax), max_side=LIMIT)
    assert (windowed != stretch(pixels)).any()
    del made.WindowCenter, made.WindowWidth
    assert (decode(_spliced(encode(made, syntax), private + late), max_side=LIMIT) == windowed).all()


def test_the_first_bytes_tell_a_dicom_file_whatever_its_name(tmp_path: Path) -> None:
    data = encode(dataset(shades(12), 12))
    for name in ("image.png", "image.jpg", "IM000001", "image.dcm"):
        (tmp_path / name).write_bytes(data)
        assert (decode((tmp_path / name).read_bytes(), max_side=LIMIT) == stretch(shades(12))).all()
        assert read_file(tmp_path / name)["status"] == "ok"
    png = cv2.imencode(".png", texture(20, 30))[1].tobytes()
    assert (decode(png, max_side=LIMIT) == texture(20, 30)).all()


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("meta", [True, False])
def test_files_without_a_preamble_are_read(syntax: uid.UID, meta: bool) -> None:
    pixels = shades(12)
    made = dataset(pixels, 12)
    data = encode(made, syntax)[132:]
    if not meta:
        length = struct.unpack_from("<L", data, 8)[0]
        data = data[12 + length :]
    assert (decode(data, max_side=LIMIT) == stretch(pixels)).all()


def test_a_padded_or_longer_value_is_read_up_to_the_image() -> None:
    pixels = shades(12)
    made = dataset(pixels, 12)
    made.PixelData = made.PixelData + b"\1" * 100
    assert (decode(encode(made), max_side=LIMIT) == stretch(pixels)).all()


def _renamed(data: bytes, syntax: str) -> bytes:
    """An uncompressed file with another text where the transfer syntax stands."""
    right = str(uid.ExplicitVRLittleEndian).encode()
    assert data.count(right) == 1
    return data.replace(right, syntax.encode()[: len(right)].ljust(len(right), b"\0"))


def _refused() -> dict[str, tuple[bytes, str, str]]:
    """Name -> bytes, the reason that they must give, and what the message must hold."""
    pixels = shades(12)

    def make(**elements: Any) -> bytes:
        return encode(dataset(pixels, 12, **elements))

    colour = dataset(pixels, 12, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    colour.PixelData = colour.PixelData * 3
    palette = dataset(shades(8), PhotometricInterpretation="PALETTE COLOR")
    frames = dataset(pixels, 12, NumberOfFrames=3)
    frames.PixelData = frames.PixelData * 3
    floating = dataset(pixels, 12, PixelData=None)
    floating.FloatPixelData = pixels.astype(np.float32).tobytes()
    double = dataset(pixels, 12, PixelData=None)
    double.DoubleFloatPixelData = pixels.astype(np.float64).tobytes()
    provider = dataset(pixels, 12, PixelData=None)
    provider.PixelDataProviderURL = "file:///etc/passwd"
    long = dataset(shades(16).astype(np.uint32), 32)
    bits = dataset(pixels, 12)
    bits.BitsAllocated = bits.BitsStored = 1
    bits.HighBit = 0
    video = dataset(pixels, 12)
    j2k = compress(dataset(pixels, 12), uid.JPEG2000Lossless)
    grey = texture(96, 131)
    table = lookup_table(0, np.arange(4096), 16)
    table.LUTDescriptor = [5000, 0, 16]
    return {
        "colour": (encode(colour), "not_radiograph", "RGB"),
        "palette": (encode(palette), "not_radiograph", "PALETTE COLOR"),
        "several frames": (encode(frames), "not_radiograph", "3 frames"),
        "floats": (encode(floating), "not_radiograph", "floating point"),
        "doubles": (encode(double), "not_radiograph", "floating point"),
        "no pixels": (make(PixelData=None), "no_pixels", "7FE0,0010"),
        "pixels elsewhere": (encode(provider), "no_pixels", "7FE0,0010"),
        "32 bits": (encode(long), "unsupported", "32 bits stored in 32"),
        "1 bit": (encode(bits), "unsupported", "1 bits stored in 1"),
        "left-aligned": (make(HighBit=15), "unsupported", "up to bit 15"),
        "video": (wrap(video, uid.MPEG2MPML, bytes(100)), "unsupported", "MPEG2"),
        "unknown form": (_renamed(make(), "1.2.3.4"), "unsupported", "unknown"),
        "JPEG of 12 bits": (
            jpeg(dataset(grey), uid.JPEGExtended12Bit, grey).replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc0\0\x0b\x0c"),
            "unsupported",
            "12 bits",
        ),
        "no photometric interpretation": (make(PhotometricInterpretation=None), "unsupported", "0028,0004"),
        "no size": (make(Rows=None), "damaged", "131 x 0"),
        "no height": (make(Rows=0), "damaged", "131 x 0"),
        "too few pixels": (make(Rows=97), "damaged", "25,152 of 25,414 bytes"),
        "another size in the codestream": (
            j2k.replace(b"\0\0\0\x83\0\0\0\x60", b"\0\0\0\x60\0\0\0\x83"),
            "damaged",
            "96 x 131",
        ),
        "narrow window": (make(WindowCenter=9, WindowWidth="0.5"), "damaged", "0028,1051"),
        "narrow exact window": (
            make(WindowCenter=9, WindowWidth=-3, VOILUTFunction="LINEAR_EXACT"),
            "damaged",
            "0028,1051",
        ),
        "unknown function": (make(WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"), "unsupported", "0028,1056"),
        "short table": (make(VOILUTSequence=Sequence([table])), "damaged", "4096 of 5000"),
        "too high": (make(Rows=60_000), "too_large", "131 x 60000"),
        "too wide": (make(Columns=4001), "too_large", "4001 x 96"),
        "not inflated to its end": (
            encode(dataset(pixels, 12), uid.DeflatedExplicitVRLittleEndian)[:-2000],
            "damaged",
            "end",
        ),
    }


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_a_window_that_is_no_number_fails() -> None:
    for width in ("NaN", "inf"):
        reason, message = reason_of(encode(dataset(shades(12), 12, WindowCenter=9, WindowWidth=width)))
        assert (reason, "WindowWidth" in message) == ("damaged", True)


def test_what_is_no_radiograph_says_what_it_is() -> None:
    for name, (data, reason, part) in _refused().items():
        found, message = reason_of(data)
        assert (found, part in message) == (reason, True), f"{name}: {found}, {message}"


def test_a_bomb_does_not_go_off() -> None:
    grey = texture(96, 131)
    header = encode(dataset(grey), uid.DeflatedExplicitVRLittleEndian)
    start = 132 + 12 + struct.unpack_from("<L", header, 140)[0]
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = b"".join(squeeze.compress(bytes(2**20)) for _ in range(400)) + squeeze.flush()
    j2k = compress(dataset(shades(12), 12), uid.JPEG2000Lossless)
    lossy = jpeg(dataset(grey), uid.JPEGBaseline8Bit, grey)
    assert j2k.count(b"\0\0\0\x83\0\0\0\x60") >= 1
    bombs = {
        "deflated": header[:start] + body,
        "JPEG 2000": j2k.replace(b"\0\0\0\x83\0\0\0\x60", b"\0\0\xea\x60\0\0\xea\x60"),
        "JPEG": lossy.replace(b"\xff\xc0\0\x0b\x08\0\x60\0\x83", b"\xff\xc0\0\x0b\x08\xea\x60\xea\x60"),
    }
    found = {}
    tracemalloc.start()
    try:
        for name, bomb in bombs.items():
            assert len(bomb) < 3_000_000
            found[name] = reason_of(bomb, max_side=2000)
            # 400 MB, 7.2 GB and 3.6 GB if they went off.
            assert tracemalloc.get_traced_memory()[1] < 150e6, name
    finally:
        tracemalloc.stop()
    assert found["deflated"][0] == "too_large"
    for name in ("JPEG 2000", "JPEG"):
        reason, message = found[name]
        assert (reason, "60000 x 60000" in message) == ("damaged", True), message


def _whole(folder: Path) -> dict[str, bytes]:
    """One file of each form."""
    pixels, grey = shades(12), texture(96, 131)
    folder.mkdir(exist_ok=True)
    return {
        "implicit": encode(dataset(pixels, 12), uid.ImplicitVRLittleEndian),
        "explicit": encode(dataset(pixels, 12)),
        "big endian": encode(dataset(pixels, 12), uid.ExplicitVRBigEndian),
        "deflated": encode(dataset(pixels, 12), uid.DeflatedExplicitVRLittleEndian),
        "rle": compress(dataset(pixels, 12), uid.RLELossless),
        "jpeg-ls": compress(dataset(pixels, 12), uid.JPEGLSLossless),
        "jpeg 2000": compress(dataset(pixels, 12), uid.JPEG2000Lossless),
        "lossless jpeg": lossless_jpeg(dataset(pixels, 12), uid.JPEGLosslessSV1, folder),
        "jpeg": jpeg(dataset(grey), uid.JPEGBaseline8Bit, grey),
    }


def test_a_file_cut_anywhere_fails(tmp_path: Path) -> None:
    reasons = set()
    for name, data in _whole(tmp_path).items():
        # A data set ends with its pixels; those in fragments with a delimiter of 8 bytes.
        for end in [*np.linspace(150, len(data) - 10, 40, dtype=int).tolist(), len(data) - 9, len(data) - 2]:
            reason, message = reason_of(data[:end])
            assert reason in ("damaged", "no_pixels"), f"{name} cut at {end}: {reason}, {message}"
            reasons.add(reason)
    assert reasons == {"damaged", "no_pixels"}


@pytest.mark.parametrize("end", [bytes(8), bytes(500), b"\xfe\xff\xdd\xe0\xff\xff\xff\xff"])
def test_fragments_may_end_in_zeros(tmp_path: Path, end: bytes) -> None:
    for name, data in _whole(tmp_path).items():
        if pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID.is_encapsulated:
            assert (decode(data[:-8] + end, max_side=LIMIT) == decode(data, max_side=LIMIT)).all(), name


def test_a_delimiter_inside_a_fragment_is_none() -> None:
    grey = texture(96, 131)
    lossy = cv2.imencode(".jpg", grey)[1].tobytes()
    comment = b"\xff\xfe\x00\x10" + SEQUENCE_END + EMPTY + b"abcdef"
    data = wrap(dataset(grey), uid.JPEGBaseline8Bit, lossy[:2] + comment + lossy[2:])
    assert (decode(data, max_side=LIMIT) == stretch(cv2.imdecode(np.frombuffer(lossy, np.uint8), 0))).all()


def test_a_codestream_cut_inside_its_wrapping_fails(tmp_path: Path) -> None:
    for name, data in _whole(tmp_path).items():
        made = pydicom.dcmread(io.BytesIO(data))
        if made.file_meta.TransferSyntaxUID.is_encapsulated:
            codestream = pydicom.encaps.get_frame(made.PixelData, 0, number_of_frames=1)
            for part in (0.3, 0.6, 0.9, 0.99):
                cut = wrap(made, made.file_meta.TransferSyntaxUID, codestream[: int(len(codestream) * part) // 2 * 2])
                assert reason_of(cut)[0] == "damaged", (name, part)


# Privacy


NAME, PATIENT_ID = "Quennell^Wilhelmina", "ID-77319051"
TEXTS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")


def tell(text: str) -> bool:
    """Whether a text gives away the planted patient."""
    return "Quennell" in text or "Wilhelmina" in text or "77319051" in text


def _of_a_patient(pixels: NDArray[Any], parsed: str | None = None, *, groups: range = range(0x0008, 0x0029)) -> bytes:
    """A file with the patient in every text element of these groups; of those that are parsed, in the named one."""
    made = dataset(pixels, 12, WindowCenter=1800, WindowWidth=1500, VOILUTFunction="LINEAR", **RESCALED)
    made.NumberOfFrames = 1
    kept = {int(element.tag) for element in made} | {0x00080005}
    item = Dataset()
    for inside in (made, item):
        for tag, (vr, *_) in DicomDictionary.items():
            if vr in TEXTS and tag not in kept and tag >> 16 in groups:
                inside.add_new(tag, "LT", f"{NAME} {PATIENT_ID}")
            inside.add_new(0x00091001, "LT", NAME)
        inside.add_new(0x00090010, "LO", PATIENT_ID)
    made.RequestAttributesSequence = Sequence([item])
    made.VOILUTSequence = Sequence([lookup_table(0, np.arange(4096), 12)])
    made.VOILUTSequence[0].LUTExplanation = NAME
    made.file_meta.SourceApplicationEntityTitle = PATIENT_ID
    if parsed:
        if parsed.startswith("Window") or parsed == "VOILUTFunction":
            del made.VOILUTSequence
        if parsed != "TransferSyntaxUID":
            made.add_new(parsed, "LT", f"{NAME} {PATIENT_ID}")
        else:
            return _renamed(encode(made), PATIENT_ID)
    return encode(made)


PARSED = (
    *("TransferSyntaxUID", "SpecificCharacterSet", "PhotometricInterpretation", "NumberOfFrames", "WindowCenter"),
    *("WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept"),
)


def _files_of_a_patient() -> dict[str, bytes]:
    """Good files and bad ones."""
    rng = np.random.default_rng(5)
    good = _of_a_patient(shades(12))
    files = {"good": good, "full": _of_a_patient(shades(12), groups=range(0x0008, 0x7FE0))}
    files |= {f"in {name}": _of_a_patient(shades(12), name) for name in PARSED}
    for end in np.linspace(10, len(good) - 1, 30, dtype=int):
        files[f"cut at {end}"] = good[:end]
    pixels = good.index(b"\xe0\x7f\x10\0")
    for index in range(200):
        mutant = bytearray(good)
        for position in rng.integers(128, pixels, 20 if index % 2 else 3):
            mutant[position : position + 1] = rng.bytes(1)
        files[f"mutant {index}"] = bytes(mutant)
    # What is parsed begins with 0028: damage aimed at it makes values that no file should have.
    start = good.index(b"\x28\0\x02\0US")
    for index in range(200):
        mutant = bytearray(good)
        for position in rng.integers(start, pixels, 4):
            part = rng.integers(3)
            mutant[position : position + 4] = (NAME.encode()[:4], rng.bytes(4), b"\xff\xff\xff\xff")[part]
        files[f"mutant in 0028 {index}"] = bytes(mutant)
    return files


def test_nothing_of_a_patient_is_ever_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(action="ignore"):
        files = _files_of_a_patient()
    caplog.clear()
    capfd.readouterr()
    assert all(tell(data.decode("latin-1")) for name, data in files.items() if not name.startswith("cut"))
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    reasons = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, data in files.items():
            try:
                decode(data, max_side=LIMIT)
                reasons.append(None)
            except ReadError as error:
                reasons.append(error.reason)
                told += [f"{name}: {error}", repr(error), repr(error.__cause__)]
        for name in ("good", "full", *(f"in {name}" for name in PARSED), "cut at 10", "mutant 1", "mutant in 0028 1"):
            path = tmp_path / str(len(told))
            path.write_bytes(files[name])
            row = read_file(path)
            told.append(repr({key: value for key, value in row.items() if key != "image"}))
            if name in ("good", "full"):
                assert row["status"] == "ok", row["error"]
    output = capfd.readouterr()
    told += [output.out, output.err, caplog.text, *(str(warning.message) for warning in caught)]
    assert not [text for text in told if tell(text)]
    # Both kinds were looked at.
    assert reasons.count(None) > 50
    assert reasons.count("damaged") > 50


def test_warnings_and_logs_of_others_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    good = encode(dataset(shades(12), 12))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        grey = list(pool.map(lambda _: decode(good, max_side=LIMIT), range(40)))
    assert warnings.filters == before
    assert all((one == grey[0]).all() for one in grey)
    logging.getLogger("pydicom").warning("the user's own")
    assert "the user's own" in caplog.text


# Damage


def test_whatever_the_bytes_a_dicom_file_gives_an_image_or_a_known_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    whole = list(_whole(tmp_path / "whole").values())
    for index in range(int(os.environ.get("CHEXMASK_FUZZ", "360"))):
        path = tmp_path / "mutant"
        # After the preamble and the mark that make it DICOM.
        path.write_bytes(mutate(whole[index % len(whole)], whole[int(rng.integers(len(whole)))], rng, first=132))
        row = read_file(path)
        assert row["status"] == "ok" or row["reason"] in set(record.REASONS) - {"internal"}, row["error"]


def test_the_public_function_reads_dicom(tmp_path: Path) -> None:
    path = tmp_path / "image.dicom"
    pixels = shades(12, height=300, width=200)
    path.write_bytes(encode(dataset(pixels, 12, PhotometricInterpretation="MONOCHROME1")))
    image = read_image(str(path), source="vindr-cxr")
    assert (image.height, image.width, image.image.shape) == (300, 200, (1024, 1024))
