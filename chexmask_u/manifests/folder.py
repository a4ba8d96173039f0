"""The manifest of any folder: a row for every image below it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from chexmask_u import record, storage
from chexmask_u.errors import InputError
from chexmask_u.manifests import parquet
from chexmask_u.manifests.check import check_source_name
from chexmask_u.manifests.listing import ANY_NAME, IMAGE_SUFFIXES, files_below, is_hidden, is_image
from chexmask_u.result import Result
from chexmask_u.settings import ManifestFolderSettings


@dataclass(frozen=True)
class Listing:
    """What a folder held.

    Attributes:
        manifest: where it was written.
        rows: images.
        passed_over: other files.
        lost: links that lead nowhere and the like, and why each was not followed, by path below the folder.
    """

    manifest: str
    rows: int
    passed_over: int
    lost: dict[str, str] = field(default_factory=dict)


def list_folder(settings: ManifestFolderSettings) -> Listing:
    """Write a manifest of every PNG, JPEG and DICOM file below a folder or URL prefix, sorted by record id.

    Which those are their names tell, unless --any-name takes every file.

    An image's id is its path below the folder, and its record id is "source/image id". Hidden files and folders, as
    macOS and notebooks leave them between images, are passed over. Links to folders are followed.

    Raises:
        InputError: if the folder cannot be listed or holds no image, the source's name is not one, another manifest is
            there, or the URL's scheme is unknown.
    """
    check_source_name(settings.source)
    output = storage.normalise(settings.output)
    parquet.check_name(output)
    root = storage.normalise(settings.uri)
    files = files_below(root)
    images = [path for path in files.paths if is_image(path, settings.any_name)]
    if not images:
        others = not settings.any_name and any(not is_hidden(path) for path in files.paths)
        remedy = f"; {ANY_NAME}" if others else ""
        kinds = "" if settings.any_name else f"{', '.join(IMAGE_SUFFIXES)} "
        lost = "".join(f"; {path} is {why}" for path, why in list(files.lost.items())[:1])
        raise InputError(f"{settings.uri}: holds no {kinds}file{remedy}{lost}")
    try:
        rows = pa.table(
            {
                "record_id": [f"{settings.source}/{image}" for image in images],
                "uri": [storage.join(root, image) for image in images],
                "source": [settings.source] * len(images),
                "image_id": images,
                **{name: pa.nulls(len(images)) for name in ("dice_rca_mean", "dice_rca_max", "height", "width")},
            },
        ).cast(record.MANIFEST)
    except UnicodeEncodeError as error:
        raise InputError(f"{settings.uri}: the file name {error.object!a} is not UTF-8; rename the file") from error
    parquet.write([rows], output, overwrite=settings.overwrite)
    return Listing(output, len(images), len(files.paths) - len(images), files.lost)


def verb(settings: ManifestFolderSettings) -> Result:
    """`chexmask-u manifest folder`."""
    listing = list_folder(settings)
    text = f"{listing.manifest}: {listing.rows:,} images"
    if listing.passed_over:
        unnamed = "" if settings.any_name else ", or not named as PNG, JPEG or DICOM"
        text += f"; other files, passed over (hidden{unnamed}): {listing.passed_over:,}"
    if listing.lost:
        text += f"\nNot followed: {len(listing.lost):,}"
    return Result(vars(listing), "\n  ".join([text, *(f"{path}: {why}" for path, why in listing.lost.items())]))
