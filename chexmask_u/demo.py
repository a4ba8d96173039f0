"""The run that needs nothing: synthetic radiographs drawn on the spot, the bundled weights, a release."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chexmask_u import pipeline, storage
from chexmask_u.errors import InputError
from chexmask_u.manifests.folder import list_folder
from chexmask_u.releases.release import MARKER
from chexmask_u.result import DONE, INCOMPLETE, Result
from chexmask_u.runs.cluster import check_here, connected
from chexmask_u.runs.job import check_places
from chexmask_u.runs.run import IN_DEMO
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
        generate=replace(settings, manifest=str(listed), output=str(folder / IN_DEMO)),
        release=ReleaseSettings(run=str(folder / IN_DEMO), output=str(folder / "release"), version=VERSION),
    )


def is_released(settings: ReleaseSettings) -> bool:
    """Whether an earlier demo got as far as its release."""
    fs, path = storage.filesystem(storage.join(settings.output, VERSION, MARKER))
    return bool(fs.exists(path))


def _draw(folder: Path, listed: Path) -> None:
    with storage.explained(f"--output {folder}", "written"):
        folder.mkdir(parents=True, exist_ok=True)
        synthetic.write_demo(folder)
    # The manifest comes last: it says that the drawings are all there.
    list_folder(ManifestFolderSettings(uri=str(folder / "images"), output=str(listed), source="synthetic"))


def verb(settings: GenerateSettings) -> Result:
    """`chexmask-u generate`: over a manifest, or over drawings where there is none."""
    if settings.manifest is not None:
        return told(pipeline.generate(settings), str(settings.output))
    prepared = prepare(settings)
    # One Ray for both verbs; none where both were done before.
    with nullcontext() if is_released(prepared.release) else connected(settings.address):
        ran = told(pipeline.generate(prepared.generate), str(prepared.generate.output))
        if ran.code != DONE:
            return ran
        if is_released(prepared.release):
            released = f"Release: {storage.join(prepared.release.output, VERSION)} (made before)"
        else:
            released = pipeline.release_verb(prepared.release).text
    return replace(ran, text=f"{ran.text}\n{released}")


def told(summary: dict[str, Any], output: str) -> Result:
    """What a run's summary tells; `output` is its folder."""
    ok, failed = summary["ok"], summary["failed"]
    lines = [f"{ok + failed:,} of {summary['manifest_rows']:,} images done: {ok:,} ok, {failed:,} failed"]
    lines += [f"  {reason}: {failure['images']:,}" for reason, failure in summary["failures"].items()]
    if not summary["complete"]:
        lines.append("The run is incomplete; the same command goes on where it stopped.")
    lines.append(f"Report: {storage.join(storage.normalise(output), 'report.html')}")
    return Result(summary, "\n".join(lines), DONE if summary["complete"] else INCOMPLETE)
