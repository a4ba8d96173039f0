"""Landmark files and mask files -> landmarks by image name."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from chexmask_u import storage
from chexmask_u.anatomy import LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.errors import InputError
from chexmask_u.images.decode import decode
from chexmask_u.manifests import listing
from chexmask_u.record import ReadError
from chexmask_u.training.contour import mask_landmarks

# Folder names of the organs, in landmarks/ and masks/; RL, LL and H are how published landmark sets abbreviate them.
_ORGAN_FOLDERS = {"right_lung": ("right_lung", "RL"), "left_lung": ("left_lung", "LL"), "heart": ("heart", "H")}
_POINT_SUFFIXES = (".txt", ".csv", ".npy")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".img", ".dcm", ".dicom")


@dataclass(frozen=True)
class Annotation:
    """Landmarks of one image as they were found: nothing of it is checked yet.

    Attributes:
        load: gives float [n, 2], x then y, with NaN for organs that are not annotated (n is 120, or 94 for lungs
            alone), and height and width in pixels of the image that was annotated, where the file says so.
        of_pixels: whether the landmarks are in pixels of the image file, whatever --landmarks-in says (masks are).
    """

    load: Callable[[], tuple[NDArray[np.float64], tuple[int, int] | None]]
    of_pixels: bool = False


def name_of(file: str) -> str:
    """An image's name: that of its file, without folders and suffix."""
    path = PurePosixPath(file)
    return path.stem if path.suffix.lower() in _IMAGE_SUFFIXES else path.name


def read_landmarks(url: str) -> list[tuple[str, Annotation]]:
    """Names and annotations in a landmark file, or in a folder of them.

    - ``.npz``: ``names`` [N] and ``landmarks`` [N, 120, 2] (or [N, 94, 2]); ``height`` and ``width`` [N] if at hand.
    - ``.csv``: a column ``name``, columns ``height`` and ``width`` if at hand, and 240 (or 188) others that hold
      x0, y0, x1, y1 and so on.
    - folder: a ``.txt``, ``.csv`` or ``.npy`` per image, one point a row; either with all points, or in folders by
      organ (``right_lung`` or ``RL``, ``left_lung`` or ``LL``, ``heart`` or ``H``).

    An organ that is NaN, empty or absent is not annotated.

    Raises:
        InputError: if there is nothing of that form.
    """
    fs, path = storage.resolve(url)
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == ".npz":
        return _from_npz(url, fs.cat_file(path))
    if suffix == ".csv" and not fs.isdir(path):
        return _from_csv(url, fs.cat_file(path))
    files = [file for file in files_below(url) if PurePosixPath(file).suffix.lower() in _POINT_SUFFIXES]
    if not files:
        raise InputError(f"{url}: holds no landmarks; expected .npz, .csv, or a folder of .txt, .csv or .npy files")
    return _from_files(files)


def read_masks(organs: Mapping[str, Iterable[str]]) -> list[tuple[str, Annotation]]:
    """Names and annotations of mask images (not 0 inside), given the files of each organ by `anatomy.ORGANS`."""
    by_name: dict[str, dict[str, str]] = {}
    for organ, files in organs.items():
        for file in files:
            by_name.setdefault(name_of(file), {})[organ] = file
    return [(name, Annotation(_masks_loader(files), of_pixels=True)) for name, files in sorted(by_name.items())]


def find_masks(url: str) -> dict[str, list[str]]:
    """Mask files by organ in the folders of `url` that are called as organs are."""
    found: dict[str, list[str]] = {organ: [] for organ in ORGANS}
    for file in files_below(url):
        organ = _organ_of(file)
        if organ is not None and PurePosixPath(file).suffix.lower() in _IMAGE_SUFFIXES:
            found[organ].append(file)
    return found


def files_below(url: str) -> list[str]:
    """Paths or URLs of all files below a folder, sorted; none if it is not there, and a file alone.

    Raises:
        InputError: if something in it cannot be followed that may be a folder of them.
    """
    fs, path = storage.resolve(url)
    if not fs.isdir(path):
        return [url] if fs.exists(path) else []
    files = listing.files_below(url)
    # A file that cannot be opened is found out when it is read.
    folders = {below: why for below, why in files.lost.items() if not PurePosixPath(below).suffix}
    if folders:
        below, why = next(iter(folders.items()))
        raise InputError(f"{storage.join(url, below)}: is {why}; mend or delete it")
    return [storage.join(url, below) for below in sorted([*files.paths, *files.lost])]


def _masks_loader(files: dict[str, str]) -> Callable[[], tuple[NDArray[np.float64], tuple[int, int] | None]]:
    def load() -> tuple[NDArray[np.float64], tuple[int, int] | None]:
        landmarks = np.full((N_LANDMARKS, 2), np.nan)
        sizes: dict[tuple[int, int], str] = {}
        for organ, file in files.items():
            fs, path = storage.resolve(file)
            try:
                mask = decode(fs.cat_file(path), max_side=2**15)
            except ReadError as error:
                raise InputError(f"{PurePosixPath(file).name}: {error}") from error
            sizes.setdefault(mask.shape, organ)
            try:
                landmarks[LANDMARKS[organ]] = mask_landmarks(mask, organ)
            except ValueError as error:
                raise InputError(str(error)) from error
        if len(sizes) > 1:
            told = " and ".join(f"{width} x {height} ({organ})" for (height, width), organ in sizes.items())
            raise InputError(f"its masks have {told} pixels")
        return landmarks, next(iter(sizes), None)

    return load


def _from_npz(url: str, data: bytes) -> list[tuple[str, Annotation]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            content = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{url}: is no .npz archive of plain arrays ({storage.explain(error)})") from error
    missing = {"names", "landmarks"} - content.keys()
    if missing:
        raise InputError(f"{url}: has no array {' and no '.join(sorted(missing))}; it has {', '.join(content)}")
    names, landmarks = content["names"], content["landmarks"]
    if len(names) != len(landmarks) or landmarks.ndim != 3:
        raise InputError(f"{url}: names {list(names.shape)} and landmarks {list(landmarks.shape)} do not fit")
    unknown = np.full(len(names), np.nan)
    heights, widths = content.get("height", unknown), content.get("width", unknown)
    if heights.shape != names.shape or widths.shape != names.shape:
        raise InputError(f"{url}: height and width do not have one value per name")
    return [
        (name_of(str(name)), Annotation(_given(points, _size(height, width))))
        for name, points, height, width in zip(names, landmarks.astype(np.float64), heights, widths, strict=True)
    ]


def _from_csv(url: str, data: bytes) -> list[tuple[str, Annotation]]:
    try:
        header, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig")))
        header = [name.strip() for name in header]
    except (ValueError, csv.Error) as error:
        raise InputError(f"{url}: is no CSV table ({storage.explain(error)})") from error
    if "name" not in header:
        raise InputError(
            f"{url}: its columns must be called name, x0, y0, x1, y1 and so on; the first are {', '.join(header[:4])}"
        )
    columns = {name: header.index(name) for name in ("name", "height", "width") if name in header}
    others = [column for column in range(len(header)) if column not in columns.values()]
    if len(others) % 2:
        raise InputError(f"{url}: has {len(others)} columns of coordinates, which are no x, y pairs")
    found = []
    for line, row in enumerate(rows, start=2):
        try:
            points = np.array([float(row[column].strip() or "nan") for column in others]).reshape(-1, 2)
            height, width = (
                float(row[columns[name]].strip() or "nan") if name in columns else np.nan
                for name in ("height", "width")
            )
        except (ValueError, IndexError) as error:
            raise InputError(f"{url}, line {line}: {storage.explain(error)}") from error
        found.append((name_of(row[columns["name"]].strip()), Annotation(_given(points, _size(height, width)))))
    return found


def _size(height: float, width: float) -> tuple[int, int] | None:
    """Height and width in pixels; None unless both are told."""
    return (int(height), int(width)) if np.isfinite([height, width]).all() else None


def _given(
    points: NDArray[np.float64], size: tuple[int, int] | None
) -> Callable[[], tuple[NDArray[np.float64], tuple[int, int] | None]]:
    return lambda: (points, size)


def _from_files(files: list[str]) -> list[tuple[str, Annotation]]:
    whole: list[tuple[str, str]] = []
    by_organ: dict[str, dict[str, str]] = {}
    for file in files:
        organ, name = _organ_of(file), PurePosixPath(file).stem
        if organ is None:
            whole.append((name_of(name), file))
        else:
            by_organ.setdefault(name_of(name), {})[organ] = file

    def points(file: str) -> NDArray[np.float64]:
        fs, path = storage.resolve(file)
        return _points(PurePosixPath(file).name, fs.cat_file(path))

    def of_organs(organs: dict[str, str]) -> NDArray[np.float64]:
        landmarks = np.full((N_LANDMARKS, 2), np.nan)
        for organ, file in organs.items():
            found, expected = points(file), landmarks[LANDMARKS[organ]].shape
            if found.shape != expected:
                raise InputError(f"the {organ} has {len(found)} points, not {expected[0]}")
            landmarks[LANDMARKS[organ]] = found
        return landmarks

    return [
        *((name, Annotation(lambda file=file: (points(file), None))) for name, file in whole),  # type: ignore[misc]
        *((name, Annotation(lambda organs=organs: (of_organs(organs), None))) for name, organs in by_organ.items()),  # type: ignore[misc]
    ]


def _points(name: str, data: bytes) -> NDArray[np.float64]:
    """Points float [n, 2] of one file: an array, or lines with two numbers between spaces, commas or semicolons."""
    try:
        if name.lower().endswith(".npy"):
            values = np.asarray(np.load(io.BytesIO(data), allow_pickle=False), np.float64)
        else:
            text = data.decode().replace(",", " ").replace(";", " ")
            values = np.array([line.split() for line in text.splitlines() if line.strip()], np.float64)
    except (ValueError, OSError) as error:
        raise InputError(f"{name}: is no list of points ({storage.explain(error)})") from error
    if values.ndim != 2 or values.shape[1] != 2:
        raise InputError(f"{name}: holds {list(values.shape)} numbers, not two in every row")
    return values


def _organ_of(file: str) -> str | None:
    parent = PurePosixPath(file).parent.name
    return next((organ for organ, names in _ORGAN_FOLDERS.items() if parent in names), None)
