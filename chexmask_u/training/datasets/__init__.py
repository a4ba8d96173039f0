"""The annotated datasets: those of an official form, each a module here, and any other folder.

A module of this package that defines `FORM` is a dataset of an official form; to add one, add its file. Their landmarks
are those published for it, in pixels of the 1024 frame. Any other folder holds ``images/*.png`` or ``*.jpg``, and
landmarks or ``masks/<organ>/<name>.png``. Files and folders of landmarks are those of `annotations.read_landmarks`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.images.preparation import ReadImage
from chexmask_u.settings import AnnotatedSettings
from chexmask_u.steps.read import read_image
from chexmask_u.training.annotations import Annotation, files_below, name_of, read_landmarks, read_masks
from chexmask_u.training.datasets.base import Form


def discover() -> dict[str, Form]:
    """The `FORM` of every module in this package that defines one, by its name, sorted."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    found = [module.FORM for module in modules if hasattr(module, "FORM")]
    return {form.name: form for form in sorted(found, key=lambda form: form.name)}


FORMS: dict[str, Form] = discover()

# Masks and landmark plots have the names of images, in folders of their own.
_FOLDER = Form("", r"\.(png|jpe?g)$", of_frame=False)
_NO_IMAGES = ("masks", "landmarks", "ManualMask", "mask")
_IMAGES = "images"


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
        """URIs of the images by name; more than one where a name is not unique.

        Of a name that is there several times the one below `images/` is meant, if there is one: a folder of overlays or
        of other masks beside it repeats the names of all images.
        """
        found: dict[str, list[str]] = {}
        meant: dict[str, list[str]] = {}
        start = len(self.folder) if storage.is_local(self.folder) else len(storage.filesystem(self.folder)[1])
        for uri in files_below(self.folder):
            below = (uri if storage.is_local(uri) else storage.filesystem(uri)[1])[start:].lstrip("/")
            parts = PurePosixPath(below).parts
            hidden = any(part.startswith(".") for part in parts)
            if re.search(self.form.image, below, re.IGNORECASE) and not hidden and parts[0] not in _NO_IMAGES:
                found.setdefault(name_of(uri), []).append(uri)
                if parts[0] == _IMAGES:
                    meant.setdefault(name_of(uri), []).append(uri)
        return found | meant

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
            raise InputError(f"--data {value}: no such folder{storage.nearest(url)}")
        if name in (dataset.name for dataset in found):
            raise InputError(f"--data {value}: a dataset called {name} is given already; rename the folder")
        landmarks = given.pop(name, None) or _landmarks_of(folder)
        if landmarks is not None and not storage.filesystem(landmarks)[0].exists(storage.filesystem(landmarks)[1]):
            raise InputError(f"--landmarks {name}={landmarks}: no such file or folder{storage.nearest(landmarks)}")
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
