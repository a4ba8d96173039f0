"""What a person types, and what a wrong command says: one line with a remedy, exit code 2, nothing done."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexmask_u import cli
from tests.support import apart


@pytest.fixture
def manifest(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((50, 40), 9, np.uint8))
    path = tmp_path / "m.parquet"
    assert cli.main(["manifest", "folder", str(tmp_path / "images"), "--output", str(path)]) == 0
    return path


def refusal(capsys, *arguments: str) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == cli.BAD_INPUT
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("Ray: ")]
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    return lines[0]


def test_manifest_lists_images_and_says_what_it_left_out(tmp_path, manifest, capsys):
    (tmp_path / "images" / "notes.txt").write_text("x")
    arguments = ["manifest", "folder", str(tmp_path / "images"), "--output", str(manifest), "--json"]
    assert cli.main(arguments) == cli.DONE
    text, line = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "1 images" in text
    assert "passed over (hidden, or not named as PNG, JPEG or DICOM): 1" in text
    assert json.loads(line) == {"manifest": str(manifest), "rows": 1, "passed_over": 1, "lost": {}}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--manifest", "nowhere.parquet"], "no such manifest"),
        (["--manifest", "gopher://x/m.parquet"], "unknown scheme gopher://"),
        (["--manifest", "MANIFEST", "--weights", "nowhere.pt"], "no such weight file"),
        (["--manifest", "MANIFEST", "--weights", "model.onnx"], "weights must be"),
        (["--manifest", "MANIFEST", "--weights-sha256", "00"], "expected 00"),
        (["--manifest", "MANIFEST", "--samples", "0"], "--samples must be at least 1"),
        (["--manifest", "MANIFEST", "--output", "gopher://x/run"], "unknown scheme gopher://"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(manifest, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [str(manifest) if flag == "MANIFEST" else flag for flag in flags]
    if "--output" not in flags:
        flags += ["--output", "run"]
    assert words in refusal(capsys, "generate", *flags)
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_is_not_there_is_refused_at_once(manifest, tmp_path):
    """In a process of its own, since this one may hold a Ray already."""
    command = [sys.executable, "-m", "chexmask_u.cli", "generate", "--manifest", str(manifest)]
    command += ["--output", str(tmp_path / "run"), "--address", "127.0.0.1:1"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == cli.BAD_INPUT
    assert refused.stderr.strip().splitlines()[-1].startswith("chexmask-u: Ray cluster 127.0.0.1:1: does not answer")


def test_a_manifest_without_an_output_is_refused(manifest, capsys):
    assert "--output is needed" in refusal(capsys, "generate", "--manifest", str(manifest))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"uri": ["a.png"]}, "has no column 'record_id'"),
        ({"record_id": [1], "uri": ["a"], "source": ["s"], "image_id": ["a"]}, "must be string"),
    ],
)
def test_a_manifest_that_lacks_a_column_is_refused(tmp_path, capsys, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    flags = ["--manifest", str(tmp_path / "m.parquet"), "--output", str(tmp_path / "run")]
    assert words in refusal(capsys, "generate", *flags)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"record_id": ["x/a", "x/a"]}, "record ids occur more than once, for instance 'x/a'"),
        ({"uri": ["/a.png", None]}, "1 rows have no uri"),
        ({"uri": ["/a.png", "gopher://x/a.png"]}, "unknown scheme gopher://"),
        ({"uri": ["/a.png", "b.png"]}, "uri 'b.png' is relative"),
        ({"source": ["x", "Has Spaces"]}, "lower case letters, digits and dashes"),
    ],
)
def test_a_manifest_with_wrong_rows_is_refused(tmp_path, capsys, change, words):
    columns = {"record_id": ["x/a", "x/b"], "uri": ["/a.png", "/b.png"], "source": ["x", "x"], "image_id": ["a", "b"]}
    pq.write_table(pa.table(columns | change), tmp_path / "m.parquet")
    flags = ["--manifest", str(tmp_path / "m.parquet"), "--output", str(tmp_path / "run")]
    assert words in refusal(capsys, "generate", *flags)
    assert not (tmp_path / "run").exists()


def test_ids_that_occur_twice_are_told_in_one_line_before_ray_is_started(tmp_path):
    columns = {"record_id": ["x/a", "x/b", "x/a"], "uri": ["/a.png"] * 3, "source": ["x"] * 3, "image_id": ["a"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    commands = [[verb, "--manifest", f"{tmp_path}/m.parquet"] for verb in ("generate", "plan")]
    commands[0] += ["--output", "run"]
    for refused in apart.run(commands, tmp_path):
        assert (refused.code, refused.stdout, refused.with_ray) == (cli.BAD_INPUT, "", False)
        assert refused.stderr == (
            f"chexmask-u: {tmp_path}/m.parquet: 1 record ids occur more than once, for instance 'x/a';"
            " each image needs one row with an id of its own\n"
        )
    assert not (tmp_path / "run").exists()


def test_missing_credentials_are_found_before_the_run(tmp_path, capsys, local_ray, monkeypatch):
    """Every row would fail, after hours: the first URI of each storage is tried first."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    columns = {"record_id": ["x/a"], "uri": ["s3://bucket/a.png"], "source": ["x"], "image_id": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    message = refusal(capsys, "generate", "--manifest", str(tmp_path / "m.parquet"), "--output", str(tmp_path / "run"))
    assert "s3://bucket/a.png cannot be opened" in message
    assert "credentials" in message


def test_a_release_of_nothing_is_refused(tmp_path, capsys, local_ray):
    message = refusal(capsys, "release", str(tmp_path / "norun"), "--output", str(tmp_path / "releases"))
    assert "holds no run" in message
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "run.json").write_text("{}")
    message = refusal(capsys, "release", str(tmp_path / "demo"), "--output", str(tmp_path / "releases"))
    assert message.rstrip().endswith(f"did you mean {str(tmp_path / 'demo' / 'run')!r}?")
    assert "is no release" in refusal(capsys, "validate", str(tmp_path))


@pytest.mark.parametrize("verb", ["", "manifest", *(verb.words for verb in cli.verbs())])
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*verb.split(), "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: chexmask-u {verb}".strip() in told
    # What stands for "not given" in the code says nothing to people.
    assert not [word for word in ("None", "False", "()", "SUPPRESS") if f"default: {word}" in told]


def test_help_leads_everybody_to_the_verbs_of_their_door(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    doors = [told.index(f"{door}:") for door in cli.DOORS]
    assert doors == sorted(doors)
    assert told.index("  segment ") < told.index("  export ") < told.index("  publish ")
    assert not [verb.words for verb in cli.verbs() if f"\n  {verb.words.split()[0]} " not in told]


@pytest.mark.parametrize("verb", list(cli.verbs()), ids=lambda verb: verb.words)
def test_the_examples_of_help_are_commands_that_are_understood(verb):
    """Parsed and checked, as what is typed is: a flag that was renamed or a value that is refused fails here."""
    for example in verb.examples.splitlines():
        program, *arguments = shlex.split(example)
        assert program == "chexmask-u"
        given = vars(cli.build_parser().parse_args(arguments))
        assert given["verb"].words == verb.words
        verb.settings.from_mapping(given)


@pytest.mark.parametrize(
    ("flag", "said"), [("--no-such-flag", "unrecognized"), ("--resume", "the same command goes on where it stopped")]
)
def test_unknown_flags_are_bad_usage(flag, said, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", flag])
    assert caught.value.code == cli.BAD_INPUT
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["demo", "own"])
def test_whoever_uses_the_demonstration_weights_is_told_and_no_reader_of_json_is(weights, tiny_weights, capsys):
    flags = [] if weights == "demo" else ["--weights", str(tiny_weights)]
    assert cli.main(["evaluate", "--drawings", "1", "--samples", "2", "--json", *flags]) == cli.DONE
    said = capsys.readouterr()
    assert ("demonstration" in said.err and "not for clinical use" in said.err) == (weights == "demo")
    assert json.loads(said.out.splitlines()[-1])["images"] == 1


def test_info_names_the_versions_that_numbers_hang_on(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {"chexmask_u", "torch", "numpy", "ray", "demo weights"} <= facts.keys()
