"""`chexmask-u info`: what it tells of a machine and of weights, and weights whose numbers it does not let pass."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chexmask_u import cli, sources
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.weight_files import load_model
from tests.support import hub


def told(capsys, *flags: str, code: int = cli.DONE) -> tuple[str, dict]:
    """The text and the JSON of `info`."""
    capsys.readouterr()
    assert cli.main(["info", *flags, "--json"]) == code
    text, line = capsys.readouterr().out.strip().rsplit("\n", 1)
    return text, json.loads(line)


def saved(model: HybridGNet, folder: Path) -> str:
    save_model(model, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def test_a_bug_report_holds_what_numbers_hang_on_and_nothing_of_whose_machine_it_is(tmp_path):
    """In a process of its own, since this one may hold a Ray already."""
    home = tmp_path / "home" / "jane-doe"
    home.mkdir(parents=True)
    path = saved(load_model("demo"), home)
    asked = f"""
import sys
from chexmask_u import cli
sys.argv[1:] = ["info", "--weights", {path!r}, "--json"]
code = cli.main()
import ray
assert not ray.is_initialized()
sys.exit(code)
"""
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=True)
    assert found.stderr == ""
    facts = json.loads(found.stdout.strip().splitlines()[-1])
    assert {"chexmask_u", "python", "torch", "numpy", "ray"} <= facts.keys()
    assert facts["weights"]["source"] == facts["weights"]["file"] == "weights.safetensors"
    assert facts["devices"]["cpus"] >= 1
    assert set(facts["sources"]) == set(sources.PUBLISHED)
    assert "jane-doe" not in found.stdout
    for source in sources.PUBLISHED.values():
        assert source.terms_url in found.stdout


def test_the_bundled_weights_find_the_organs_of_drawings(capsys):
    text, facts = told(capsys, "--check")
    assert facts["check"]["sane"]
    assert facts["check"]["mean_error"] < 20
    assert facts["check"]["milliseconds_per_image"] > 0
    assert "drawings: sane" in text
    assert re.search(r"\d ms an image on", text)
    assert facts["weights"]["licence"] == "apache-2.0"
    assert facts["weights"]["sha256"] in text


def swap_axes(model: HybridGNet) -> None:
    """x and y of every landmark."""
    last = model.decoder.graphConv_up1.lins[0].weight
    last.data = last.data.flip(0)


def shrink(model: HybridGNet) -> None:
    """Landmarks toward the image's corner, as of a network that takes another unit."""
    model.decoder.graphConv_up1.lins[0].weight.data *= 0.05


def leave(model: HybridGNet) -> None:
    model.decoder.graphConv_up1.lins[0].weight.data *= 3


def be_sure(model: HybridGNet) -> None:
    """No draw differs from another."""
    model.encoder.fc_logvar.weight.data.zero_()
    model.encoder.fc_logvar.bias.data.fill_(-60)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (swap_axes, "the heart does not lie between"),
        (shrink, "the heart is less than 85 px wide or high"),
        (leave, "landmarks lie outside the image"),
        (be_sure, "the mean standard deviation is not from"),
    ],
)
def test_weights_whose_numbers_cannot_be_a_chests_are_said_to_be_so(tmp_path, capsys, harm, words):
    model = load_model("demo")
    harm(model)
    text, facts = told(capsys, "--check", "--weights", saved(model, tmp_path), code=cli.INCOMPLETE)
    assert not facts["check"]["sane"]
    assert any(words in problem for problem in facts["check"]["problems"])
    assert "NOT SANE" in text
    assert words in text


def test_weights_that_are_not_there_are_refused_in_one_line(capsys):
    assert cli.main(["info", "--weights", "nowhere.pt"]) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "chexmask-u: nowhere.pt: no such weight file; use 'demo' for the bundled weights\n"


@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlicense: mit\n---\n# Weights", "mit"), ("# Weights", "not told"), ("---\n: [\n---\n", "not told")],
)
def test_a_page_and_a_calibration_beside_weights_are_found(tiny_weights, tmp_path, capsys, card, licence):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(tiny_weights.read_bytes())
    _, before = told(capsys, "--weights", str(path))
    assert (before["weights"]["licence"], before["weights"]["calibration"]) == ("not told", "none")
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "calibration.json").write_text("{}")
    _, facts = told(capsys, "--weights", str(path))
    assert (facts["weights"]["licence"], facts["weights"]["calibration"]) == (licence, "calibration.json")


def published(served: hub.Hub, files: dict[str, bytes]) -> str:
    """The commit of a model repository org/weights that holds these files."""
    model = served.models.get("org/weights") or served.model("org/weights", {})
    return model.commit(files, "weights")


def test_of_weights_on_the_hub_it_tells_the_commit_and_the_licence_of_their_page(
    tiny_weights, tmp_path, monkeypatch, capsys
):
    files = {
        "README.md": b"---\nlicense: mit\n---\n# Weights",
        "v1_skip/model.safetensors": tiny_weights.read_bytes(),
    }
    with hub.for_this_process(monkeypatch, tmp_path) as served:
        commit = published(served, files)
        text, facts = told(capsys, "--weights", "hf://org/weights/v1_skip")
        assert facts["weights"] == {
            "source": "hf://org/weights/v1_skip",
            "commit": commit,
            "file": "v1_skip/model.safetensors",
            "sha256": hashlib.sha256(files["v1_skip/model.safetensors"]).hexdigest(),
            "variant": "skip",
            "input_size": 64,
            "licence": "mit",
            "calibration": "none",
        }
        assert f"commit {commit}" in text
        published(served, files | {"v1_skip/calibration.json": b"{}"})
        assert told(capsys, "--weights", "hf://org/weights/v1_skip")[1]["weights"]["calibration"] == "calibration.json"
    # The Hub is gone, and its client would try for half a minute to find a calibration.
    start = time.monotonic()
    facts = told(capsys, "--weights", f"hf://org/weights/v1_skip@{commit}")[1]["weights"]
    assert time.monotonic() - start < 15
    assert (facts["licence"], facts["calibration"]) == ("mit", "none")
