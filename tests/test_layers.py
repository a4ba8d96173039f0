"""The rooms' order holds: what is imported is read from the source, so that an import within a function counts too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import chexmask_u as cu

PACKAGE = Path(cu.__file__).parent

# In the order in which data flow: a room, or a module at the top, may import what stands before it.
ORDER = (
    "anatomy version errors result record columns storage folder settings",
    "sources",
    "manifests images model",
    "weight_files",
    "steps",
    "calibration pictures",
    "runs",
    "releases use",
    "pipeline demo",
    "training verify app",
    "bench experiments",
    "entry",
    "cli",
    "__main__",
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names.split()}

KNOW_RAY = {"pipeline.py", "runs/cluster.py", "training/distributed.py"}

# What the network may know of the package, and of others' packages.
MODEL_KNOWS = {"anatomy", "errors", "model"}
MODEL_NEEDS = {"torch", "triton", "numpy", "safetensors"}


def package() -> dict[str, str]:
    """Source of each module, by its path in the package."""
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults(modules: Mapping[str, str]) -> list[str]:
    """Imports that the rooms' order forbids, as "file: what"."""
    found = []
    for file, source in modules.items():
        room = file.split("/")[0].removesuffix(".py")
        for name in imported(source):
            top, _, below = name.partition(".")
            target = below.split(".")[0]
            if top == "ray" and file not in KNOW_RAY:
                found.append(f"{file}: ray")
            elif room == "model" and top != "chexmask_u" and top not in sys.stdlib_module_names | MODEL_NEEDS:
                found.append(f"{file}: {name}")
            elif top != "chexmask_u" or room == "__init__" or target == room:
                continue
            elif target not in RANK:
                found.append(f"{file}: the package's face ({name})")
            elif RANK[target] > RANK[room] or (RANK[target] == RANK[room] and not is_word(room)):
                found.append(f"{file}: {name}, which lies above or beside it")
            elif room == "model" and target not in MODEL_KNOWS:
                found.append(f"{file}: {name}, which the network is not to know")
    return found


def is_word(room: str) -> bool:
    """Whether it is one of the modules that all rooms share, which may use each other."""
    return RANK[room] in (0, RANK["pipeline"])


def test_no_room_imports_what_lies_above_it() -> None:
    assert faults(package()) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model/graph.py", "from chexmask_u import storage"),
        ("model/graph.py", "import ray"),
        ("model/graph.py", "import pyarrow"),
        ("steps/read.py", "from chexmask_u.runs.cluster import on_worker"),
        ("images/fetch.py", "from chexmask_u.manifests import join"),
        ("sources/base.py", "def f():\n    from chexmask_u import pipeline"),
        ("record.py", "from chexmask_u.sources import PUBLISHED"),
        ("runs/lock.py", "from chexmask_u import load_model"),
    ],
)
def test_an_import_that_climbs_is_found(file: str, line: str) -> None:
    modules = package()
    before = faults(modules)
    planted = faults(modules | {file: f"{modules[file]}\n{line}\n"})
    assert [fault.split(":")[0] for fault in planted if fault not in before] == [file]


def loaded(code: str) -> set[str]:
    """Top-level modules that are there after the code ran in a fresh interpreter."""
    ask = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return set(told.stdout.splitlines()[-1].split())


HEAVY = {"torch", "ray", "pandas", "matplotlib", "s3fs", "datasets"}


def test_the_package_itself_loads_nothing_heavy() -> None:
    there = loaded("import chexmask_u as cu; dir(cu)")
    assert not there & (HEAVY | {"numpy", "pyarrow", "cv2"})


def test_whoever_filters_landmarks_of_a_release_loads_neither_torch_nor_ray() -> None:
    code = "import chexmask_u as cu; cu.trusted_landmarks, cu.landmark_weights, cu.pair_images, cu.rle_decode"
    assert not loaded(code) & HEAVY


def test_a_run_and_its_lock_need_no_figures() -> None:
    code = "from chexmask_u.runs.lock import held; from chexmask_u.runs.run import Run"
    assert not loaded(code) & {"matplotlib", "torch", "ray"}


@pytest.mark.parametrize("words", ["--version", "--help", "generate --help"])
def test_asking_for_help_loads_nothing_that_works(words: str) -> None:
    code = f"from chexmask_u.cli import main\ntry: main({words.split()})\nexcept SystemExit: pass"
    assert not loaded(code) & HEAVY


def test_every_public_name_is_there_and_listed() -> None:
    assert set(cu.__all__) <= set(dir(cu))
    for name in cu.__all__:
        assert getattr(cu, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        cu.no_such_name  # noqa: B018
