"""A distribution as somebody downloaded it: images and tables of its source, other files, and what was not followed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from chexmask_u.errors import InputError
from chexmask_u.manifests.listing import files_below
from chexmask_u.sources.base import Source


@dataclass(frozen=True)
class Distribution:
    """What lies below the root of a distribution.

    Attributes:
        images: of the source; columns id and path below the root.
        tables: paths of the source's own tables, the likeliest first.
        others: paths of all other files.
        lost: what could not be followed; see `listing.Files`.
    """

    images: pa.Table
    tables: list[str]
    others: list[str]
    lost: dict[str, str]


def list_distribution(source: Source, url: str) -> Distribution:
    """Sort the files below `url` by what they are to the source.

    Raises:
        InputError: if the folder cannot be listed, or holds no image of the source.
    """
    ids, paths, tables, others = [], [], [], []
    files = files_below(url)
    for below in files.paths:
        image_id = source.image_id(below)
        if image_id is not None:
            ids.append(image_id)
            paths.append(below)
        elif source.table and re.fullmatch(source.table.pattern, below.rsplit("/", 1)[-1]):
            tables.append(below)
        else:
            others.append(below)
    if not ids:
        found = ", ".join(f"{count:,} {kind} files" for kind, count in kinds_of_files(others).items()) or "no file"
        lost = f" and {len(files.lost):,} links or folders that lead nowhere" if files.lost else ""
        raise InputError(
            f"--images {url}: holds no {source.title} image; found {found}{lost}, expected {source.layout};"
            " point --images at the folder that the distribution was unpacked to"
        )
    images = pa.table({"id": pa.array(ids, pa.string()), "path": pa.array(paths, pa.string())})
    # Nearest first, then plain before gzipped.
    return Distribution(images, sorted(tables, key=lambda table: (table.count("/"), table)), others, files.lost)


def kinds_of_files(paths: Iterable[str]) -> dict[str, int]:
    """How many files of which suffix; never their names, which are a stranger's and may say who was examined."""
    suffixes = Counter(found[0] if (found := re.search(r"\.[A-Za-z]{1,6}$", path)) else "other" for path in paths)
    return dict(suffixes.most_common(4))


def almost_images(source: Source, others: Iterable[str]) -> dict[str, str]:
    """Files that would be images but for their suffix, by the id that they would have: what to do with each."""
    found = {}
    for path in others:
        stem, _, suffix = path.rpartition(".")
        if image_id := source.image_id(f"{stem}.{suffix.lower()}"):
            found[image_id] = f"; one has the suffix .{suffix}: rename it to .{suffix.lower()}"
        # gsutil's end in _.gstmp.
        elif image_id := source.image_id(stem.removesuffix("_")):
            found[image_id] = f"; one ends in .{suffix[:12]} behind its name: a download that was interrupted?"
    return found
