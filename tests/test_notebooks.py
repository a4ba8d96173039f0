"""The notebooks are kept as they ran, and run where they lie, in a kernel of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from chexmask_u.cli import main

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_what_it_showed_when_it_ran_from_the_top(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    # It shows nothing of whose machine it ran on.
    assert str(Path.home()) not in path.read_text()
    assert "/tmp/" not in path.read_text()


@pytest.fixture(scope="module")
def beside_the_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebooks' folder, with the demo one folder up."""
    folder = tmp_path_factory.mktemp("checkout")
    assert main(["generate", "--output", str(folder / "chexmask-u-demo")]) == 0
    return Path(shutil.copytree(NOTEBOOKS[0].parent, folder / "notebooks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_a_notebook_runs_in_its_own_folder(name: str, beside_the_demo: Path) -> None:
    notebook = nbformat.read(beside_the_demo / name, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(beside_the_demo)}}).execute()
