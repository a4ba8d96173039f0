"""What MkDocs fills in from the package: flags, columns, reasons, sources, public names; nothing of it stands twice.

A page says `<!-- generated: WHAT -->` where it goes, with `WHAT` one of `PARTS`. Each verb gets a page of its own.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

import chexmask_u
from chexmask_u import anatomy, cli, record, sources
from chexmask_u.cli import Option, Verb

PACKAGE = Path(chexmask_u.__file__).parent

# What the card of the bundled weights shows and names.
WEIGHTS_FILES = ("curves.png", "split.csv", "calibration.json")

# The page that tells what a verb is for.
GUIDES = {
    "segment": "segment",
    "app": "app",
    "manifest": "images",
    "generate": "images",
    "release": "images",
    "validate": "images",
    "export": "formats",
    "diff": "publishing",
    "publish": "publishing",
    "verify": "published",
    "info": "published",
    "train": "training",
    "evaluate": "training",
    "calibrate": "uncertainty",
    "experiment": "experiments",
    "bench": "speed",
    "plan": "speed",
}

# What public names are about, by the beginning of the module that they live in; the first that fits counts.
SUBJECTS = {
    "use.segment": "Segment images",
    "use": "Records of a release",
    "manifests": "Records of a release",
    "calibration": "Calibration",
    "anatomy": "Landmarks and organs",
    "errors": "Errors",
    "record": "Errors",
    "version": "Version",
    "": "Predict",
}
ORDER = (
    "Segment images",
    "Predict",
    "Records of a release",
    "Calibration",
    "Landmarks and organs",
    "Errors",
    "Version",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give each verb its page in the navigation."""
    _section(config.nav, "Commands").extend({name: _page(name)} for name in _by_name())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the verbs' pages, and what the weights' card shows."""
    for name, verbs in _by_name().items():
        files.append(File.generated(config, _page(name), content=_command(name, verbs)))
    for notebook in sorted((PACKAGE.parent / "notebooks").glob("*.ipynb")):
        for path, content in _gallery(notebook):
            files.append(File.generated(config, path, content=content))
    for name in WEIGHTS_FILES:
        files.append(File.generated(config, f"weights/{name}", abs_src_path=str(PACKAGE / "weights" / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page asks for."""

    def fill(asked: re.Match[str]) -> str:
        if (part := PARTS.get(asked[1])) is None:
            raise PluginError(
                f"{page.file.src_uri}: nothing is generated as {asked[1]!r}; there are {', '.join(PARTS)}"
            )
        return "\n".join(part())

    return re.sub(r"<!-- generated: (.*?) -->", fill, markdown)


def _gallery(notebook: Path) -> Iterator[tuple[str, str | bytes]]:
    """The page of a notebook and the pictures in its outputs, as paths and contents."""
    named = {"output_files_dir": f"{notebook.stem}_files"}
    page, resources = MarkdownExporter().from_filename(str(notebook), resources=named)
    yield f"gallery/{notebook.stem}.md", page
    for path, content in resources["outputs"].items():
        yield f"gallery/{path}", content


def _section(entries: Any, title: str) -> list[Any]:
    """The pages under a title, wherever in the navigation."""
    below = [pair for entry in entries if isinstance(entry, dict) for pair in entry.items()]
    found = [pages if name == title else _section(pages, title) for name, pages in below if isinstance(pages, list)]
    return next((pages for pages in found if pages), [])


def _by_name() -> dict[str, list[Verb]]:
    """The verbs by the first of their words."""
    named: dict[str, list[Verb]] = {}
    for verb in cli.verbs():
        named.setdefault(verb.words.split()[0], []).append(verb)
    return named


def _page(name: str) -> str:
    return f"commands/{name}.md"


def _command(name: str, verbs: list[Verb]) -> str:
    """The page of a verb, or of several that share their first word."""
    lines = [f"# {name}", ""]
    if guide := GUIDES.get(name):
        lines += [f"[What it is for](../{guide}.md).", ""]
    # Verbs with the same settings differ in what their words say alone.
    shared: dict[type, list[Verb]] = {}
    for verb in verbs:
        shared.setdefault(verb.settings, []).append(verb)
    for alike in shared.values():
        if len(shared) > 1:
            lines += [f"## {', '.join(verb.words.removeprefix(f'{name} ') for verb in alike)}", ""]
        if len(alike) == 1:
            lines += [_text(alike[0].says), ""]
        else:
            lines += [*(f"- `{verb.words}`: {_text(verb.says)}" for verb in alike), ""]
        lines += ["```bash", *(example for verb in alike for example in verb.examples.splitlines()), "```", ""]
        lines += _flags(alike[0].grouped(), "###" if len(shared) > 1 else "##")
    return "\n".join(lines)


def _flags(groups: dict[str, list[Option]], heading: str) -> Iterator[str]:
    """Tables of a verb's options by group."""
    for group, options in groups.items():
        if options:
            yield from (f"{heading} {group.capitalize()}", "", '<div class="stacked flags" markdown>', "")
            yield from ("| flag | what it is | default |", "| --- | --- | --- |")
        for option in options:
            default = "**needed**" if option.required else _code(option.default)
            yield f"| `{_typed(option)}` | {_text(option.help)} | {default} |"
        if options:
            yield from ("", "</div>", "")


def _code(value: Any) -> str:
    return "" if value is None else f"`{value}`"


def _typed(option: Option) -> str:
    """An option as it is typed."""
    kind = f"{{{','.join(option.choices)}}}" if option.choices else option.kind
    if not option.name.startswith("-"):
        return f"{kind}..." if option.several else kind
    return option.name if option.type is bool else f"{option.name} {kind}"


def _commands() -> Iterator[str]:
    named = _by_name()
    for door in cli.DOORS:
        yield from (f"## {door}", "", "| command | what it does |", "| --- | --- |")
        for name, verbs in named.items():
            if verbs[0].door == door:
                yield f"| [`{name}`]({name}.md) | {_text(cli.FAMILIES.get(name, verbs[0].says))} |"
        yield ""


def _columns(names: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """A table of columns: name and Arrow type."""
    yield from ('<div class="stacked" markdown>', "")
    yield from ("| column | shape | unit | what it is |", "| --- | --- | --- | --- |")
    for name, type_ in names:
        column = record.COLUMNS[name]
        shape = " x ".join(map(str, column.shape)) or _scalar(type_)
        yield f"| `{name}` | {shape} | {_text(column.unit)} | {_text(column.meaning)} |"
    yield from ("", "</div>")


def _scalar(type_: Any) -> str:
    return "struct" if str(type_).startswith("struct") else f"`{type_}`"


def _schema(schema: Any) -> Callable[[], Iterator[str]]:
    return lambda: _columns((field.name, field.type) for field in schema)


# Of a manifest's own columns, which a release does not have or explains otherwise.
_OF_A_MANIFEST = {
    "record_id": "key of the record, unique; `manifest` makes SOURCE/PATH",
    "uri": "where the image lies: a local path or a URL",
    "height": "in pixels, if it is known: an image of another size fails as `size_mismatch`",
    "width": "likewise",
}


def _manifest() -> Iterator[str]:
    yield from ("| column | type | what it is |", "| --- | --- | --- |")
    for field in record.MANIFEST:
        needed = " (needed)" if field.name in record.REQUIRED_MANIFEST_COLUMNS else ""
        meaning = _OF_A_MANIFEST.get(field.name) or _text(record.COLUMNS[field.name].meaning)
        yield f"| `{field.name}`{needed} | `{field.type}` | {meaning} |"


def _reasons() -> Iterator[str]:
    yield from ("| reason to fail | what it means |", "| --- | --- |")
    yield from (f"| `{reason}` | {_text(meaning)} |" for reason, meaning in record.REASONS.items())


def _landmarks() -> Iterator[str]:
    yield from ("| organ | landmarks | stretches of its contour |", "| --- | --- | --- |")
    for organ, part in anatomy.LANDMARKS.items():
        regions = ", ".join(f"`{name}`" for name in anatomy.REGIONS if name.startswith(f"{organ}."))
        yield f"| `{organ}` | {part.start} to {part.stop - 1} | {regions} |"


def _sources() -> Iterator[str]:
    yield from ("| name | images | rows of the dataset | below its folder |", "| --- | --- | --- | --- |")
    for name, source in sources.PUBLISHED.items():
        files = "DICOM" if source.dicom else "PNG or JPEG"
        yield f"| `{name}` | {source.title}, {files} | {source.expected_rows:,} | `{source.layout}` |"


def _preparation() -> Iterator[str]:
    return (f"- **{source.title}**: {source.describe('published')}." for source in sources.PUBLISHED.values())


def _terms() -> Iterator[str]:
    """As a release's card has them."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE / "templates"), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    yield templates.get_template("terms.md.j2").render(sources=sources.PUBLISHED)


def _calibration() -> Iterator[str]:
    """What the trials of the bundled weights' calibration found, by coverage and by kind of image."""
    about = _about_calibration()
    titles = ("radius", "images", "asked for", "covered", "mean radius", *_RANKED)
    looking_titles = ("mean radius with the image", "r with the image")
    yield from (f"| {' | '.join((*titles, *looking_titles))} |", f"|{' --- |' * 10}")
    for of, trial in about["trials"].items():
        for kind, found in trial["kinds"].items():
            looking = about["trials_with_images"][of]["kinds"][kind]
            for asked, checked in found["coverages"].items():
                if kind == "clean" or asked == "0.9":
                    covered = f"{_share(checked['coverage'])} [{', '.join(map(_share, checked['interval']))}]"
                    told = (found, found["spread"], found["std"], looking)
                    ranks = [_ranks(one) if asked == "0.9" else "" for one in told]
                    words = f"{of} | {kind} | {_share(float(asked))} | {covered} | {checked['mean_radius']:.0f} px"
                    pixels = f"{looking['coverages'][asked]['mean_radius']:.0f} px"
                    yield f"| {words} | {' | '.join(ranks[:3])} | {pixels} | {ranks[3]} |"


_RANKED = ("r with the error", "of the spread", "of the std")


def _ranks(found: dict[str, Any]) -> str:
    return f"{found['r']:.2f} [{', '.join(f'{bound:.2f}' for bound in found['r_interval'])}]"


def _odd_images() -> Iterator[str]:
    """How well the ood_score of the bundled weights' calibration tells kinds of images from frontal radiographs."""
    yield from ("| image | AUC | beyond the 99th percentile |", "| --- | --- | --- |")
    for kind, found in _about_calibration()["odd_images"]["kinds"].items():
        auc = f"{found['auc']:.3f} [{', '.join(f'{bound:.3f}' for bound in found['interval'])}]"
        yield f"| {kind} | {auc} | {_share(found['beyond'])} |"


def _about_calibration() -> dict[str, Any]:
    content = json.loads((PACKAGE / "weights" / "calibration.json").read_text("utf-8"))
    return dict(content["about"])


def _share(value: float) -> str:
    return f"{value:.0%}"


def _api() -> Iterator[str]:
    """The public names as `__init__.pyi` has them, by subject."""
    about: dict[str, list[str]] = {subject: [] for subject in ORDER}
    for line in ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8")).body:
        if isinstance(line, ast.ImportFrom):
            module = line.module or ""
            subject = next(said for start, said in SUBJECTS.items() if module.startswith(start))
            about[subject] += [name.asname or name.name for name in line.names]
    for subject, names in about.items():
        yield from (f"## {subject}", "", *(f"::: chexmask_u.{name}" for name in names), "")


def _text(words: str) -> str:
    """Words as Markdown, in a table too."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", words)


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": _commands,
    "columns landmarks": _schema(record.LANDMARK_RELEASE),
    "columns calibrated": _schema(record.CALIBRATED),
    "columns masks": _schema(record.MASK_RELEASE),
    "columns failures": _schema(record.FAILURE_RELEASE),
    "manifest": _manifest,
    "reasons": _reasons,
    "landmarks": _landmarks,
    "sources": _sources,
    "preparation": _preparation,
    "terms": _terms,
    "calibration": _calibration,
    "odd images": _odd_images,
    "api": _api,
}
"""What is filled in, by what pages call it."""
