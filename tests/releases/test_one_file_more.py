"""A source and an export format are one file each: whoever adds the file has them in every verb."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

import chexmask_u as cu
from tests.support import invented_runs
from tests.support.invented_runs import Records

SOURCE = """
from chexmask_u.sources.base import Source, by_pattern

SOURCE = Source(
    "sixth",
    "The Sixth Data Set",
    citation="Doe J. The sixth. 2026. https://doi.org/10.0/6",
    licence="CC BY 4.0",
    terms_url="https://sixth.invalid/terms",
    access="Download it.",
    policy="open",
    id_column="Sixth Id",
    csv_name="Sixth",
    max_first=True,
    image_id=by_pattern(r"([^/]+)\\.png$"),
)
"""

FORMAT = '''
"""Counts of landmarks: one text file per source.

Whatever else is said of it is not for the command line.
"""


def files(source):
    return (f"{source}.txt",)


def write(rows, stream):
    for row in rows.landmarks():
        stream.write(f"{row.record_id} {len(row.landmarks_mean)}\\n")
'''


# Of all that a new process costs, most is its imports: one process does what users do.
SCRIPT = """
import sys
from chexmask_u import cli
from tests.support import invented_runs

run, folder = sys.argv[1:]
invented_runs.make_release(run, folder)
release = f"{folder}/v1.0.0"
for verb in (
    ["validate", release],
    ["export", release, "--format", "chexmask-csv", "--output", f"{folder}/csv"],
    ["export", release, "--format", "landmark-counts", "--output", f"{folder}/counts"],
    ["export", release, "--format", "landmark-counts", "--output", f"{folder}/counts"],
):
    assert cli.main(verb) == cli.DONE
cli.main(["export", "--help"])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """What a copy of the package with two files more makes of a run, and what it says."""
    copy, folder = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("made")
    shutil.copytree(Path(cu.__file__).parent, copy / "chexmask_u", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "chexmask_u" / "sources" / "sixth.py").write_text(SOURCE)
    (copy / "chexmask_u" / "releases" / "export" / "formats" / "landmark_counts.py").write_text(FORMAT)
    run = invented_runs.make_run(folder / "run", {"sixth": Records(range(4), {4: "damaged"})})
    path = os.pathsep.join([str(copy), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", SCRIPT, run, str(folder)]
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "500"}
    # Not here, where the package itself lies: it would be found first.
    done = subprocess.run(command, env=environment, cwd=copy, check=True, stdout=subprocess.PIPE, text=True)
    return folder, done.stdout


def test_a_sixth_source_goes_through_release_card_and_export(made):
    folder, _ = made
    released = folder / "v1.0.0"
    card = DatasetCard.load(released / "README.md")
    assert "| The Sixth Data Set | `sixth` | `sixth-masks` | 4 | 1 | open |" in card.content
    for page in (card.content, (released / "LICENSE.md").read_text()):
        for words in ("CC BY 4.0", "https://sixth.invalid/terms", "Download it.", "Doe J. The sixth. 2026."):
            assert words in page
    assert "extra_gated_prompt" not in card.data.to_dict()
    assert len(json.loads((released / "croissant.json").read_text())["recordSet"]) == 3
    with (folder / "csv" / "OriginalResolution" / "Sixth.csv").open(newline="") as file:
        csv.field_size_limit(1 << 24)
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["Sixth Id", "Dice RCA (Max)", "Dice RCA (Mean)"]
    assert [row["Sixth Id"] for row in rows] == [f"image-{number:06d}" for number in range(4)]


def test_another_format_is_offered_and_written(made):
    folder, said = made
    assert "; landmark-counts: counts of landmarks: one text file per source" in said
    assert "--format {chexmask-csv,coco,landmark-counts}" in said
    ids = [invented_runs.record_id("sixth", number) for number in range(4)]
    lines = (folder / "counts" / "sixth.txt").read_text().splitlines()
    assert sorted(lines) == sorted(f"{record_id} 120" for record_id in ids)
    assert "sixth.txt: 4 (made before)" in said
