"""Credentials in URLs, which no message, file or log may show."""

from __future__ import annotations

import re

# Up to the last "@" before a slash: a password may hold another.
_USER_INFO = re.compile(r"(://)[^/\s\"<>]*@")

# Parameters of presigned URLs (AWS, Google, Azure) and of those that web servers make up.
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&;\s]*(?:sig|token|secret|passw|pwd|credential|key|auth|access|jwt)[^=&;\s]*=)[^&\s\"'<>)]*[^&\s\"'<>):,]",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """A text without what its URLs may hold of credentials: user and password, signatures, tokens and keys."""
    return _SECRET_PARAMETER.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))
