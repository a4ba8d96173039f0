"""Storage, local or remote: URLs, the filesystems behind them, what their faults mean, and the secrets in them.

It imports nothing of the package but its errors.
"""

from chexmask_u.storage.faults import explain, explained, is_forbidden, is_missing, is_out_of_range, is_transient
from chexmask_u.storage.filesystems import (
    HTTP_SECONDS,
    S3_ATTEMPTS,
    PatientS3,
    arrow_filesystem,
    filesystem,
    names_in,
    put,
    resolve,
    s3_attempts,
)
from chexmask_u.storage.nearest import nearest
from chexmask_u.storage.secrets import redact
from chexmask_u.storage.urls import (
    as_text,
    check_scheme,
    is_local,
    is_relative,
    join,
    local_folder,
    normalise,
    schemes,
)

__all__ = [
    "HTTP_SECONDS",
    "S3_ATTEMPTS",
    "PatientS3",
    "arrow_filesystem",
    "as_text",
    "check_scheme",
    "explain",
    "explained",
    "filesystem",
    "is_forbidden",
    "is_local",
    "is_missing",
    "is_out_of_range",
    "is_relative",
    "is_transient",
    "join",
    "local_folder",
    "names_in",
    "nearest",
    "normalise",
    "put",
    "redact",
    "resolve",
    "s3_attempts",
    "schemes",
]
