"""The run that needs nothing: synthetic radiographs drawn on the spot, the bundled weights, a release."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.manifests.folder import list_folder
from chexmask_u.releases.release import MARKER
from chexmask_u.runs.cluster import check_here
from chexmask_u.runs.job import check_places
from chexmask_u.settings import GenerateSettings, ManifestFolderSettings, ReleaseSettings
from chexmask_u.sources import synthetic

FOLDER = "chexmask-u-demo"
VERSION = "v1.0.0"


@dataclass(frozen=True)
class Demo:
    """Settings of a run over the drawings and of its release."""

    generate: GenerateSettings
    release: ReleaseSettings


def prepare(settings: GenerateSettings) -> Demo:
    """Draw the images and list them, unless an earlier demo did.

    Args:
        settings: of `generate` without a manifest; `output` is the demo's folder (default ./chexmask-u-demo).

    Raises:
        InputError: if the folder is not local, or there is no GPU where one is asked for.
    """
    check_places({"--output": settings.output or FOLDER})
    folder = storage.local_folder(settings.output or FOLDER)
    if folder is None:
        raise InputError(f"--output {settings.output}: the demo draws its images in a local folder; give one")
    check_here(settings.device, settings.precision, settings.address)
    listed = folder / "manifest.parquet"
    if not listed.exists():
        _draw(folder, listed)
    return Demo(
        generate=replace(settings, manifest=str(listed), output=str(folder / "run")),
        release=ReleaseSettings(run=str(folder / "run"), output=str(folder / "release"), version=VERSION),
    )


def is_released(settings: ReleaseSettings) -> bool:
    """Whether an earlier demo got as far as its release."""
    fs, path = storage.filesystem(storage.join(settings.output, VERSION, MARKER))
    return bool(fs.exists(path))


def _draw(folder: Path, listed: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        synthetic.write_demo(folder)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written ({error.strerror})") from error
    # The manifest comes last: it says that the drawings are all there.
    list_folder(ManifestFolderSettings(uri=str(folder / "images"), output=str(listed), source="synthetic"))
