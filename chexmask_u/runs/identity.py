"""What makes two attempts the same run: its weights, numbers and manifest, frozen in run.json."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from chexmask_u import record
from chexmask_u.errors import InputError
from chexmask_u.manifests.manifest import ManifestFacts
from chexmask_u.runs.lock import LOCK
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings
from chexmask_u.version import __version__

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
    before = _identity(
        stored.get("schema_version"), stored.get("weights", {}), stored.get("numbers", {}), stored.get("manifest", {})
    )
    now = _identity(record.SCHEMA_VERSION, weights, settings.numbers(), {"sha256": manifest_sha256})
    differences = "; ".join(
        f"{name} was {before.get(name)}, now {value}"
        for name, value in now.items()
        if value is not None and value != before.get(name)
    )
    if differences:
        raise InputError(f"{run.url}: holds a run with other settings ({differences}); choose another --output")
    return True


def _identity(
    schema_version: str | None, weights: dict[str, Any], numbers: dict[str, Any], manifest: dict[str, Any]
) -> dict[str, Any]:
    """What may not change between the attempts of one run, by the name that a user knows it by."""
    return {
        "schema": schema_version,
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
