"""What a source dataset must say of itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chexmask_u.anatomy import FRAME

Preparation = Literal["published", "lossless"]
"""Whether images pass through all that their source's published preparation did, or through no lossy compression."""

Policy = Literal["open", "gated", "withheld"]
"""Whether data derived from a source may be published openly, only behind a gate, or not at all."""

PHYSIONET_CITATION = (
    "Goldberger A, Amaral L, Glass L, et al. PhysioBank, PhysioToolkit, and PhysioNet: Components of a new research"
    " resource for complex physiologic signals. Circulation 101(23):e215-e220, 2000."
    " https://doi.org/10.1161/01.CIR.101.23.e215"
)
"""What PhysioNet asks for beside the citation of each of its data sets."""

PHYSIONET_ACCESS = (
    "Become a credentialed PhysioNet user (training in human-subjects research included), sign the data set's data use"
    " agreement there, and download the images. Access may not be shared, with online services either."
)
"""How the images of PhysioNet's credentialed data sets are got."""


@dataclass(frozen=True)
class Table:
    """A source's own table of its images: a CSV, possibly gzipped, with one row per image.

    Attributes:
        pattern: regular expression of the whole file name.
        id_column: where the image's id stands, as in the CheXmask CSV.
        view_column: where the projection stands.
        frontal: the projections that the CheXmask data set took.
        height_column, width_column: pixels of the file as distributed; None where the table does not say.
        optional: whether all images are frontal anyway, so that they can be listed without the table.
    """

    pattern: str
    id_column: str
    view_column: str
    frontal: tuple[str, ...]
    height_column: str | None = None
    width_column: str | None = None
    optional: bool = False


def by_pattern(pattern: str) -> Callable[[str], str | None]:
    """A function from a path below the images' root to the id that `pattern` captures as its first group."""
    search = re.compile(pattern).search

    def image_id(path: str) -> str | None:
        found = search(path)
        return found[1] if found else None

    return image_id


def _none(path: str) -> str | None:
    return None


def _every(image_id: str) -> bool:
    return True


@dataclass(frozen=True)
class Source:
    """A source dataset: where its images lie, how they are named and prepared, and under which terms they stand.

    Attributes:
        name: the `source` of its records and the name of its dataset config; lower case, digits and dashes.
        title: how people call it.
        crop_border: whether preparation drops the black border first, as the published one did.
        jpeg_quality: of the JPEG, on OpenCV's scale, that the prepared image passed through before inference; None
            where it was kept as it is.
        unknown_steps: what nobody knows of its published preparation, as the end of a sentence.
        dicom: whether its files are DICOM.
        dicom_standard: whether DICOM values are shown as the standard asks, or as VinDr-CXR's were; see `dicom.decode`.
        full_range: whether 16-bit values are scaled from the minimum and maximum of all pixels, a detector's hot ones
            among them, as the published ones were; see `images.decode`.
        citation: the data set's paper, one line, with a DOI.
        also_cite: what else its providers ask users to cite, one line each.
        licence: name of its terms.
        terms_url: where they are to be read.
        access: what a person must do to get the images, and may not do with them; full sentences.
        policy: see `Policy`. The strictest unless a source says otherwise: nobody knows the terms of unknown data.
        id_column: the CheXmask CSV's column that names the image.
        csv_name: file name of its CheXmask CSV, without the suffix; the source's name where none was published.
        max_first: whether that CSV has Dice RCA (Max) in front of Dice RCA (Mean).
        expected_rows: rows of the whole CheXmask data set for this source; None where nothing is expected.
        layout: where images lie below the distribution's root, in words for error messages.
        image_id: the id of the image at a path ('/'-separated) below the root, or None if there is no frontal image of
            this source, as far as the path tells.
        in_chexmask: whether the CheXmask data set took the frontal image of an id, as far as the id tells.
        row_id: the same id from the value of `id_column`.
        table: the source's own table, or None where file names tell all.
        side: pixels of every image's height and width, where all are square and alike.
    """

    name: str
    title: str
    crop_border: bool = False
    jpeg_quality: int | None = None
    unknown_steps: str = ""
    dicom: bool = False
    dicom_standard: bool = True
    full_range: bool = False
    citation: str = ""
    also_cite: tuple[str, ...] = ()
    licence: str = ""
    terms_url: str = ""
    access: str = ""
    policy: Policy = "withheld"
    id_column: str = "image_id"
    csv_name: str = ""
    max_first: bool = False
    expected_rows: int | None = None
    layout: str = ""
    image_id: Callable[[str], str | None] = _none
    in_chexmask: Callable[[str], bool] = _every
    row_id: Callable[[str], str] = str
    table: Table | None = None
    side: int | None = None

    def describe(self, preparation: Preparation) -> str:
        """How an image becomes the network's, in one sentence."""
        steps = [] if self.dicom_standard else ["values after the VOI LUT, from least to largest, in 8 bits"]
        steps += ["black border cropped"] if self.crop_border else []
        steps += ["padded to a centred square", f"resized to {FRAME} x {FRAME} (bilinear)"]
        if self.jpeg_quality is not None:
            jpeg = f"JPEG of quality {self.jpeg_quality}"
            steps.append(
                f"through {jpeg} and back" if preparation == "published" else f"not through the published {jpeg}"
            )
        unknown = f"; {self.unknown_steps}" if self.unknown_steps else ""
        return ", ".join(steps) + unknown
