"""A Hugging Face Space that serves the page: front matter, app.py, and the package, which PyPI does not have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2

from chexmask_u import storage
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.settings import NO_CALIBRATION, AppSettings
from chexmask_u.version import __version__
from chexmask_u.weight_files import DEMO, find

# Tells that a folder is a Space of ours, and which files of it are.
MARK = "space.json"

_PACKAGE, _DISTRIBUTION = "chexmask_u", "chexmask-u"

# Of torch, PyPI's build for Linux brings CUDA: gigabytes that a Space without a GPU would wait for.
_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"


def write(settings: AppSettings, place: str) -> Folder:
    """Write a Space to a local folder; files of an earlier one that this one has not are removed.

    Raises:
        InputError: if the folder is not local or holds something else, or a Space could not have the weights.
    """
    if not storage.is_local(place):
        raise InputError(f"--space {place}: must be a local folder, from which `hf upload` publishes it")
    if settings.weights != DEMO and not settings.weights.startswith("hf://"):
        raise InputError(
            f"--weights {settings.weights}: a Space does not see this machine's files; put the weights on the Hub and"
            " name them as hf://ORG/REPO, or take 'demo'"
        )
    if settings.calibration not in (None, NO_CALIBRATION, DEMO) and storage.is_local(settings.calibration):
        raise InputError(
            f"--calibration {settings.calibration}: a Space does not see this machine's files; name a URL, or put it"
            " beside the weights on the Hub"
        )
    folder = Folder(storage.normalise(place))
    folder.check_own("Space", [MARK], flag="--space")
    weights = find(settings.weights)
    needed = list(_requirements())
    earlier = (folder.read_json(MARK) or {}).get("files", [])
    files: dict[str, bytes | str] = dict(_package())
    if (licence := metadata.distribution(_DISTRIBUTION).read_text("licenses/LICENSE")) is not None:
        files["LICENSE"] = licence
    files["requirements.txt"] = "\n".join([_INDEX, *needed, ""])
    files["app.py"] = _render("space.py", words=[repr(word) for word in _words(settings)])
    files["README.md"] = _render(
        "space.md",
        gradio=next(one.partition("==")[2] for one in needed if one.startswith("gradio==")),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        model=weights.repo,
        weights="the demonstration that comes with the package" if settings.weights == DEMO else settings.weights,
        demo=settings.weights == DEMO,
        version=__version__,
    )
    folder.write_json(MARK, {"version": __version__, "files": sorted(files)})
    for name in sorted(set(earlier) - set(files)):
        folder.remove(name)
    for name, content in files.items():
        folder.write(name, content)
    return folder


def _package() -> Iterator[tuple[str, bytes]]:
    """The package's files, by their paths in the Space."""
    root = Path(str(resources.files(_PACKAGE)))
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{_PACKAGE}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _requirements() -> Iterator[str]:
    """What the package needs to serve the page, as pip takes it."""
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        raise InputError(f"{_PACKAGE} is not installed, and so tells not what it needs: pip install -e .") from error
    for line in lines:
        needed, _, condition = line.partition(";")
        if not condition or 'extra == "app"' in condition:
            yield needed.strip()


def _words(settings: AppSettings) -> list[str]:
    """Flags that the Space's command has besides its address."""
    words = []
    if settings.weights != DEMO:
        words += ["--weights", settings.weights]
    if settings.weights_sha256 is not None:
        words += ["--weights-sha256", settings.weights_sha256]
    if settings.calibration is not None:
        words += ["--calibration", settings.calibration]
    return [*words, "--max-side", str(settings.max_side)]


def _render(template: str, **values: Any) -> str:
    source = (resources.files(_PACKAGE) / "templates" / f"{template}.j2").read_text("utf-8")
    # Neither is HTML.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(source).render(values)
