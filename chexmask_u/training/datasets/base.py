"""What the module of an annotated dataset defines: its official form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chexmask_u import storage
from chexmask_u.images.preparation import ReadImage
from chexmask_u.training.annotations import find_masks


def folder_masks(folder: str) -> dict[str, list[str]]:
    """Mask files by organ, of a folder that keeps them in masks/<organ>/<name>.png."""
    return find_masks(storage.join(folder, "masks"))


@dataclass(frozen=True)
class Form:
    """The official form of a dataset: which files are images, how they are read, and where masks lie.

    Attributes:
        name: what --data calls it.
        image: regular expression that the path of an image below the folder matches.
        source: the `sources` name whose preparation its images get.
        of_frame: whether landmarks are in pixels of the 1024 frame by default, else of the file.
        masks: mask files by organ, of a dataset's folder.
        reader: reads what is no PNG, JPEG or DICOM.
    """

    name: str
    image: str
    source: str = "folder"
    of_frame: bool = True
    masks: Callable[[str], dict[str, list[str]]] = folder_masks
    reader: Callable[[str, int], ReadImage] | None = None
