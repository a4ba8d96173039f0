"""`chexmask-u <verb>`: flags from the settings, one-line errors, exit codes.

0: done. 1: the run ended incomplete, and the same command goes on with it, or a check failed. 2: bad usage or input,
nothing was done.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import os
import shutil
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NoReturn, TextIO

from chexmask_u import entry, sources, storage
from chexmask_u import settings as of
from chexmask_u.errors import InputError, StoppedError, did_you_mean
from chexmask_u.result import BAD_INPUT, DONE, INCOMPLETE, Result
from chexmask_u.settings import GROUPS, OTHER, Settings, flag, group_of
from chexmask_u.version import __version__

__all__ = ["BAD_INPUT", "DONE", "INCOMPLETE", "main"]


IMAGES, DATASET, MAINTAIN = "I have images", "I want the dataset", "I maintain it"
DOORS = (IMAGES, DATASET, MAINTAIN)

_EXPERIMENT_ON = {
    "pixel": "--data FOLDER --split split.csv --weights RUN --weights PHISEG",
    "ood": "--images USUAL --out-of ODD",
    "rca": "--release RELEASE",
}
"""What the examples of experiments give them, where annotated images alone are not enough."""
"""Who comes for what: the groups that `chexmask-u --help` lists verbs in, as README and the documentation do."""


@dataclass(frozen=True)
class Option:
    """What a verb takes, as its help and the documentation tell it.

    Attributes:
        name: as it is typed, for instance "--max-side"; of a positional one, its setting's name.
        type: of its value; bool where it takes none.
        kind: what its value is, in one word, for instance PIXELS.
        choices: the only values that it may have; None where there are others.
        help: what it is.
        default: its value where it is not given; None where there is none, or where `help` says what happens.
        group: what it stands under, one of `settings.GROUPS`.
        required: whether it must be given.
        several: whether it takes several values, or may be repeated.
    """

    name: str
    type: type[bool] | type[int] | type[float] | type[str]
    kind: str
    choices: tuple[str, ...] | None
    help: str
    default: Any
    group: str
    required: bool
    several: bool


@dataclass(frozen=True)
class Verb:
    """A verb, of which nothing is imported before it runs.

    Attributes:
        words: as they are typed.
        settings: what its flags are made of.
        home: "module:function" below the package; the function takes the settings and gives a `Result`.
        examples: commands, one a line.
        about: one sentence; "" for that of the settings.
        fixed: settings that the words themselves say.
        door: one of `DOORS`.
    """

    words: str
    settings: type[Settings]
    home: str
    examples: str
    about: str = ""
    fixed: dict[str, str] = field(default_factory=dict)
    door: str = MAINTAIN

    @property
    def says(self) -> str:
        """What it does, in one sentence."""
        return self.about or (self.settings.__doc__ or "").strip()

    def options(self) -> Iterator[Option]:
        """Its options, other than those that its words say, in the settings' order."""
        return self._options(taken=True)

    def refused(self) -> Iterator[Option]:
        """Options of other verbs with the same settings, which these refuse with a word about who takes them."""
        return self._options(taken=False)

    def _options(self, *, taken: bool) -> Iterator[Option]:
        hints = typing.get_type_hints(self.settings)
        for one in fields(self.settings):
            only = one.metadata["only"]
            if one.name in self.fixed or taken != (not only or not set(only).isdisjoint(self.fixed.values())):
                continue
            said, hint = one.metadata, hints[one.name]
            type_ = _scalar(hint)
            several = typing.get_origin(hint) is tuple
            # A help text says itself what happens without the others.
            tells = type_ is not bool and not (several or said["required"] or one.default in (None, MISSING))
            yield Option(
                name=one.name if said["positional"] else flag(one.name),
                type=type_,
                kind=said["kind"] or {int: "N", float: "X"}.get(type_, one.name.upper()),
                choices=said["choices"],
                help=said["help"],
                default=one.default if tells else None,
                group=group_of(one),
                required=said["required"],
                several=several,
            )

    def grouped(self) -> dict[str, list[Option]]:
        """Its options by what they stand under; groups that nobody foresaw stand last but for the general one."""
        options = list(self.options())
        titles = dict.fromkeys([*GROUPS[:-1], *(option.group for option in options if option.group != OTHER), OTHER])
        return {title: [option for option in options if option.group == title] for title in titles}

    def run(self, settings: Settings) -> Result:
        module, _, function = self.home.partition(":")
        verb: Callable[[Settings], Result] = getattr(importlib.import_module(f"chexmask_u.{module}"), function)
        return verb(settings)


# What verbs of two words have in common.
FAMILIES = {
    "manifest": "List images as a manifest, or merge manifests.",
    "experiment": "Check what the paper claims of the uncertainty, on any weights and images.",
}


def verbs() -> Iterator[Verb]:
    """The verbs of each door, in the order in which data flow."""
    yield Verb(
        "segment",
        of.SegmentSettings,
        "use.segment_folder:verb",
        "chexmask-u segment chest.dcm --output pictures --preview\n"
        "chexmask-u segment s3://my-bucket/radiographs --output s3://my-bucket/pictures",
        door=IMAGES,
    )
    yield Verb("app", of.AppSettings, "app.serve:verb", "chexmask-u app\nchexmask-u app --space my-space", door=IMAGES)
    yield Verb(
        "manifest folder",
        of.ManifestFolderSettings,
        "manifests.folder:verb",
        "chexmask-u manifest folder s3://my-bucket/radiographs --source my-hospital --output m.parquet",
        door=IMAGES,
    )
    for name, source in sources.PUBLISHED.items():
        yield Verb(
            f"manifest {name}",
            of.ManifestSourceSettings,
            "manifests.join:verb",
            f"chexmask-u manifest {name} --images FOLDER --chexmask {source.csv_name}.csv --output {name}.parquet",
            about=f"List {source.title}'s images, joined with their rows in a CheXmask CSV.",
            fixed={"source": name},
            door=IMAGES,
        )
    yield Verb(
        "manifest merge",
        of.ManifestMergeSettings,
        "manifests.merge:verb",
        "chexmask-u manifest merge chexpert.parquet padchest.parquet --output all.parquet --accept-less",
        door=IMAGES,
    )
    yield Verb(
        "generate",
        of.GenerateSettings,
        "demo:verb",
        "chexmask-u generate\n"
        "chexmask-u generate --manifest m.parquet --output RUN --weights hf://mcosarinsky/CheXmask-U/v1_skip",
        door=IMAGES,
    )
    yield Verb(
        "release",
        of.ReleaseSettings,
        "pipeline:release_verb",
        "chexmask-u release RUN --output releases\n"
        "chexmask-u release RUN --output releases --exclude mimic-cxr-jpg --calibration my-site.json",
        door=IMAGES,
    )
    yield Verb(
        "validate",
        of.ValidateSettings,
        "releases.validate:verb",
        "chexmask-u validate releases/v1.0.0",
        door=DATASET,
    )
    yield Verb(
        "export",
        of.ExportSettings,
        "releases.export:verb",
        "chexmask-u export releases/v1.0.0 --format coco --output coco\n"
        "chexmask-u export releases/v1.0.0 --format chexmask-csv --output csvs",
        door=DATASET,
    )
    yield Verb(
        "diff",
        of.DiffSettings,
        "releases.diff:verb",
        "chexmask-u diff releases/v1.0.0 releases/v1.1.0 --output changes\n"
        "chexmask-u diff ORG/NAME@v1.0.0 ORG/NAME@v1.1.0",
        door=DATASET,
    )
    yield Verb(
        "verify",
        of.VerifySettings,
        "verify:verb",
        "chexmask-u verify --published CheXpert.csv --images CheXpert-v1.0 --weights WEIGHTS --output verified\n"
        "chexmask-u verify --published CheXpert.csv --run RUN",
    )
    yield Verb(
        "publish",
        of.PublishSettings,
        "releases.publish:verb",
        "chexmask-u publish releases/v1.0.0 --repo ORG/NAME --dry-run\n"
        "chexmask-u publish releases/v1.0.0 --repo ORG/NAME --gated manual",
    )
    yield Verb(
        "train",
        of.TrainSettings,
        "training.distributed:verb",
        "chexmask-u train --data FOLDER --output RUN --input-size 256\n"
        "chexmask-u train --data jsrt=JSRT --landmarks jsrt=jsrt.npz --data montgomery=MontgomerySet --output RUN",
    )
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
        "chexmask-u calibrate --weights RUN --data FOLDER --split RUN/split.csv --output RUN/calibration.json\n"
        "chexmask-u calibrate --weights RUN --data MY-SITE --start RUN/calibration.json --output my-site.json",
    )
    yield Verb(
        "bench",
        of.BenchSettings,
        "bench.report:verb",
        "chexmask-u bench --quick\nchexmask-u bench --device cuda --check --output benchmarks/results",
    )
    for name, about in of.EXPERIMENTS.items():
        given = _EXPERIMENT_ON.get(name, "--data FOLDER --split split.csv")
        yield Verb(
            f"experiment {name}",
            of.ExperimentSettings,
            "experiments:verb",
            f"chexmask-u experiment {name} {given} --output {name}",
            about=about[0].upper() + about[1:],
            fixed={"experiment": name},
        )
    yield Verb(
        "plan",
        of.PlanSettings,
        "bench.plan:verb",
        "chexmask-u plan --manifest m.parquet --rows 657566 --cpus 128 --gpus 16 --price-per-hour 30\n"
        "chexmask-u plan --bench benchmarks/results/RESULT.json --rows 657566 --cpus 16 --gpus 1",
    )
    yield Verb(
        "info",
        of.InfoSettings,
        "use.info:verb",
        "chexmask-u info --weights hf://mcosarinsky/CheXmask-U/v1_skip --check",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parser = build_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        return BAD_INPUT
    chosen, unknown = parser.parse_known_args(arguments)
    options = vars(chosen)
    as_json, verb, own = options.pop("json", False), options.pop("verb"), options.pop("parser")
    if unknown:
        own.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown[0].partition('=')[0], own.flags)}")
    # Python puts handlers back to the default in its last moments, which would end a run that is done with -15.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    try:
        # A cluster ends a job with SIGTERM; it is to end as it does on Ctrl-C, so that the run can go on later.
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is entry.end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
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
        result = Result({"error": "interrupted"}, "", INCOMPLETE, entry.INTERRUPTED)
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


def _meant(unknown: str, flags: Sequence[str]) -> str:
    """What to say of an unknown flag besides that."""
    if unknown in ("--resume", "--continue"):
        return "; no flag is needed: the same command goes on where it stopped"
    return did_you_mean(unknown, flags)


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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Wraps paragraphs, and leaves lines that begin with a space as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(line if line.startswith(" ") else fill(line, width, indent) for line in text.splitlines())


class _PrintCompletion(argparse.Action):
    """Prints the script that completes verbs, flags and paths in a shell, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: str | None = None) -> None:
        shtab = importlib.import_module("shtab")
        completes = dict.fromkeys(_FILES, shtab.FILE) | dict.fromkeys(_FOLDERS, shtab.DIRECTORY)
        for action in _actions(parser):
            # Help leaves the verbs out, since it lists them by door, and shtab would leave them out, too.
            action.help = None if isinstance(action, argparse._SubParsersAction) else action.help
            if action.metavar in completes:
                action.complete = completes[action.metavar]  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell))
        parser.exit()


# Kinds of values that a shell completes as paths.
_FILES = ("FILE", "IMAGE", "WEIGHTS")
_FOLDERS = ("FOLDER", "RUN", "RELEASE")


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """What a parser takes, and those of its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


def build_parser() -> _Parser:
    listed = list(verbs())
    parser = _Parser(
        prog="chexmask-u",
        usage="chexmask-u [--help] [--version] VERB ...",
        description=f"Landmarks of chest radiographs, with uncertainty.\n\n{_doors(listed)}",
        epilog="chexmask-u VERB --help tells what a verb takes, with examples.\n"
        "Exit codes: 0 done; 1 ended incomplete, and the same command goes on, or a check failed;"
        " 2 bad usage or input.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--completion",
        action=_PrintCompletion,
        choices=("bash", "zsh"),
        default=argparse.SUPPRESS,
        help='print what makes a shell complete verbs and flags: eval "$(chexmask-u --completion bash)"',
    )
    # The doors list the verbs.
    top = parser.add_subparsers(required=True, metavar="VERB", help=argparse.SUPPRESS, prog="chexmask-u")
    groups: dict[str, Any] = {}
    for verb in listed:
        group, _, name = verb.words.rpartition(" ")
        if group and group not in groups:
            about = FAMILIES[group]
            groups[group] = top.add_parser(group, help=about, description=about, formatter_class=_Help).add_subparsers(
                required=True, metavar="KIND"
            )
        _add(groups.get(group, top), name, verb)
    return parser


def _doors(listed: Sequence[Verb]) -> str:
    """The verbs with what each does, by door."""
    width = max(len(verb.words.split()[0]) for verb in listed) + 4
    lines = []
    for door in DOORS:
        said = {verb.words.split()[0]: verb.says for verb in listed if verb.door == door}
        lines.append(f"{door}:")
        for name, what in said.items():
            told = textwrap.wrap(FAMILIES.get(name, what), max(shutil.get_terminal_size().columns - 2 - width, 20))
            lines += [f"  {name if not row else '':<{width - 2}}{line}" for row, line in enumerate(told)]
        lines.append("")
    return "\n".join(lines)


def _add(verbs: Any, name: str, verb: Verb) -> None:
    """Add a verb with a flag for each of its settings, other than those that its words say."""
    examples = [f"  {example}" for example in verb.examples.splitlines()]
    parser = verbs.add_parser(
        name,
        help=verb.says,
        description=verb.says,
        epilog="\n".join(["example:" if len(examples) == 1 else "examples:", *examples]),
        formatter_class=_Help,
        add_help=False,
    )
    for title, options in verb.grouped().items():
        group = parser.add_argument_group(title)
        for option in options:
            _add_option(group, option)
    for option in verb.refused():
        _add_option(parser, replace(option, help=argparse.SUPPRESS))
    group.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="end stdout with a line of JSON")
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.set_defaults(verb=verb, parser=parser, **verb.fixed)


def _add_option(group: Any, option: Option) -> None:
    # The dataclass's own default holds then, and argparse prints none.
    default = argparse.SUPPRESS if option.default is None else option.default
    if option.type is bool:
        group.add_argument(option.name, action="store_true", default=default, help=option.help)
        return
    said: dict[str, Any] = {"help": option.help, "type": option.type}
    said |= {"choices": option.choices} if option.choices else {"metavar": option.kind}
    if not option.name.startswith("-"):
        group.add_argument(option.name, **said, **({"nargs": "+"} if option.several else {}))
    else:
        said |= {"action": "append"} if option.several else {}
        group.add_argument(option.name, default=default, required=option.required, **said)


def _scalar(hint: Any) -> Any:
    """The type of one value: `int` of `int | None`."""
    return next(part for part in (typing.get_args(hint) or (hint,)) if part is not type(None))


if __name__ == "__main__":
    sys.exit(main())
