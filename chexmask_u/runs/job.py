"""A driver that `ray job submit` started: its folder is a copy, which Ray deletes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fsspec.core import split_protocol

from chexmask_u import storage
from chexmask_u.errors import InputError

# Ray tells a job's driver by it what the job is.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"

# Folder of Ray's session in which each machine keeps its copies of what was submitted.
_COPIES = "working_dir_files"


def check_places(places: Mapping[str, str | None]) -> None:
    """Check that a job's driver does not take its own folder for one that lasts.

    Args:
        places: local paths or URLs of what is written, or read again later, by the name of their flag or argument.

    Raises:
        InputError: if one is relative.
    """
    for flag, place in places.items():
        if _in_job() and place is not None and _is_relative(place):
            raise InputError(
                f"{flag} {place}: is relative, and a Ray job's folder is a copy that Ray deletes;"
                " give an absolute path that every machine sees, or a URL"
            )


def check_shipped(flag: str, place: str) -> None:
    """Check that the workers of a job find a file that its driver reads: one that was submitted with it, or absolute.

    Raises:
        InputError: if it is relative and not in the folder that was submitted.
    """
    if not (_in_job() and _is_relative(place)):
        return
    here = Path.cwd()
    if _COPIES not in here.parts or not Path(storage.normalise(place)).is_relative_to(here):
        raise InputError(
            f"{flag} {place}: is not in a folder that was submitted with the job, so workers would not find it;"
            " give an absolute path that every machine sees, or a URL"
        )


def _in_job() -> bool:
    return _JOB in os.environ


def _is_relative(place: str) -> bool:
    return storage.is_local(place) and not Path(split_protocol(place)[1]).expanduser().is_absolute()
