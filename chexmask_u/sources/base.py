"""What a source dataset must say of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A source dataset: how its images are prepared, and how it is shown to readers.

    Attributes:
        name: the `source` of its records and the name of its dataset config; lower case, digits and dashes.
        title: how people call it.
        crop_border: whether preparation drops the black border first (design: fact 7 of the published method).
    """

    name: str
    title: str
    crop_border: bool = False
