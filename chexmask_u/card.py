"""The dataset card of a release: README.md with the YAML that `datasets` and the Hub read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2

from chexmask_u import anatomy


def render(release: Mapping[str, Any]) -> str:
    """The card of a release.

    Args:
        release: what release.json holds.
    """
    template = resources.files("chexmask_u") / "templates" / "card.md.j2"
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    configs = {
        config: f"{file['path'].rsplit('/', 1)[0]}/{file['kind']}-*.parquet"
        for file in release["files"]
        for config in [file["config"]]
    }
    total = sum(counts["ok"] for counts in release["counts"].values())
    return environment.from_string(template.read_text()).render(
        release=release,
        configs=configs,
        total=total,
        size_category=_size_category(total),
        first_source=next(source for source, counts in release["counts"].items() if counts["ok"]),
        landmarks={organ: (part.start, part.stop) for organ, part in anatomy.LANDMARKS.items()},
    )


def _size_category(rows: int) -> str:
    """The Hub's name for a dataset's size."""
    steps = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in steps if rows < limit), "1M<n<10M")
