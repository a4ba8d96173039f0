"""What a verb gives back: facts for programs, a text for people, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DONE, INCOMPLETE, BAD_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Result:
    """The outcome of a verb.

    Attributes:
        facts: what `--json` prints.
        text: what people read, on stdout.
        code: `DONE`; `INCOMPLETE` if the same command goes on with it, or a check failed; `BAD_INPUT`.
        problem: one line for stderr; "" where there is none.
    """

    facts: Mapping[str, Any]
    text: str
    code: int = DONE
    problem: str = ""
