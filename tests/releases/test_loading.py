"""The line that `release` prints loads the release from where it lies."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest

from chexmask_u import cli
from chexmask_u.folder import Folder
from chexmask_u.releases import loading
from tests.support import invented_runs
from tests.support.invented_runs import Records
from tests.support.s3 import S3Server, own_bucket


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    kinds = {"ward-1": Records(range(12)), "ward-2": Records(range(3))}
    return invented_runs.make_run(tmp_path_factory.mktemp("loading") / "run", kinds)


@pytest.fixture(scope="module")
def released(run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("releases")
    invented_runs.make_release(run, str(output), rows_per_shard=5)
    return output / "v1.0.0"


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch) -> None:
    """So that nothing is found which was loaded from elsewhere before."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(line: str) -> list[str]:
    """Ids of the records that the line loads, as somebody who types it after `import datasets`."""
    return eval(line, {"datasets": datasets})["record_id"][:]


EXPECTED = [invented_runs.record_id("ward-1", number) for number in range(12)]


@pytest.mark.parametrize(
    "name",
    [
        *("plain", "with spaces", "it's", 'a "name"', "br[ack]ets", "[", "star*", "what?", "a**b", "cur{ly}"),
        *("back\\slash", "ha#sh", "per%20cent", "Röntgen", "-train-", "new\nline"),
    ],
)
def test_it_loads_a_local_folder_whatever_its_name_is(released, tmp_path, name):
    folder = Path(shutil.copytree(released, tmp_path / name / "v1.0.0"))
    # What a pattern would find as well.
    shutil.copytree(released.parent / "v1.0.0", tmp_path / "starfish" / "v1.0.0")
    assert load(loading.line(str(folder), "ward-1")) == EXPECTED


@pytest.mark.parametrize("name", ["a::b", "$HOME", "[$HOME]"])
def test_what_datasets_cannot_load_is_said(released, tmp_path, name):
    line = loading.line(str(tmp_path / name / "v1.0.0"), "ward-1")
    assert "copy the release, or link it, to load it" in line
    with pytest.raises(SyntaxError):
        load(line)


def test_it_loads_from_a_bucket(run, s3: S3Server, monkeypatch):
    with own_bucket(s3, "loading") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        for output in (f"{server.url}/releases", f"{server.url}/re[le]ases of 2026"):
            made = invented_runs.make_release(run, output, rows_per_shard=5)
            line = loading.line(made["folder"], "ward-1")
            assert load(line) == EXPECTED
            streamed = eval(line.replace("split=", "streaming=True, split="), {"datasets": datasets})
            assert [row["record_id"] for row in streamed] == EXPECTED
        # The card has the same line, for whoever knows where the bucket is.
        card = Folder(f"{server.url}/releases/v1.0.0").read("README.md").decode()
        (line,) = re.findall(r"^ +(datasets\.load_dataset\(.*s3://BUCKET/FOLDER/.*)$", card, re.MULTILINE)
        assert load(line.replace("s3://BUCKET/FOLDER", f"{server.url}/releases")) == EXPECTED


def test_the_command_prints_the_line_and_whether_the_release_was_made_before(run, tmp_path, capsys, local_ray):
    command = ["release", run, "--output", str(tmp_path / "re[le]ases"), "--rows-per-shard", "5"]
    assert cli.main(command) == cli.DONE
    said, line = capsys.readouterr().out.strip().splitlines()
    assert said == f"Release: {tmp_path}/re[le]ases/v1.0.0 (15 records in 8 files)"
    assert load(line.strip()) == EXPECTED
    for again in (command, [*command, "--version", "v1.0.0"]):
        assert cli.main([*again, "--json"]) == cli.DONE
        said, once_more, answer = capsys.readouterr().out.strip().splitlines()
        assert said == f"Release: {tmp_path}/re[le]ases/v1.0.0 (15 records in 8 files, made before)"
        assert once_more == line
        assert json.loads(answer)["made_before"] is True
