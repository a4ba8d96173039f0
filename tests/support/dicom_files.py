"""DICOM files made here: any pixels, elements and transfer syntax, never a patient's."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)


def dataset(pixels: NDArray[Any], bits: int | None = None, **elements: Any) -> Dataset:
    """One frame of grey values, uncompressed, with further elements by keyword; None leaves one out."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = DigitalXRayImageStorageForPresentation
    made.SOPInstanceUID = generate_uid(entropy_srcs=["chexmask-u"])
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape
    made.BitsAllocated = 8 * pixels.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    made["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for name, value in elements.items():
        if value is None:
            del made[name]
        else:
            setattr(made, name, value)
    return made


def encode(made: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The file of a data set whose pixels are laid out as `syntax` asks; compressed by `compress`, or not at all."""
    made.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    order: Any = {} if syntax.is_encapsulated else {"implicit_vr": syntax.is_implicit_VR}
    if not syntax.is_little_endian:
        pixels = np.frombuffer(made.PixelData, f"<u{made.BitsAllocated // 8}")
        made.PixelData = pixels.byteswap().tobytes()
    if order:
        order["little_endian"] = syntax.is_little_endian
    pydicom.dcmwrite(buffer, made, enforce_file_format=True, **order)
    return buffer.getvalue()


def compress(made: Dataset, syntax: UID) -> bytes:
    """The file, compressed without loss by RLE, JPEG-LS or JPEG 2000."""
    plugin = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}[syntax]
    made.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    return encode(made, syntax)


def wrap(made: Dataset, syntax: UID, codestream: bytes) -> bytes:
    """The file with a codestream made elsewhere, in fragments."""
    made.PixelData = encapsulate([codestream], fragments_per_frame=2)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    return encode(made, syntax)


def jpeg(made: Dataset, syntax: UID, grey: NDArray[np.uint8]) -> bytes:
    """The file with `grey` as a lossy JPEG of 8 bits."""
    return wrap(made, syntax, cv2.imencode(".jpg", grey)[1].tobytes())


_GDCM = """
import sys, gdcm
source, target, syntax = sys.argv[1:]
reader = gdcm.ImageReader()
reader.SetFileName(source)
assert reader.Read()
change = gdcm.ImageChangeTransferSyntax()
change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
change.SetInput(reader.GetImage())
assert change.Change()
writer = gdcm.ImageWriter()
writer.SetFile(reader.GetFile())
writer.SetImage(change.GetOutput())
writer.SetFileName(target)
assert writer.Write()
"""


def lossless_jpeg(made: Dataset, syntax: UID, folder: Path) -> bytes:
    """The file with pixels in lossless JPEG (process 14) or JPEG-LS, as GDCM writes them."""
    source, target = folder / "uncompressed.dcm", folder / "compressed.dcm"
    source.write_bytes(encode(made))
    subprocess.run([sys.executable, "-c", _GDCM, str(source), str(target), str(syntax)], check=True)
    return target.read_bytes()


def lookup_table(first: int, entries: NDArray[Any], depth: int, *, packed: bool = False) -> Dataset:
    """The item of a lookup table's sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, depth])
    if packed:
        item.add_new("LUTData", "OW", entries.astype(np.uint8).tobytes())
    else:
        item.add_new("LUTData", "US", entries.astype(int).tolist())
    return item
