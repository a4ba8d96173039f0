"""`chexmask-u <verb>`: flags from the settings, one-line errors, exit codes.

0: done. 1: the run ended incomplete; the same command goes on with it. 2: bad usage or input, nothing was done.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TextIO

from chexmask_u import demo, info, pipeline, sources, storage
from chexmask_u.bench import plan
from chexmask_u.errors import InputError, StoppedError
from chexmask_u.manifests import join, manifest, merge
from chexmask_u.releases import diff, export
from chexmask_u.releases.publish import publish
from chexmask_u.runs import cluster
from chexmask_u.settings import (
    BenchSettings,
    DiffSettings,
    EvaluateSettings,
    ExportSettings,
    GenerateSettings,
    InfoSettings,
    ManifestFolderSettings,
    ManifestMergeSettings,
    ManifestSourceSettings,
    PlanSettings,
    PublishSettings,
    ReleaseSettings,
    SegmentSettings,
    Settings,
    TrainSettings,
    ValidateSettings,
)
from chexmask_u.training import distributed, evaluate
from chexmask_u.version import __version__

DONE, INCOMPLETE, BAD_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    as_json, verb, settings_type = options.pop("json", False), options.pop("verb"), options.pop("settings_type")
    # A cluster ends a job with SIGTERM; it is to end as it does on Ctrl-C, so that the run can go on later.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result, text, code = verb(settings_type.from_mapping(options))
    except InputError as error:
        _say(f"chexmask-u: {error}", file=sys.stderr)
        result, text, code = {"error": str(error)}, "", BAD_INPUT
    except StoppedError as error:
        _say(f"chexmask-u: stopped ({error}); the same command goes on where it did", file=sys.stderr)
        result, text, code = {"error": str(error)}, "", INCOMPLETE
    except KeyboardInterrupt:
        print("chexmask-u: interrupted; the same command goes on where it stopped", file=sys.stderr)
        result, text, code = {"error": "interrupted"}, "", INCOMPLETE
    if text:
        _say(text)
    if as_json:
        _say(json.dumps(result))
    return code


def _say(text: str, file: TextIO | None = None) -> None:
    """Print, without the secrets that a URL among the settings may hold."""
    print(storage.redact(text), file=file)


def _generate(settings: GenerateSettings) -> tuple[dict[str, Any], str, int]:
    if settings.manifest is None:
        return _demo(settings)
    summary = pipeline.generate(settings)
    return summary, _run_text(str(settings.output), summary), DONE if summary["complete"] else INCOMPLETE


def _demo(settings: GenerateSettings) -> tuple[dict[str, Any], str, int]:
    prepared = demo.prepare(settings)
    # One Ray for both verbs.
    with cluster.connected(settings.address):
        summary = pipeline.generate(prepared.generate)
        text = _run_text(str(prepared.generate.output), summary)
        if not summary["complete"]:
            return summary, text, INCOMPLETE
        if demo.is_released(prepared.release):
            folder = storage.join(prepared.release.output, demo.VERSION)
            return summary, f"{text}\nRelease: {folder} (made before)", DONE
        return summary, f"{text}\n{_release_text(pipeline.make_release(prepared.release))}", DONE


def _release(settings: ReleaseSettings) -> tuple[dict[str, Any], str, int]:
    content = pipeline.make_release(settings)
    return content, _release_text(content), DONE


def _validate(settings: ValidateSettings) -> tuple[dict[str, Any], str, int]:
    content = pipeline.validate(settings)
    records = sum(counts["ok"] for counts in content["counts"].values())
    return content, f"{settings.release}: valid, {records:,} records in {len(content['files'])} files", DONE


def _export(settings: ExportSettings) -> tuple[dict[str, Any], str, int]:
    report = export.export(settings)
    lines = [f"{report.output}: {sum(report.rows.values()):,} records"]
    for source, files in report.files.items():
        before = " (made before)" if source in report.made_before else ""
        lines += [f"  {file}: {report.rows[source]:,}{before}" for file in files]
    return report.asdict(), "\n".join(lines), DONE


def _publish(settings: PublishSettings) -> tuple[dict[str, Any], str, int]:
    result = publish(settings)
    if not settings.dry_run:
        text = f"{result['repo']} {result['version']}: {result['status']}, {result['url']}/tree/{result['version']}"
        seen = ["private: only its members can load it"] if result["private"] else []
        seen += [f"gated: {result['gated']}"] if result["gated"] else []
        return result, "\n  ".join([text, *seen]), DONE
    lines = [f"{result['repo']}: {result['status']}; commit {result['message']!r}, tag {result['version']}"]
    if not result["asked"]:
        lines.append("  (the Hub does not answer, so what is there already is not known)")
    lines += [f"  terms of {source}: {policy}" for source, policy in result["terms"].items()]
    for file in result["files"]:
        lines.append(f"  {'send' if file['send'] else 'is there':8}  {file['bytes']:>14,}  {file['path']}")
    lines += [f"  {'delete':8}  {'':14}  {path}" for path in result["delete"]]
    sent = sum(file["bytes"] for file in result["files"] if file["send"])
    lines.append(f"{sent:,} of {result['bytes']:,} bytes would be sent")
    if result["refused"]:
        _say(f"chexmask-u: {result['refused']}", file=sys.stderr)
    return result, "\n".join(lines), BAD_INPUT if result["refused"] else DONE


def _diff(settings: DiffSettings) -> tuple[dict[str, Any], str, int]:
    report = diff.diff(settings)
    return report, diff.text(report), DONE


def _train(settings: TrainSettings) -> tuple[dict[str, Any], str, int]:
    result = distributed.train(settings)
    if result.get("diverged"):
        return result, f"Training stopped: {result['diverged']['message']}", INCOMPLETE
    folder = storage.normalise(settings.output)
    before = " (made before)" if result.get("already_done") else ""
    lines = [
        f"Weights: {storage.join(folder, result['weights'])}, epoch {result['epoch']} of {result['epochs']}{before}",
        evaluate.table(result["scores"]),
        f"Card: {storage.join(folder, 'README.md')}",
    ]
    return result, "\n".join(lines), DONE


def _evaluate(settings: EvaluateSettings) -> tuple[dict[str, Any], str, int]:
    result = evaluate.evaluate(settings)
    return result.summary, f"{settings.weights}: {evaluate.table(result.summary)}", DONE


def _manifest_folder(settings: ManifestFolderSettings) -> tuple[dict[str, Any], str, int]:
    listing = manifest.list_folder(settings)
    text = f"{listing.manifest}: {listing.rows:,} images"
    if listing.passed_over:
        text += f"; other files, passed over (hidden, or not named as PNG, JPEG or DICOM): {listing.passed_over:,}"
    return vars(listing), text, DONE


def _manifest_source(settings: ManifestSourceSettings) -> tuple[dict[str, Any], str, int]:
    report = join.build(settings)
    expected = "" if report.expected_rows is None else f" (the CheXmask data set has {report.expected_rows:,})"
    lines = [f"{report.manifest}: {report.rows:,} rows of {sources.get(report.source).title}{expected}"]
    if report.other_frontal:
        left_out = "frontal views that the CheXmask data set left out, and so this"
        remedy = "" if settings.chexmask else "; --all-frontal lists them"
        lines.append(f"  passed over: {report.other_frontal:,} ({left_out}{remedy})")
    lines += [f"  {kind}: {count:,} ({join.PROBLEMS[kind]})" for kind, count in report.counts.items() if count]
    lines.append(f"Problems: {report.problems}")
    return report.asdict(), "\n".join(lines), DONE


def _manifest_merge(settings: ManifestMergeSettings) -> tuple[dict[str, Any], str, int]:
    report = merge.merge(settings)
    lines = [f"{report.manifest}: {report.rows:,} rows"]
    for source, rows in report.sources.items():
        expected = sources.get(source).expected_rows
        accepted = f" (accepted; {expected:,} expected)" if source in report.accepted and expected is not None else ""
        lines.append(f"  {source}: {rows:,}{accepted}")
    return report.asdict(), "\n".join(lines), DONE


def _bench(settings: BenchSettings) -> tuple[dict[str, Any], str, int]:
    # It draws and encodes images, for which it loads what no other verb does.
    from chexmask_u.bench import report as bench

    result = bench.run(settings)
    return result, bench.render(result), INCOMPLETE if settings.check and not result["passed"] else DONE


def _plan(settings: PlanSettings) -> tuple[dict[str, Any], str, int]:
    result = plan.run(settings)
    return result, plan.render(result), DONE


def _info(settings: InfoSettings) -> tuple[dict[str, Any], str, int]:
    facts = info.run(settings)
    return facts, info.render(facts), DONE if facts.get("check", {"sane": True})["sane"] else INCOMPLETE


def _segment(settings: SegmentSettings) -> tuple[dict[str, Any], str, int]:
    # It draws, for which it loads what few other verbs do.
    from chexmask_u.use.segment_folder import segment_folder

    result = segment_folder(settings)
    ok, failed = result["ok"], result["failed"]
    text = f"{ok:,} of {ok + failed:,} images segmented: {result['table']}"
    return result, text, BAD_INPUT if not ok else INCOMPLETE if failed else DONE


def _run_text(output: str, summary: dict[str, Any]) -> str:
    ok, failed = summary["ok"], summary["failed"]
    lines = [f"{ok + failed:,} of {summary['manifest_rows']:,} images done: {ok:,} ok, {failed:,} failed"]
    lines += [f"  {reason}: {failure['images']:,}" for reason, failure in summary["failures"].items()]
    if not summary["complete"]:
        lines.append("The run is incomplete; the same command goes on where it stopped.")
    folder = storage.normalise(output)
    lines.append(f"Report: {storage.join(folder, 'report.html')}")
    return "\n".join(lines)


def _release_text(content: dict[str, Any]) -> str:
    records = sum(counts["ok"] for counts in content["counts"].values())
    source = next(source for source, counts in content["counts"].items() if counts["ok"])
    return (
        f"Release: {content['folder']} ({records:,} records in {len(content['files'])} files)\n"
        f'  datasets.load_dataset("{content["folder"]}", "{source}", split="train")'
    )


def _interrupt(signum: int, frame: types.FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chexmask-u",
        description="Landmarks of chest radiographs, with uncertainty.",
        epilog="Exit codes: 0 done; 1 ended incomplete, and the same command goes on; 2 bad usage or input.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    manifests = _group(verbs, "manifest", "List images as a manifest.")
    _add(manifests, "folder", _manifest_folder, ManifestFolderSettings, positional=("uri",))
    for name, source in sources.PUBLISHED.items():
        about = f"List {source.title}'s images, joined with their rows in a CheXmask CSV."
        _add(manifests, name, _manifest_source, ManifestSourceSettings, required=("images",), help=about, source=name)
    _add(manifests, "merge", _manifest_merge, ManifestMergeSettings, positional=("manifests",))
    _add(verbs, "generate", _generate, GenerateSettings)
    _add(verbs, "segment", _segment, SegmentSettings, positional=("images",), required=("output",))
    _add(verbs, "release", _release, ReleaseSettings, positional=("run",), required=("output",))
    _add(verbs, "validate", _validate, ValidateSettings, positional=("release",))
    _add(verbs, "export", _export, ExportSettings, positional=("release",), required=("output", "format"))
    _add(verbs, "publish", _publish, PublishSettings, positional=("release",), required=("repo",))
    _add(verbs, "diff", _diff, DiffSettings, positional=("before", "after"))
    _add(verbs, "train", _train, TrainSettings, required=("output",))
    _add(verbs, "evaluate", _evaluate, EvaluateSettings)
    _add(verbs, "bench", _bench, BenchSettings)
    _add(verbs, "plan", _plan, PlanSettings, required=("manifest",))
    _add(verbs, "info", _info, InfoSettings)
    return parser


def _group(verbs: Any, name: str, help: str) -> Any:
    return verbs.add_parser(name, help=help, description=help).add_subparsers(required=True, metavar="KIND")


def _add(
    verbs: Any,
    name: str,
    verb: Callable[[Any], tuple[dict[str, Any], str, int]],
    settings_type: type[Settings],
    positional: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    help: str | None = None,
    **fixed: str,
) -> None:
    """Add a verb with a flag for each of its settings, other than those that are `fixed`."""
    about = help or (settings_type.__doc__ or "").strip()
    parser = verbs.add_parser(
        name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    hints = typing.get_type_hints(settings_type)
    # The dataclass's own default holds then, and argparse prints none.
    absent = argparse.SUPPRESS
    for field in fields(settings_type):
        if field.name in fixed:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        several = typing.get_origin(hints[field.name]) is tuple
        options: dict[str, Any] = {"help": field.metadata["help"], "type": _scalar(hints[field.name])}
        if field.metadata["choices"]:
            options["choices"] = field.metadata["choices"]
        if field.name in positional:
            if several:
                options["nargs"] = "+"
            parser.add_argument(field.name, metavar=field.name.upper(), **options)
        elif hints[field.name] is bool:
            parser.add_argument(flag, action="store_true", default=absent, help=options["help"])
        else:
            # argparse would print "(default: None)" behind a help text that already says what happens.
            unsaid = field.default is None or several or field.name in required
            if several:
                options["action"] = "append"
            default = absent if unsaid else field.default
            parser.add_argument(flag, default=default, required=field.name in required, **options)
    parser.add_argument("--json", action="store_true", default=absent, help="end stdout with one line of JSON")
    parser.set_defaults(verb=verb, settings_type=settings_type, **fixed)


def _scalar(hint: Any) -> Any:
    """The type of one value: `int` of `int | None`."""
    return next(part for part in (typing.get_args(hint) or (hint,)) if part is not type(None))


if __name__ == "__main__":
    sys.exit(main())
