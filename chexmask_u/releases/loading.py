"""How `datasets` loads a release from where it lies: the line that `release` prints."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from typing import Any

from chexmask_u import storage
from chexmask_u.result import Result


def line(folder: str, source: str) -> str:
    """Python that loads a source's landmarks with `datasets`, or why it cannot.

    Args:
        folder: of the release: a local path or URL.
        source: with records.
    """
    pattern = glob.escape(folder)
    local = storage.is_local(folder)
    if "::" in folder or (local and "$" in folder):
        # It takes what follows for another file, or for a variable of the shell.
        return "# datasets cannot read below a name with '::' or '$'; copy the release, or link it, to load it"
    if local and pattern == folder:
        return f'datasets.load_dataset({_quoted(folder)}, {_quoted(source)}, split="train")'
    # It takes a folder's name for a pattern, and a URL for a relative path; of files it takes both.
    files = storage.join(pattern, source, "landmarks-*.parquet")
    return f'datasets.load_dataset("parquet", data_files={_quoted(files)}, split="train")'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def told(content: Mapping[str, Any]) -> Result:
    """What a release tells that was made: where it is, and how to load it."""
    records = sum(counts["ok"] for counts in content["counts"].values())
    source = next(source for source, counts in content["counts"].items() if counts["ok"])
    before = ", made before" if content["made_before"] else ""
    return Result(
        content,
        f"Release: {content['folder']} ({records:,} records in {len(content['files'])} files{before})\n"
        f"  {line(content['folder'], source)}",
    )
