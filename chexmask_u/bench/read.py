"""Decoding and preparing one image on one core, per source format, against the bare library calls it must make."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pixel_array

from chexmask_u.anatomy import FRAME
from chexmask_u.bench.timing import Row, as_text, compare, one_thread
from chexmask_u.images.preparation import read_bytes
from chexmask_u.sources.synthetic import draw

# What CheXpert, MIMIC-CXR-JPG, PadChest and VinDr-CXR are like.
HEIGHT, WIDTH = 2500, 3000

_MAX_SIDE = 10_000

# Names of rows: what most radiographs are like, and what reading is bounded by.
TYPICAL, SLOWEST = f"JPEG, {WIDTH} x {HEIGHT}", f"PNG, 16 bit, {WIDTH} x {HEIGHT}, cropped"


@dataclass(frozen=True)
class SourceFile:
    """A file as a source has it, and the library calls that nobody can do without to prepare it."""

    name: str
    source: str
    data: bytes
    bare: Callable[[bytes], object]


def source_files(only: str | None = None) -> list[SourceFile]:
    """One file of each kind, or the one of that name, drawn and encoded here."""
    small, large = draw(0, side=FRAME).image, draw(0, side=WIDTH).image[:HEIGHT]
    deep = twelve_bit(large)
    size = f"{WIDTH} x {HEIGHT}"
    through_jpeg, compressed = f"{TYPICAL}, cropped, through JPEG", f"DICOM, JPEG 2000, {size}"
    kinds: list[tuple[str, str, Callable[[], bytes], Callable[[bytes], object]]] = [
        (f"JPEG, {FRAME} x {FRAME}", "chexpert", lambda: _encode(".jpg", small), _bare),
        (TYPICAL, "chexpert", lambda: _encode(".jpg", large), _bare),
        (through_jpeg, "mimic-cxr-jpg", lambda: _encode(".jpg", large), _bare_through_jpeg),
        (f"PNG, 8 bit, {FRAME} x {FRAME}", "chestx-ray8", lambda: _encode(".png", small), _bare),
        (SLOWEST, "padchest", lambda: _encode(".png", deep), _bare_cropped),
        (f"DICOM, 12 bit, {size}", "vindr-cxr", lambda: _dicom(deep), _bare_dicom),
        (compressed, "vindr-cxr", lambda: _dicom(deep, uid.JPEG2000Lossless), _bare_dicom),
    ]
    return [SourceFile(name, source, data(), bare) for name, source, data, bare in kinds if only in (None, name)]


def twelve_bit(image: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The image with 12 bits of grey and a detector's noise in the lowest, which compress as such images do."""
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(image * 16.0 + noise, 0, 4095).astype(np.uint16)


def measure(repeats: int = 15, only: str | None = None) -> list[Row]:
    """A row per file, or for the one of that name: reading it, against the bare calls."""
    with one_thread():
        return [_measure(file, repeats) for file in source_files(only)]


def _measure(file: SourceFile, repeats: int) -> Row:
    row = compare(
        file.name,
        lambda: read_bytes(file.data, source=file.source, max_side=_MAX_SIDE),
        lambda: file.bare(file.data),
        repeats=repeats,
        clock=time.thread_time,
    )
    return row | {"source": file.source, "file_bytes": len(file.data)}


def _encode(suffix: str, image: NDArray[Any]) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def _dicom(pixels: NDArray[np.uint16], syntax: uid.UID = uid.ExplicitVRLittleEndian) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=["chexmask-u"])
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 3500
    dataset.PixelData = pixels.tobytes()
    if syntax.is_compressed:
        dataset.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _bare(data: bytes) -> object:
    return _square(_decoded(data))


def _bare_through_jpeg(data: bytes) -> object:
    return cv2.imdecode(cv2.imencode(".jpg", _bare_cropped(data))[1], cv2.IMREAD_GRAYSCALE)


def _bare_cropped(data: bytes) -> NDArray[Any]:
    image = _decoded(data)
    left, top, width, height = cv2.boundingRect(cv2.threshold(image, 1, 255, cv2.THRESH_BINARY)[1])
    return _square(image[top : top + height, left : left + width])


def _decoded(data: bytes) -> NDArray[Any]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    assert image is not None
    if image.dtype == np.uint16:
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    return np.asarray(image)


def _bare_dicom(data: bytes) -> object:
    """Decoding alone: VOI LUT and 8 bits, for which pydicom's calls take longer than all else, come on top of it."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    pixels = pixel_array(dataset, decoding_plugin="pylibjpeg" if compressed else "")
    return _square(pixels)


def _square(image: NDArray[Any]) -> NDArray[Any]:
    height, width = image.shape
    above, beside = max(width - height, 0), max(height - width, 0)
    around = (above // 2, above - above // 2, beside // 2, beside - beside // 2)
    square = cv2.copyMakeBorder(image, *around, cv2.BORDER_CONSTANT, value=(0,))
    return cv2.resize(square, (FRAME, FRAME), interpolation=cv2.INTER_LINEAR)


if __name__ == "__main__":
    print(as_text(measure()))
