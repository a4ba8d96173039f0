"""Thousands of mutated images through the decoder's process: each is ok or failed, in bounded time and memory."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from chexmask_u import record
from chexmask_u.images.sandbox import Sandbox
from chexmask_u.record import ReadError
from tests.support import dicom_files
from tests.support.mutants import mutate

MAX_SIDE = 3000
SECONDS = 20.0
MIB = 2**20

# What a mutant may end for; a mutant that needs more, such as time or memory, is a finding.
EXPECTED = {"unsupported", "damaged", "too_large", "empty", "blank", "no_pixels", "not_radiograph"}


def texture(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    noise = np.random.default_rng(0).random(shape).astype(np.float32)
    return (cv2.blur(noise, (5, 5)) * np.iinfo(dtype).max).astype(dtype)


def seeds() -> dict[str, bytes]:
    """Small valid images of every kind that is read, by name."""
    grey, colour = texture((60, 70)), texture((60, 70, 3))
    exif = io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(grey).save(exif, "JPEG", exif=tags.tobytes(), dpi=(72, 72), icc_profile=b"profile" * 20)
    indexed, interlaced = io.BytesIO(), io.BytesIO()
    Image.fromarray(colour).quantize(16).save(indexed, "PNG")
    Image.fromarray(colour).save(interlaced, "PNG", pnginfo=None, optimize=True)

    def encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
        return cv2.imencode(suffix, image, options)[1].tobytes()

    return {
        "png": encode(".png", grey),
        "png16": encode(".png", texture((60, 70), np.uint16)),
        "png-colour": interlaced.getvalue(),
        "png-palette": indexed.getvalue(),
        "jpeg": encode(".jpg", grey),
        "jpeg-colour": encode(".jpg", colour),
        "jpeg-progressive": encode(".jpg", colour, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "jpeg-restarts": encode(".jpg", grey, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        "jpeg-exif": exif.getvalue(),
        **dicoms(grey),
    }


def dicoms(grey: np.ndarray) -> dict[str, bytes]:
    def plain() -> Dataset:
        return dicom_files.dataset(texture((60, 70), np.uint16) >> 4, bits=12)

    with tempfile.TemporaryDirectory() as folder:
        lossless = dicom_files.lossless_jpeg(plain(), uid.JPEGLosslessSV1, Path(folder))
    return {
        "dicom": dicom_files.encode(plain()),
        "dicom-implicit": dicom_files.encode(plain(), uid.ImplicitVRLittleEndian),
        "dicom-deflated": dicom_files.encode(plain(), uid.DeflatedExplicitVRLittleEndian),
        "dicom-rle": dicom_files.compress(plain(), uid.RLELossless),
        "dicom-jpeg-ls": dicom_files.compress(plain(), uid.JPEGLSLossless),
        "dicom-jpeg2000": dicom_files.compress(plain(), uid.JPEG2000Lossless),
        "dicom-jpeg": dicom_files.jpeg(dicom_files.dataset(grey), uid.JPEGBaseline8Bit, grey),
        "dicom-jpeg-lossless": lossless,
    }


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    originals = seeds()
    names = list(originals)
    for index in range(count):
        name = names[index % len(names)]
        yield name, mutate(originals[name], originals[names[int(rng.integers(len(names)))]], rng)


def peak_mib(pid: int) -> float:
    """Most memory that a process has had at once; 0 where nobody says."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def run(count: int, seed: int, seconds: float) -> None:
    box = Sandbox(seconds=seconds)
    outcomes: dict[str, Counter[str]] = {}
    slowest, slowest_name = 0.0, ""
    children: set[int] = set()
    peak = 0.0
    errors: list[str] = []
    try:
        for name, data in mutants(count, seed):
            start = time.perf_counter()
            try:
                image = box.read(data, source="padchest", max_side=MAX_SIDE).image
            except ReadError as error:
                reason = error.reason
                if reason not in EXPECTED:
                    errors.append(f"{name}: {reason}: {error}")
            else:
                reason = "ok"
                assert image.shape == (1024, 1024)
            taken = time.perf_counter() - start
            if taken > slowest and children:
                slowest, slowest_name = taken, f"{name} ({reason})"
            children.add(box._child.pid if box._child else 0)
            outcomes.setdefault(name, Counter())[reason] += 1
        peak = peak_mib(box._child.pid) if box._child else 0.0
    finally:
        box.close()
    total = sum(outcomes.values(), Counter())
    for name, counts in sorted(outcomes.items()):
        print(f"{name:24} {dict(counts.most_common())}")
    print(
        f"{count} mutants: {dict(total.most_common())}; slowest {slowest:.2f} s, {slowest_name}; "
        f"peak {peak:.0f} MiB; decoder processes {len(children)}; {errors[:10]}"
    )
    assert sum(total.values()) == count
    assert set(total) <= {"ok", *record.REASONS}
    assert slowest < seconds + 5
    assert peak < 1200
    assert not errors
    # The mutants are neither all alike nor all spared.
    assert total["ok"] > count / 50
    assert total["damaged"] > count / 10


def test_600_mutants_end_ok_or_with_a_reason() -> None:
    run(600, seed=2024, seconds=SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_20_000_mutants_end_ok_or_with_a_reason() -> None:
    run(int(os.environ.get("FUZZ_COUNT", "20000")), seed=int(os.environ.get("FUZZ_SEED", "1")), seconds=SECONDS)
