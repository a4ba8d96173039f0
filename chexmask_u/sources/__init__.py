"""The source datasets. One of the published ones is prepared as it was; any other name is the user's own."""

from __future__ import annotations

from chexmask_u.sources.base import Source

PUBLISHED: dict[str, Source] = {
    source.name: source
    for source in (
        Source("chestx-ray8", "ChestX-ray8"),
        Source("chexpert", "CheXpert"),
        Source("mimic-cxr-jpg", "MIMIC-CXR-JPG", crop_border=True),
        Source("padchest", "PadChest", crop_border=True),
        Source("vindr-cxr", "VinDr-CXR"),
    )
}


def get(name: str) -> Source:
    """The published source of that name, or a plain one: neither cropped nor known to anybody else."""
    return PUBLISHED.get(name) or Source(name, name)


__all__ = ["PUBLISHED", "Source", "get"]
