"""The annotated datasets: where images and annotations lie in each one's official form, and how its images are read.

| dataset | images | annotations |
|---|---|---|
| jsrt | ``JPCLN001.IMG``, ``JPCNN001.IMG`` (2048 x 2048, 12 bits) | published landmarks |
| montgomery | ``CXR_png/MCUCXR_0001_0.png`` | published landmarks, or ``ManualMask/leftMask`` and ``rightMask`` |
| shenzhen | ``CXR_png/CHNCXR_0001_0.png`` | published landmarks |
| padchest | ``*.png`` (16 bits), in any folders | published landmarks |
| any other folder | ``images/*.png`` or ``*.jpg`` | landmarks or ``masks/<organ>/<name>.png`` |

Published landmarks are in pixels of the 1024 frame. Each dataset's file or folder of landmarks is that of
`annotations.read_landmarks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.images.fetch import fetch
from chexmask_u.images.letterbox import prepare
from chexmask_u.images.preparation import ReadImage
from chexmask_u.record import ReadError
from chexmask_u.settings import AnnotatedSettings
from chexmask_u.steps.read import read_image
from chexmask_u.training.annotations import Annotation, files_below, find_masks, name_of, read_landmarks, read_masks

_JSRT_SIDE = 2048
_JSRT_WHITE = 4095


def read_jsrt(uri: str, max_side: int) -> ReadImage:
    """A JSRT file: 2048 x 2048 big-endian 16-bit words without a header, 12 bits used, 0 for white.

    Values are inverted and scaled from 0-4095 to 0-255.

    Raises:
        ReadError: if the file has another length or range.
    """
    data = fetch(uri, max_bytes=2 * _JSRT_SIDE**2)
    if len(data) != 2 * _JSRT_SIDE**2:
        raise ReadError("damaged", f"{len(data):,} bytes, not the {2 * _JSRT_SIDE**2:,} of a JSRT image")
    values = np.frombuffer(data, ">u2").reshape(_JSRT_SIDE, _JSRT_SIDE)
    if values.max() > _JSRT_WHITE:
        raise ReadError(
            "damaged", f"values to {values.max()}, but JSRT images have 12 bits; is the byte order its own?"
        )
    grey = np.rint((_JSRT_WHITE - values.astype(np.float32)) * np.float32(255 / _JSRT_WHITE)).astype(np.uint8)
    image, letterbox = prepare(grey)
    return ReadImage(image, _JSRT_SIDE, _JSRT_SIDE, letterbox)


def _montgomery_masks(folder: str) -> dict[str, list[str]]:
    files = [file for file in files_below(storage.join(folder, "ManualMask")) if file.lower().endswith(".png")]
    return {
        organ: [file for file in files if PurePosixPath(file).parent.name == side]
        for organ, side in (("right_lung", "rightMask"), ("left_lung", "leftMask"))
    }


def _folder_masks(folder: str) -> dict[str, list[str]]:
    return find_masks(storage.join(folder, "masks"))


@dataclass(frozen=True)
class Form:
    """The form of a dataset: which files are images, how they are read, and where landmarks and masks lie.

    Attributes:
        image: regular expression that the path of an image below the folder matches.
        source: the `sources` name whose preparation its images get.
        of_frame: whether landmarks are in pixels of the 1024 frame by default, else of the file.
        masks: mask files by organ, of a dataset's folder.
        reader: reads what is no PNG, JPEG or DICOM.
    """

    image: str
    source: str = "folder"
    of_frame: bool = True
    masks: Callable[[str], dict[str, list[str]]] = _folder_masks
    reader: Callable[[str, int], ReadImage] | None = None


FORMS: dict[str, Form] = {
    "jsrt": Form(r"(^|/)JPC[LN]N\d{3}\.IMG$", reader=read_jsrt),
    "montgomery": Form(r"(^|/)MCUCXR_\d{4}_[01]\.png$", masks=_montgomery_masks),
    "shenzhen": Form(r"(^|/)CHNCXR_\d{4}_[01]\.png$"),
    "padchest": Form(r"\.png$", source="padchest"),
}

# Masks and landmark plots have the names of images, in folders of their own.
_FOLDER = Form(r"\.(png|jpe?g)$", of_frame=False)
_NO_IMAGES = ("masks", "landmarks", "ManualMask", "mask")


@dataclass(frozen=True)
class Dataset:
    """One annotated dataset as given on the command line.

    Attributes:
        name: what it is called in reports; one of `FORMS`, or its folder's name.
        folder: where its images lie.
        landmarks: landmark file or folder, or None for masks.
        landmarks_in: "original" or "frame": the pixels that landmarks are in.
    """

    name: str
    form: Form
    folder: str
    landmarks: str | None
    landmarks_in: str

    def images(self) -> dict[str, list[str]]:
        """URIs of the images by name; more than one where a name is not unique."""
        found: dict[str, list[str]] = {}
        start = len(self.folder) if storage.is_local(self.folder) else len(storage.filesystem(self.folder)[1])
        for uri in files_below(self.folder):
            below = (uri if storage.is_local(uri) else storage.filesystem(uri)[1])[start:].lstrip("/")
            parts = PurePosixPath(below).parts
            hidden = any(part.startswith(".") for part in parts)
            if re.search(self.form.image, below, re.IGNORECASE) and not hidden and parts[0] not in _NO_IMAGES:
                found.setdefault(name_of(uri), []).append(uri)
        return found

    def annotations(self) -> list[tuple[str, Annotation]]:
        """Names and annotations, as many as there are."""
        return read_landmarks(self.landmarks) if self.landmarks else read_masks(self.form.masks(self.folder))

    def read(self, uri: str, max_side: int) -> ReadImage:
        """Read and prepare one image.

        Raises:
            ReadError: with the reason why not.
        """
        if self.form.reader is not None:
            return self.form.reader(uri, max_side)
        return read_image(uri, source=self.form.source, max_side=max_side)


def datasets(settings: AnnotatedSettings) -> list[Dataset]:
    """The datasets that the settings name, each with the place of its annotations.

    Raises:
        InputError: if a folder is not there, a name is given twice, or there are no annotations.
    """
    given = dict(_assignment(value, "--landmarks") for value in settings.landmarks)
    found: list[Dataset] = []
    for value in settings.data:
        name, equals, url = value.partition("=")
        if not equals or name not in FORMS:
            url = value
            name = PurePosixPath(storage.normalise(value)).name
        form, folder = FORMS.get(name if equals else "", _FOLDER), storage.normalise(url)
        fs, path = storage.filesystem(folder)
        if not fs.isdir(path):
            raise InputError(f"--data {value}: no such folder")
        if name in (dataset.name for dataset in found):
            raise InputError(f"--data {value}: a dataset called {name} is given already; rename the folder")
        landmarks = given.pop(name, None) or _landmarks_of(folder)
        if landmarks is not None and not storage.filesystem(landmarks)[0].exists(storage.filesystem(landmarks)[1]):
            raise InputError(f"--landmarks {name}={landmarks}: no such file or folder")
        if landmarks is None and not any(form.masks(folder).values()):
            raise InputError(
                f"--data {value}: holds no landmarks.npz, landmarks.csv, landmarks/ or masks/right_lung/ (left_lung/, "
                f"heart/); say --landmarks {name}=PATH"
            )
        landmarks_in = settings.landmarks_in
        if landmarks_in == "auto":
            landmarks_in = "frame" if form.of_frame else "original"
        found.append(Dataset(name, form, folder, landmarks, landmarks_in))
    if given:
        raise InputError(f"--landmarks {next(iter(given))}=...: no --data is called that")
    return found


def _landmarks_of(folder: str) -> str | None:
    for name in ("landmarks.npz", "landmarks.csv", "landmarks"):
        url = storage.join(folder, name)
        fs, path = storage.filesystem(url)
        if fs.exists(path):
            return url
    return None


def _assignment(value: str, flag: str) -> tuple[str, str]:
    name, equals, url = value.partition("=")
    if not equals or not name or not url:
        raise InputError(f"{flag} must be DATASET=PATH, not {value!r}")
    return name, storage.normalise(url)
