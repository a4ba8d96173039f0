"""What makes two attempts the same run: its weights, numbers and manifest, frozen in run.json."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from chexmask_u import record, sources
from chexmask_u.errors import InputError
from chexmask_u.manifests.check import ManifestFacts
from chexmask_u.runs.lock import LOCK
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings
from chexmask_u.version import __version__

# How the images of a run were prepared whose run.json does not tell.
UNTOLD_PREPARATION: sources.Preparation = "lossless"

# Libraries whose version can move a number.
VERSIONED = ("torch", "numpy", "opencv-python-headless", "pyarrow", "ray", "pillow")


def check_same(run: Run, settings: GenerateSettings, weights: dict[str, Any], manifest_sha256: str | None) -> bool:
    """Check that the run which the folder holds, if any, has the same weights, numbers and manifest.

    Args:
        run: the folder.
        settings: of the run that is to start or go on.
        weights: what run.json is to say of them.
        manifest_sha256: digest of the manifest, or None while it is not known.

    Returns:
        Whether the folder holds a run.

    Raises:
        InputError: naming each difference; or if the folder holds something else than a run.
    """
    stored = run.read_json("run.json")
    if stored is None:
        run.check_own("run", [], ignored=(LOCK,))
        return False
    manifest = stored.get("manifest", {})
    names = manifest.get("sources", {})
    numbers = comparable_numbers(stored.get("numbers", {}), names)
    before = _identity(stored.get("schema_version"), stored.get("weights", {}), numbers, manifest)
    numbers = comparable_numbers(settings.numbers(), names)
    now = _identity(record.SCHEMA_VERSION, weights, numbers, {"sha256": manifest_sha256})
    differing = {name: value for name, value in now.items() if value is not None and value != before.get(name)}
    if differing:
        differences = "; ".join(f"{name} was {before.get(name)}, now {value}" for name, value in differing.items())
        remedy = "choose another --output"
        if list(differing) == ["--preparation"]:
            remedy = f"--preparation {before['--preparation']} goes on with it, or {remedy}"
        raise InputError(f"{run.url}: holds a run with other settings ({differences}); {remedy}")
    return True


def comparable_numbers(numbers: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The settings of run.json's or release.json's `numbers` that numbers of these sources' images depend on.

    `preparation` is one only where an image of theirs differs by it.
    """
    if any(sources.get(name).jpeg_quality is not None for name in names):
        return {"preparation": UNTOLD_PREPARATION} | dict(numbers)
    return {name: value for name, value in numbers.items() if name != "preparation"}


def told_preparation(frozen: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What a run's run.json says of how images of these sources became the network's, a sentence each."""
    told = frozen.get("preparation", {})
    untold = sources.describe_preparation(names, UNTOLD_PREPARATION)
    return {name: told.get(name, sentence) for name, sentence in untold.items()}


def _identity(
    schema_version: str | None, weights: dict[str, Any], numbers: dict[str, Any], manifest: dict[str, Any]
) -> dict[str, Any]:
    """What may not change between the attempts of one run, by the name that a user knows it by."""
    return {
        # A run goes on when columns have been added: where its earlier parts lack one, it is null.
        "schema": schema_version and schema_version.partition(".")[0],
        "weights sha256": weights.get("sha256"),
        "manifest sha256": manifest.get("sha256"),
        **{f"--{name.replace('_', '-')}": value for name, value in numbers.items()},
    }


def freeze(run: Run, settings: GenerateSettings, manifest: ManifestFacts, weights: dict[str, Any]) -> None:
    """Write run.json, unless the folder holds the same run already.

    Raises:
        InputError: as `check_same` does.
    """
    if check_same(run, settings, weights, manifest.sha256):
        return
    frozen = {
        "schema_version": record.SCHEMA_VERSION,
        "settings": settings.asdict(),
        "numbers": settings.numbers(),
        "preparation": sources.describe_preparation(manifest.sources, settings.numbers()["preparation"]),
        "manifest": manifest.asdict(),
        "weights": weights,
        "versions": library_versions(),
    }
    # Nothing reads its URLs again, and people show it to others.
    run.write_json("run.json", frozen)


def library_versions() -> dict[str, str]:
    """Versions of this code and of what its numbers depend on."""
    return {"chexmask_u": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in VERSIONED
    }
