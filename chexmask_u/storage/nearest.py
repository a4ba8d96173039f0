"""What may have been meant where a local path names nothing."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from chexmask_u.errors import did_you_mean
from chexmask_u.storage.urls import is_local, normalise

# Of larger folders the rest is not looked at: a message is not to take longer than the job.
_NAMES = 20_000


def nearest(url: str) -> str:
    """The end of a sentence about a local path at which there is nothing: "; did you mean 'x.png'?".

    It names the folder that is missing where that is not the last part of the path, and is empty where there is nothing
    to say: nothing has a name that is near, there is something after all, or the path is on another storage.
    """
    if not is_local(url):
        return ""
    path = Path(normalise(url))
    try:
        missing = next((one for one in (*reversed(path.parents), path) if not _is_there(one)), None)
    except OSError:
        return ""
    if missing is None:
        return ""
    where = "" if missing == path else f"; there is no folder {missing}"
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, _NAMES)]
    except OSError:
        return where
    return where + did_you_mean(missing.name, names)


def _is_there(path: Path) -> bool:
    """Whether there is anything, a link that leads nowhere included.

    Raises:
        OSError: if that cannot be told.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
