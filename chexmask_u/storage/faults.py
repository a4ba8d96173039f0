"""What a storage's exceptions mean: one line for people, and whether trying again may help."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from chexmask_u.errors import InputError, StoppedError
from chexmask_u.storage.nearest import nearest
from chexmask_u.storage.secrets import redact

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")

_FORBIDDEN_STATUS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

# What AWS's own clients try again after.
_TRANSIENT_STATUS = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

# aiohttp's and botocore's, by name since other storages need neither.
_LOST_CONNECTION = {"ClientConnectionError", "ClientPayloadError", "ConnectionError", "HTTPClientError"}

# How buckets and shares that are mounted as folders say it.
_TRANSIENT_ERRNO = (errno.EIO, errno.ESTALE)


@contextmanager
def explained(url: str, done: str = "read", *, missing: str | None = None, typed: bool = True) -> Iterator[None]:
    """Turn whatever a storage or a parser raises into one line: "URL: cannot be read (why)".

    Args:
        url: of the file or folder that is at fault.
        done: what cannot be done with it: "read", "written", "opened", "listed".
        missing: what to say instead where nothing is there; None where that is a fault like any other.
        typed: whether somebody typed the URL, so that the nearest name that is there may have been meant.

    Raises:
        InputError: as said; one that is raised within passes, and so does a StoppedError.
    """
    try:
        yield
    except (InputError, StoppedError):
        raise
    except Exception as error:
        if missing is not None and is_missing(error):
            raise InputError(f"{url}: {missing}{nearest(url) if typed else ''}") from error
        raise InputError(f"{url}: cannot be {done} ({explain(error)})") from error


def explain(error: BaseException) -> str:
    """One line of an exception, with its type where the text alone would not tell, and without secrets."""
    text = redact(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text and text[0] else type(error).__name__


def is_missing(error: BaseException) -> bool:
    """Whether an exception says that the object is not there."""
    return isinstance(error, FileNotFoundError | NotADirectoryError)


def is_forbidden(error: BaseException) -> bool:
    """Whether an exception says that access was refused, or that no credentials were found."""
    # botocore's own errors, told by name since other storages need no botocore.
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in _NO_CREDENTIALS
        or _http_status(error) in _FORBIDDEN_STATUS
    )


def is_out_of_range(error: BaseException) -> bool:
    """Whether an exception says that the object ends before the range that was asked for begins."""
    return _http_status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def is_transient(error: BaseException) -> bool:
    """Whether an exception is one after which trying again may help: a lost connection, a busy server, a timeout."""
    return (
        isinstance(error, TimeoutError | ConnectionError)
        or not _LOST_CONNECTION.isdisjoint(kind.__name__ for kind in type(error).__mro__)
        or _http_status(error) in _TRANSIENT_STATUS
        or (isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO)
    )


def _http_status(error: BaseException) -> int | None:
    """Status of the answer that an exception stands for, if there was one: aiohttp's, or botocore's below s3fs's."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        status = getattr(one, "status", None)
        if isinstance(status, int):
            return status
    return None
