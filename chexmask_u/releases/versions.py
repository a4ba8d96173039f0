"""Semantic versions of releases: which one comes next, by what changed since the one before."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from chexmask_u.releases.release import Release

Change = Literal["major", "minor", "patch"]

FIRST = "v1.0.0"

MEANING: dict[Change, str] = {
    "major": "its columns are those of another schema",
    "minor": "its records or their numbers differ",
    "patch": "its records are the same, what is said of them differs",
}
"""What each kind of change says of a release, compared with the one before."""

_VERSION = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")

# Where these kinds of file differ, so do numbers; a failure is something that is said of an image.
_NUMBERS = ("landmarks", "masks")


def is_version(text: str) -> bool:
    """Whether a text is written vX.Y.Z."""
    return _VERSION.fullmatch(text) is not None


def parse(version: str) -> tuple[int, int, int]:
    """X, Y and Z of vX.Y.Z.

    Raises:
        ValueError: if it is written otherwise.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ValueError(f"{version}: must be vX.Y.Z, for instance {FIRST}")
    return int(found[1]), int(found[2]), int(found[3])


def after(version: str, change: Change) -> str:
    """The version that follows after a change."""
    major, minor, patch = parse(version)
    if change == "major":
        return f"v{major + 1}.0.0"
    return f"v{major}.{minor + 1}.0" if change == "minor" else f"v{major}.{minor}.{patch + 1}"


def change(before: Release, now: Release) -> Change:
    """What changed between two releases, by their release.json; "patch" where all records are byte for byte the same.

    Whether anything changed at all is not asked.
    """
    if before.content["schema_version"] != now.content["schema_version"]:
        return "major"
    if (before.calibration is None) != (now.calibration is None):
        return "major"
    return "patch" if _numbers(before) == _numbers(now) else "minor"


def _numbers(release: Release) -> set[tuple[str, str]]:
    return {(file.path, file.sha256) for file in release.files if file.kind in _NUMBERS}
