"""The source datasets. One of the published ones is prepared as it was; any other name is the user's own.

A published source is a module in this package that defines `SOURCE`; to add one, add its file. This room imports none
of the others.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from chexmask_u.sources.base import Preparation, Source


def discover() -> dict[str, Source]:
    """The `SOURCE` of every module in this package that defines one, by its name, sorted."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    found = [module.SOURCE for module in modules if hasattr(module, "SOURCE")]
    return {source.name: source for source in sorted(found, key=lambda source: source.name)}


PUBLISHED: dict[str, Source] = discover()

DRAWN = Source(
    "synthetic",
    "Synthetic drawings",
    licence="Apache-2.0: drawn by chexmask_u, of nobody",
    policy="open",
)
"""What `generate` draws where it is given no images."""


def get(name: str) -> Source:
    """The published source of that name, or a plain one: neither cropped nor known to anybody else."""
    return PUBLISHED.get(name) or (DRAWN if name == DRAWN.name else Source(name, name))


def describe_preparation(names: Iterable[str], preparation: Preparation) -> dict[str, str]:
    """How the images of each source become the network's, in a sentence."""
    return {name: get(name).describe(preparation) for name in names}


__all__ = ["PUBLISHED", "Preparation", "Source", "describe_preparation", "discover", "get"]
