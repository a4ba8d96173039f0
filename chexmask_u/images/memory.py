"""Freed memory, kept by the process for its next image: having it mapped anew costs more than most work on it."""

from __future__ import annotations

import ctypes
from functools import cache

# glibc's numbers for the options of mallopt(3): free memory at the heap's end that is kept, and the size from which a
# block is mapped for itself. The latter's largest possible value is 32 MiB; nothing here is larger.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, MAPPED_BYTES = 2**28, 2**25


@cache
def keep_freed() -> None:
    """Have this process keep the memory that it frees, for the next image, instead of mapping it anew.

    With its own choice glibc gives it back after every image. Other C libraries are left as they are.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
    set_option(M_MMAP_THRESHOLD, MAPPED_BYTES)
