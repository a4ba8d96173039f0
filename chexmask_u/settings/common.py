"""Settings that several verbs have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chexmask_u.settings.base import INPUT, MACHINES, NUMBERS, OUTPUT, setting

# Of --calibration: none at all.
NO_CALIBRATION = "none"

WEIGHTS_HELP = (
    "'demo' (bundled), a .safetensors, .bin, .pt or .pth file or the folder that holds it,"
    " or hf://ORG/REPO[/FOLDER-OR-FILE][@REVISION]"
)


def weights(default: str | None = "demo", help: str = WEIGHTS_HELP) -> Any:
    """Which weights."""
    return setting(default, help, kind="WEIGHTS", group=INPUT)


def weights_sha256() -> Any:
    """What the weights must be."""
    return setting(None, "digest that the weight file must have", kind="SHA256", group=INPUT)


def device(help: str = "where the network runs; auto: on GPUs that are up") -> Any:
    """Where the network runs."""
    return setting("auto", help, choices=("auto", "cpu", "cuda"), group=MACHINES)


def precision(
    help: str,
    choices: tuple[str, ...] = ("float32", "tf32", "bfloat16"),
    *,
    numbers: bool = True,
    group: str = NUMBERS,
) -> Any:
    """Arithmetic of the encoder."""
    return setting("float32", help, choices=choices, numbers=numbers, group=group)


def samples(help: str = "draws N per image", *, least: int = 1, numbers: bool = True) -> Any:
    """How many draws."""
    return setting(50, help, least=least, numbers=numbers, group=NUMBERS)


def batch_size(default: int | None, help: str = "images the network takes at once") -> Any:
    """Images at once."""
    return setting(default, help, least=1, group=MACHINES)


def max_side(*, numbers: bool = True) -> Any:
    """How large an image may be."""
    return setting(
        10_000,
        "longest side in pixels of an image that is decoded",
        numbers=numbers,
        least=32,
        kind="PIXELS",
        group=INPUT,
    )


def address() -> Any:
    """Which Ray cluster."""
    return setting(
        None,
        "Ray cluster to use (default: a running one, else a local one is started)",
        kind="HOST:PORT",
        group=MACHINES,
    )


def release() -> Any:
    """One version, named by its place."""
    return setting("", "folder of one version (local path or URL)", positional=True, required=True, kind="RELEASE")


def overwrite() -> Any:
    """Whether a manifest may be replaced."""
    return setting(False, "replace a manifest with other rows that is at --output", group=OUTPUT)


def first_line(module: Path) -> str:
    """What a module says of itself; it is not imported, since that would import much."""
    with module.open(encoding="utf-8") as lines:
        return next((line.strip() for line in lines if line.strip()), module.stem).strip('"').rstrip(".")
