"""Annotated images read, checked, prepared and split: what training and evaluation take."""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from chexmask_u import storage
from chexmask_u.anatomy import FRAME, LANDMARKS, N_LANDMARKS, ORGANS
from chexmask_u.errors import InputError
from chexmask_u.folder import as_csv
from chexmask_u.record import ReadError
from chexmask_u.settings import AnnotatedSettings
from chexmask_u.sources.synthetic import draw
from chexmask_u.training.annotations import Annotation, name_of
from chexmask_u.training.contour import in_annotators_order
from chexmask_u.training.datasets import Dataset, datasets
from chexmask_u.weight_files import WeightFile

Choice = Callable[[Sequence[str]], Sequence[bool]]
"""Tells which ones are meant of a list of "dataset/name"."""

PROBLEMS: dict[str, str] = {
    "no_annotation": "an image without landmarks or masks",
    "no_image": "landmarks or masks without an image",
    "duplicate": "a name that several images or annotations have",
    "unreadable": "an image or mask that cannot be read or used",
    "count": "not 120 landmarks, nor the 94 of both lungs",
    "not_finite": "NaN or infinite coordinates in an organ that is annotated, or a lung that is missing",
    "outside": "landmarks outside the image",
    "swapped": "x and y are swapped",
    "resolution": "landmarks of another resolution than the image's",
    "position": "organs that do not lie as in a frontal radiograph",
    "order": "landmarks that begin elsewhere, or run the other way round, than the annotators' do",
}
"""Every reason for which an annotated image cannot be used, and what it means."""

# Added to a seed: populations of drawings from there on are held out.
HELD_OUT_POPULATION = 2**31

SPLIT = "split.csv"
"""Which images weights were trained on, as `train` leaves it beside them."""

# Threads that read and decode; OpenCV lets go of the interpreter's lock.
_READERS = 8

# How far outside the image a landmark may lie, in pixels: annotators click on its very edge.
_MARGIN = 1.0

# Both lungs' middle in the frame. It spans 0.42 to 0.60 (x) and 0.33 to 0.62 (y) in 865 annotated radiographs;
# landmarks of half or twice the resolution bring it below 0.31 or above 0.84.
_MIDDLE_X = (0.33, 0.67)
_MIDDLE_Y = (0.2, 0.8)


@dataclass(frozen=True)
class Problem:
    """Why an image or annotation cannot be used: its dataset and name, a kind of `PROBLEMS`, and what was seen."""

    dataset: str
    name: str
    kind: str
    detail: str


@dataclass(frozen=True)
class Examples:
    """Annotated images, prepared.

    Attributes:
        names: N times "dataset/name".
        images: uint8 [N, S, S], grey.
        landmarks: float32 [N, 120, 2], x then y, unit square; NaN where the heart is not annotated.
        from_masks: names (of these examples, or of others too) whose landmarks were spaced along a mask's contour, so
            that a distance to them is also one along the contour.
    """

    names: list[str]
    images: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    from_masks: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """Some of the examples, in the order given."""
        index = np.asarray(rows, np.int64)
        names = [self.names[row] for row in index]
        return Examples(names, self.images[index], self.landmarks[index], self.from_masks)

    def has_heart(self) -> NDArray[np.bool_]:
        """Whether all three organs are annotated, bool [N]; else both lungs are."""
        return np.asarray(np.isfinite(self.landmarks[:, LANDMARKS["heart"]]).all(axis=(1, 2)))

    def has_heart_at(self, row: int) -> bool:
        return bool(np.isfinite(self.landmarks[row, LANDMARKS["heart"]]).all())

    def digest(self) -> str:
        """sha256 of names, images and landmarks."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.landmarks).data)
        return digest.hexdigest()

    @cached_property
    def digests(self) -> list[str]:
        """sha256 of each image and its landmarks."""
        found = []
        for image, landmarks in zip(self.images, self.landmarks, strict=True):
            digest = hashlib.sha256(np.ascontiguousarray(image).data)
            digest.update(np.ascontiguousarray(landmarks).data)
            found.append(digest.hexdigest())
        return found


def join(parts: Sequence[Examples]) -> Examples:
    """Several sets of examples of one image size as one; there is at least one."""
    # Copies of thousands of images are worth avoiding.
    parts = [part for part in parts if len(part)] or [parts[0]]
    return (
        parts[0]
        if len(parts) == 1
        else Examples(
            [name for part in parts for name in part.names],
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.landmarks for part in parts]),
            frozenset().union(*(part.from_masks for part in parts)),
        )
    )


def drawn(count: int, seed: int, side: int) -> Examples:
    """The first `count` people of the population `seed` of `sources.synthetic`, called "drawings/SEED-NUMBER"."""
    # A drawing's noise depends on its size, so every size shows the same drawing at 1024 only where it is that size.
    with ThreadPoolExecutor(_READERS) as pool:
        drawings = list(pool.map(lambda index: draw(index, seed, side), range(count)))
    return Examples(
        [f"drawings/{seed}-{index:05d}" for index in range(count)],
        np.stack([drawing.image for drawing in drawings]) if drawings else np.zeros((0, side, side), np.uint8),
        np.stack([drawing.landmarks for drawing in drawings]) / np.float32(side)
        if drawings
        else np.zeros((0, N_LANDMARKS, 2), np.float32),
    )


def held_out(count: int, seed: int, side: int) -> Examples:
    """Drawings, as `drawn` gives them, that no training with a seed below 2^31 is shown."""
    return drawn(count, seed + HELD_OUT_POPULATION, side)


def read_examples(settings: AnnotatedSettings, side: int, only: Choice | None = None) -> tuple[Examples, list[Problem]]:
    """Read, prepare and check every annotated image that the settings name, drawings apart.

    Images are prepared as for inference (`read.read_image`), and then reduced to `side`; landmarks go with them.

    Args:
        settings: which datasets.
        side: S, the side in pixels of the images that are returned.
        only: whether to read each of a list of "dataset/name"; None for all.

    Raises:
        InputError: if a folder or file of annotations cannot be used at all.
    """
    found: list[Examples] = [
        Examples([], np.zeros((0, side, side), np.uint8), np.zeros((0, N_LANDMARKS, 2), np.float32))
    ]
    problems: list[Problem] = []
    for dataset in datasets(settings):
        examples, bad = _read_dataset(dataset, side, settings.max_side, only)
        found.append(examples)
        problems += bad
    return join(found), problems


def refuse(problems: Sequence[Problem], policy: str) -> None:
    """Raise InputError if there are problems and the policy (--on-bad) is to refuse them; else tell them."""
    if not problems:
        return
    if policy == "refuse":
        raise InputError(f"{describe(problems)}; correct them, or leave them out with --on-bad skip")
    print(f"{describe(problems)}; left out, as --on-bad {policy} says", file=sys.stderr)


def describe(problems: Sequence[Problem]) -> str:
    """One line: how many problems of each kind, with the first names."""
    parts = []
    for kind in PROBLEMS:
        names = [f"{problem.dataset}/{problem.name}" for problem in problems if problem.kind == kind]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{len(names)} {kind} ({PROBLEMS[kind]}: {', '.join(names[:3])}{more})")
    return f"{len(problems)} annotated image{'' if len(problems) == 1 else 's'} cannot be used: {'; '.join(parts)}"


def problems_csv(problems: Sequence[Problem]) -> str:
    """All problems as CSV text."""
    return as_csv([vars(problem) for problem in problems], ["dataset", "name", "kind", "detail"])


def split(names: Sequence[str], share: float, file: str | None) -> list[str]:
    """The part, "train" or "validation", of each "dataset/name".

    Without a file, an image is held out if the first 8 bytes of the sha256 of its name (without the dataset), as a
    fraction of 2^64, are below `share`: fixed for ever, whatever else there is. With a file, all must be in it.

    Raises:
        InputError: if the file cannot be used, or leaves an image out.
    """
    bare = [name.partition("/")[2] for name in names]
    if file is None:
        fractions = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in bare]
        return ["validation" if fraction < share else "train" for fraction in fractions]
    given = read_split(file)
    missing = [name for name in bare if name not in given]
    if missing:
        raise InputError(f"--split {file}: does not say the part of {len(missing)} images, such as {missing[0]}")
    return [given[name] for name in bare]


def read_split(file: str) -> dict[str, str]:
    """The part of each image's name, without its dataset, that a split file says.

    Raises:
        InputError: if the file cannot be used.
    """
    try:
        fs, path = storage.resolve(file)
        rows = list(csv.DictReader(io.StringIO(fs.cat_file(path).decode("utf-8-sig"))))
        given = [(_bare(row["name"]), row["part"].strip()) for row in rows]
    except FileNotFoundError as error:
        raise InputError(f"--split {file}: no such file{storage.nearest(file)}") from error
    except (OSError, KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--split {file}: is no CSV with columns name and part ({storage.explain(error)})") from error
    parts = dict(given)
    twice = next((name for name, part in given if parts[name] != part), None)
    if twice is not None:
        raise InputError(f"--split {file}: {twice} is in both parts; datasets share the parts of a name")
    unknown = sorted(set(parts.values()) - {"train", "validation"})
    if unknown:
        raise InputError(f"--split {file}: a part is train or validation, not {unknown[0]!r}")
    return parts


def _bare(name: str) -> str:
    """The name of an image in a table, without its dataset, as Windows may have written it, and its suffix."""
    return name_of(name.strip().replace("\\", "/").rpartition("/")[2])


def refuse_trained(names: Sequence[str], weights: WeightFile) -> bool:
    """Refuse images "dataset/name" that weights were trained on, by the split file that lies beside them on disk.

    Returns:
        Whether there is such a file.

    Raises:
        InputError: if some were, or the file cannot be used.
    """
    beside = weights.beside(SPLIT) if weights.repo is None else None
    if beside is None:
        return False
    trained = [name for name, was in zip(names, trained_on(names, str(beside)), strict=True) if was]
    if trained:
        raise InputError(
            f"{len(trained)} of {len(names)} images, such as {trained[0]}, are among those that the weights"
            f" {weights.source} were trained on; give --split {beside} to take only the others"
        )
    return True


def trained_on(names: Sequence[str], split: str) -> list[bool]:
    """Whether a split file says of each "dataset/name" that it is trained on; of others it may say nothing.

    Raises:
        InputError: if the file cannot be used.
    """
    given = read_split(split)
    return [given.get(name.partition("/")[2]) == "train" for name in names]


def split_csv(names: Sequence[str], parts: Sequence[str]) -> str:
    """A split as the CSV text that --split takes."""
    return "name,part\n" + "".join(f"{name},{part}\n" for name, part in zip(names, parts, strict=True))


def _read_dataset(dataset: Dataset, side: int, max_side: int, only: Choice | None) -> tuple[Examples, list[Problem]]:
    """The examples of one dataset, as `read_examples` gives those of all."""
    images = dataset.images()
    problems: list[Problem] = []
    annotations: dict[str, Annotation] = {}
    twice = {name: ", ".join(uris) for name, uris in images.items() if len(uris) > 1}
    for name, annotation in dataset.annotations():
        if name in annotations:
            twice[name] = "several annotations"
        annotations[name] = annotation
    problems += [Problem(dataset.name, name, "duplicate", twice[name]) for name in sorted(twice)]
    problems += [
        Problem(dataset.name, name, "no_annotation", uris[0])
        for name, uris in images.items()
        if name not in annotations and name not in twice
    ]
    problems += [
        Problem(dataset.name, name, "no_image", "")
        for name in sorted(annotations)
        if name not in images and name not in twice
    ]
    usable = [name for name in images if name in annotations and name not in twice]
    if only is not None:
        wanted = only([f"{dataset.name}/{name}" for name in usable])
        usable = [name for name, take in zip(usable, wanted, strict=True) if take]

    def example(name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | Problem:
        try:
            return _example(dataset, images[name][0], annotations[name], side, max_side)
        except _UnusableError as error:
            return Problem(dataset.name, name, error.kind, str(error))

    with ThreadPoolExecutor(_READERS) as pool:
        results = list(pool.map(example, usable))
    problems += [result for result in results if isinstance(result, Problem)]
    good = [(name, *result) for name, result in zip(usable, results, strict=True) if not isinstance(result, Problem)]
    return (
        Examples(
            [f"{dataset.name}/{name}" for name, _, _ in good],
            np.stack([image for _, image, _ in good]) if good else np.zeros((0, side, side), np.uint8),
            np.stack([points for _, _, points in good]) if good else np.zeros((0, N_LANDMARKS, 2), np.float32),
            frozenset(f"{dataset.name}/{name}" for name in usable if annotations[name].of_pixels),
        ),
        problems,
    )


class _UnusableError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _example(
    dataset: Dataset, uri: str, annotation: Annotation, side: int, max_side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One image uint8 [S, S] of side S with its landmarks float32 [120, 2], unit square, NaN where there are none."""
    try:
        points, annotated_size = annotation.load()
    except InputError as error:
        raise _UnusableError("unreadable" if annotation.of_pixels else "count", str(error)) from error
    landmarks = _complete(np.asarray(points, np.float64))
    try:
        read = dataset.read(uri, max_side)
    except ReadError as error:
        raise _UnusableError("unreadable", f"{error.reason}: {error}") from error
    if annotated_size is not None and annotated_size != (read.height, read.width):
        height, width = annotated_size
        raise _UnusableError(
            "resolution", f"annotated at {width} x {height}, but the image has {read.width} x {read.height}"
        )
    size = (read.width, read.height)
    if annotation.of_pixels or dataset.landmarks_in == "original":
        in_frame = read.letterbox.to_frame(landmarks)
    else:
        in_frame, size = landmarks, (FRAME, FRAME)
    check(landmarks, in_frame, size)
    return reduced(read.image, side), (in_frame / FRAME).astype(np.float32)


def _complete(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Landmarks float64 [120, 2], NaN for the heart where only the lungs' [94, 2] were given; same frame."""
    lungs = LANDMARKS["heart"].start
    if points.shape not in ((N_LANDMARKS, 2), (lungs, 2)):
        raise _UnusableError("count", f"has {list(points.shape)}, not [{N_LANDMARKS}, 2] or [{lungs}, 2]")
    landmarks = np.full((N_LANDMARKS, 2), np.nan)
    landmarks[: len(points)] = points
    heart = landmarks[LANDMARKS["heart"]]
    missing = N_LANDMARKS - lungs - int(np.isfinite(heart).all(axis=1).sum())
    if np.isinf(landmarks).any() or not np.isfinite(landmarks[:lungs]).all():
        lung = next(organ for organ in ORGANS if not np.isfinite(landmarks[LANDMARKS[organ]]).all())
        what = (
            "is missing" if np.isnan(landmarks[LANDMARKS[lung]]).all() else "has coordinates that are no finite numbers"
        )
        raise _UnusableError("not_finite", f"the {lung.replace('_', ' ')} {what}")
    if not np.isnan(heart).all() and missing:
        raise _UnusableError("not_finite", f"{missing} landmarks of the heart are no finite numbers, but not all")
    return landmarks


def check(landmarks: NDArray[np.float64], in_frame: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise if landmarks are not where a frontal radiograph has them.

    Args:
        landmarks: float [120, 2] as annotated, NaN for a heart that is not.
        in_frame: the same in pixels of the 1024 frame.
        size: width and height of what `landmarks` are pixels of.
    """
    organs = {organ: in_frame[LANDMARKS[organ]] for organ in ORGANS if np.isfinite(in_frame[LANDMARKS[organ]]).all()}
    right, left = organs["right_lung"].mean(axis=0), organs["left_lung"].mean(axis=0)
    across, down = left - right
    # Lungs lie side by side; one above the other, they come from swapped coordinates.
    if abs(down) > abs(across):
        raise _UnusableError("swapped", "the lungs lie one above the other")
    seen = landmarks[np.isfinite(landmarks).all(axis=1)]
    beyond = (seen < -_MARGIN) | (seen > np.array(size) + _MARGIN)
    if beyond.any():
        worst = seen[beyond.any(axis=1)][0]
        raise _UnusableError(
            "outside",
            f"{int(beyond.any(axis=1).sum())} landmarks, such as {worst[0]:.0f},{worst[1]:.0f}, outside the image of "
            f"{size[0]} x {size[1]}",
        )
    if across < 0:
        raise _UnusableError("position", "the right lung lies right of the left one: mirrored, or organs exchanged")
    lungs = in_frame[: LANDMARKS["heart"].start] / FRAME
    middle = (lungs.min(axis=0) + lungs.max(axis=0)) / 2
    if not (_MIDDLE_X[0] <= middle[0] <= _MIDDLE_X[1] and _MIDDLE_Y[0] <= middle[1] <= _MIDDLE_Y[1]):
        raise _UnusableError(
            "resolution", f"the lungs' middle is at {middle[0]:.2f}, {middle[1]:.2f} of the image's side"
        )
    # In 865 annotated radiographs the tops lie 0.2 to 0.7 times as far apart as the lowest points.
    tops, lowest = (
        organs["left_lung"][pick(organs["left_lung"][:, 1]), 0]
        - organs["right_lung"][pick(organs["right_lung"][:, 1]), 0]
        for pick in (np.argmin, np.argmax)
    )
    if tops > lowest:
        raise _UnusableError("position", "the lungs' tops lie farther apart than their lowest points: upside down")
    if "heart" in organs:
        heart = organs["heart"].mean(axis=0)
        if not right[0] < heart[0] < left[0] or heart[1] < min(right[1], left[1]):
            raise _UnusableError("position", "the heart does not lie between the lungs, in their lower half")
    for organ, ring in organs.items():
        if not in_annotators_order(ring, organ):
            raise _UnusableError("order", f"the {organ.replace('_', ' ')} does not begin or run as it should")


def reduced(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A prepared image [1024, 1024] at the network's input size, averaged over areas as `predict` does, rounded."""
    if side == FRAME:
        return image
    # OpenCV's areas are the same only where the side divides 1024.
    grey = F.interpolate(torch.from_numpy(image)[None, None].float(), (side, side), mode="area")
    return np.asarray(grey[0, 0].round_().to(torch.uint8).numpy())
