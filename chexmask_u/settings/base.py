"""What a verb's settings are: one frozen dataclass, its flags, validation and words in reports."""

from __future__ import annotations

from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Self

from chexmask_u.errors import InputError

INPUT, OUTPUT, NUMBERS, MACHINES, OTHER = "input", "output", "what numbers depend on", "machines and speed", "options"

NETWORK, OPTIMISER, AUGMENTATION = "network and loss", "optimiser", "augmentation"


GROUPS = (INPUT, OUTPUT, NUMBERS, NETWORK, OPTIMISER, AUGMENTATION, MACHINES, OTHER)
"""What `--help` and the documentation put flags under, in this order."""


def setting(
    default: Any,
    help: str,
    *,
    numbers: bool = False,
    choices: tuple[str, ...] | None = None,
    positional: bool = False,
    required: bool = False,
    least: float | None = None,
    most: float | None = None,
    kind: str = "",
    group: str = "",
    only: tuple[str, ...] = (),
) -> Any:
    """A setting, which a verb's command line and its Python class take and refuse alike.

    Args:
        default: its value where none is given.
        help: what it is, for users.
        numbers: whether results depend on it, so that a resumed run may not change it.
        choices: the only values that it may have.
        positional: whether it is given by its place and not by a flag.
        required: whether it must be given.
        least, most: the range that a number must lie in.
        kind: what its value is, in one word for users, such as FILE ("" for N of whole numbers, X of others, and else
            the setting's own name).
        group: what it stands under in `--help`, one of `GROUPS` ("" for what follows from the rest; see `group_of`).
        only: words of those verbs of a family with the same settings that take it; () for all of them.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "numbers": numbers,
            "choices": choices,
            "positional": positional,
            "required": required,
            "least": least,
            "most": most,
            "kind": kind,
            "group": group,
            "only": only,
        },
    )


def group_of(one: Field[Any]) -> str:
    """What a setting stands under in `--help`."""
    if one.metadata["group"]:
        return str(one.metadata["group"])
    if one.name == "output":
        return OUTPUT
    if one.metadata["positional"] or one.metadata["required"]:
        return INPUT
    return NUMBERS if one.metadata["numbers"] else OTHER


@dataclass(frozen=True)
class Settings:
    """What all verbs share: settings know what they are called, which values they take, and which fix the numbers.

    Raises:
        InputError: naming the first setting that is missing or cannot be.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            self._check(one)

    def _check(self, one: Field[Any]) -> None:
        value, said = getattr(self, one.name), one.metadata
        name = one.name if said["positional"] else flag(one.name)
        if said["required"] and value in ("", (), None):
            raise InputError(f"{name} is needed: {said['help']}")
        if value is None:
            return
        if said["choices"] and value not in said["choices"]:
            raise InputError(f"{name} must be one of {', '.join(said['choices'])}, not {value!r}")
        low, high = said["least"], said["most"]
        # Not a comparison that NaN would pass.
        if not ((low is None or value >= low) and (high is None or value <= high)):
            bounds = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise InputError(f"{name} must be {bounds}, not {value}")

    def numbers(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["numbers"]}

    def asdict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Self:
        given = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        # argparse collects repeated values in lists.
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def flag(name: str) -> str:
    """A setting's flag on the command line."""
    return f"--{name.replace('_', '-')}"
