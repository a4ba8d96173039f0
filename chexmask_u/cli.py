"""`chexmask-u <verb>`: flags from the settings, one-line errors, exit codes.

0: done. 1: the run ended incomplete, and the same command goes on with it, or a check failed. 2: bad usage or input,
nothing was done.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, TextIO

from chexmask_u import settings as of
from chexmask_u import sources, storage
from chexmask_u.errors import InputError, StoppedError, did_you_mean
from chexmask_u.result import BAD_INPUT, DONE, INCOMPLETE, Result
from chexmask_u.settings import Settings, flag
from chexmask_u.version import __version__

__all__ = ["BAD_INPUT", "DONE", "INCOMPLETE", "main"]


@dataclass(frozen=True)
class Verb:
    """A verb, of which nothing is imported before it runs.

    Attributes:
        words: as they are typed.
        settings: what its flags are made of.
        home: "module:function" below the package; the function takes the settings and gives a `Result`.
        example: one command.
        about: one sentence; "" for that of the settings.
        fixed: settings that the words themselves say.
    """

    words: str
    settings: type[Settings]
    home: str
    example: str
    about: str = ""
    fixed: dict[str, str] = field(default_factory=dict)

    def run(self, settings: Settings) -> Result:
        module, _, function = self.home.partition(":")
        verb: Callable[[Settings], Result] = getattr(importlib.import_module(f"chexmask_u.{module}"), function)
        return verb(settings)


def verbs() -> Iterator[Verb]:
    """The verbs, in the order in which data flow."""
    yield Verb(
        "manifest folder",
        of.ManifestFolderSettings,
        "manifests.folder:verb",
        "chexmask-u manifest folder s3://my-bucket/radiographs --source my-hospital --output m.parquet",
    )
    for name, source in sources.PUBLISHED.items():
        yield Verb(
            f"manifest {name}",
            of.ManifestSourceSettings,
            "manifests.join:verb",
            f"chexmask-u manifest {name} --images FOLDER --chexmask {source.csv_name}.csv --output {name}.parquet",
            about=f"List {source.title}'s images, joined with their rows in a CheXmask CSV.",
            fixed={"source": name},
        )
    yield Verb(
        "manifest merge",
        of.ManifestMergeSettings,
        "manifests.merge:verb",
        "chexmask-u manifest merge chexpert.parquet padchest.parquet --output all.parquet",
    )
    yield Verb(
        "generate",
        of.GenerateSettings,
        "demo:verb",
        "chexmask-u generate --manifest m.parquet --output RUN --weights hf://mcosarinsky/CheXmask-U/v1_skip",
    )
    yield Verb(
        "segment", of.SegmentSettings, "use.segment_folder:verb", "chexmask-u segment chest.dcm --output pictures"
    )
    yield Verb("app", of.AppSettings, "app.serve:verb", "chexmask-u app")
    yield Verb("release", of.ReleaseSettings, "pipeline:release_verb", "chexmask-u release RUN --output releases")
    yield Verb("validate", of.ValidateSettings, "releases.validate:verb", "chexmask-u validate releases/v1.0.0")
    yield Verb(
        "export",
        of.ExportSettings,
        "releases.export:verb",
        "chexmask-u export releases/v1.0.0 --format coco --output coco",
    )
    yield Verb(
        "publish",
        of.PublishSettings,
        "releases.publish:verb",
        "chexmask-u publish releases/v1.0.0 --repo ORG/NAME --dry-run",
    )
    yield Verb(
        "diff",
        of.DiffSettings,
        "releases.diff:verb",
        "chexmask-u diff releases/v1.0.0 releases/v1.1.0 --output changes",
    )
    yield Verb(
        "verify",
        of.VerifySettings,
        "verify:verb",
        "chexmask-u verify --published CheXpert.csv --run RUN --output verified",
    )
    yield Verb("train", of.TrainSettings, "training.distributed:verb", "chexmask-u train --data FOLDER --output RUN")
    yield Verb(
        "evaluate",
        of.EvaluateSettings,
        "training.evaluate:verb",
        "chexmask-u evaluate --weights RUN/model.safetensors --data FOLDER --split RUN/split.csv",
    )
    yield Verb(
        "calibrate",
        of.CalibrateSettings,
        "training.calibrate:verb",
        "chexmask-u calibrate --weights RUN --data FOLDER --split RUN/split.csv --output RUN/calibration.json",
    )
    yield Verb("bench", of.BenchSettings, "bench.report:verb", "chexmask-u bench --output benchmarks/results")
    yield Verb(
        "plan",
        of.PlanSettings,
        "bench.forecast:verb",
        "chexmask-u plan --manifest m.parquet --rows 657566 --cpus 128 --gpus 16",
    )
    yield Verb(
        "info",
        of.InfoSettings,
        "use.info:verb",
        "chexmask-u info --weights hf://mcosarinsky/CheXmask-U/v1_skip --check",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        return BAD_INPUT
    chosen, unknown = parser.parse_known_args(arguments)
    options = vars(chosen)
    as_json, verb, own = options.pop("json", False), options.pop("verb"), options.pop("parser")
    if unknown:
        own.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0].partition('=')[0], own.flags)}")
    # A cluster ends a job with SIGTERM; it is to end as it does on Ctrl-C, so that the run can go on later.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        try:
            result = verb.run(verb.settings.from_mapping(options))
        except InputError as error:
            result = Result({"error": str(error)}, "", BAD_INPUT, str(error))
        except StoppedError as error:
            problem = f"stopped ({error}); the same command goes on where it did"
            result = Result({"error": str(error)}, "", INCOMPLETE, problem)
        signal.signal(signal.SIGTERM, _wait)
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, _wait)
        problem = "interrupted; the same command goes on where it stopped"
        result = Result({"error": "interrupted"}, "", INCOMPLETE, problem)
    if result.problem:
        _say(f"chexmask-u: {result.problem}", file=sys.stderr)
    if result.text:
        _say(result.text)
    if as_json:
        _say(json.dumps(result.facts))
    sys.stdout.flush()
    # All is told; a process that is still tidying up ends at once, with the same code.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(result.code))
    return result.code


def _say(text: str, file: TextIO | None = None) -> None:
    """Print, without the secrets that a URL among the settings may hold."""
    print(storage.redact(text), file=file)


def _interrupt(signum: int, frame: types.FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _wait(signum: int, frame: types.FrameType | None) -> None:
    """The outcome is about to be told."""


class _Parser(argparse.ArgumentParser):
    """Names what may have been meant where a word is unknown."""

    @property
    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise


def _parser() -> _Parser:
    parser = _Parser(
        prog="chexmask-u",
        description="Landmarks of chest radiographs, with uncertainty.",
        epilog="Exit codes: 0 done; 1 ended incomplete, and the same command goes on, or a check failed;"
        " 2 bad usage or input.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top = parser.add_subparsers(required=True, metavar="VERB")
    groups: dict[str, Any] = {}
    for verb in verbs():
        group, _, name = verb.words.rpartition(" ")
        if group and group not in groups:
            about = "List images as a manifest."
            groups[group] = top.add_parser(group, help=about, description=about).add_subparsers(
                required=True, metavar="KIND"
            )
        _add(groups.get(group, top), name, verb)
    return parser


def _add(verbs: Any, name: str, verb: Verb) -> None:
    """Add a verb with a flag for each of its settings, other than those that its words say."""
    about = verb.about or (verb.settings.__doc__ or "").strip()
    parser = verbs.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example: {verb.example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    hints = typing.get_type_hints(verb.settings)
    # The dataclass's own default holds then, and argparse prints none.
    absent = argparse.SUPPRESS
    for one in fields(verb.settings):
        if one.name in verb.fixed:
            continue
        said, hint = one.metadata, hints[one.name]
        several = typing.get_origin(hint) is tuple
        options: dict[str, Any] = {"help": said["help"], "type": _scalar(hint)}
        if said["choices"]:
            options["choices"] = said["choices"]
        elif (kind := {int: "N", float: "X"}.get(options["type"])) is not None:
            options["metavar"] = kind
        if said["positional"]:
            if several:
                options["nargs"] = "+"
            parser.add_argument(one.name, **{"metavar": one.name.upper(), **options})
        elif hint is bool:
            parser.add_argument(flag(one.name), action="store_true", default=absent, help=options["help"])
        else:
            # argparse would print "(default: None)" behind a help text that already says what happens.
            unsaid = one.default is None or several or said["required"]
            if several:
                options["action"] = "append"
            default = absent if unsaid else one.default
            parser.add_argument(flag(one.name), default=default, required=said["required"], **options)
    parser.add_argument("--json", action="store_true", default=absent, help="end stdout with one line of JSON")
    parser.set_defaults(verb=verb, parser=parser, **verb.fixed)


def _scalar(hint: Any) -> Any:
    """The type of one value: `int` of `int | None`."""
    return next(part for part in (typing.get_args(hint) or (hint,)) if part is not type(None))


if __name__ == "__main__":
    sys.exit(main())
