"""Weights by name: as they lie on the Hub, at one commit, from the cache, and what cannot be had."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor

from chexmask_u.errors import CheckpointError, InputError
from chexmask_u.manifests.check import ManifestFacts
from chexmask_u.runs.identity import check_same, freeze
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings
from chexmask_u.weight_files import find, find_again, load_model
from tests.support import hub, small_networks
from tests.support.small_networks import CONFIG, answers, network, state_of

REPO = "org/CheXmask-U"
HERE = f"hf://{REPO}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub.Hub]:
    """A Hub for this process, where nobody is logged in."""
    with hub.for_this_process(monkeypatch, tmp_path / "cache") as served:
        monkeypatch.delenv("HF_TOKEN")
        yield served


def content(state: dict[str, Tensor], folder: Path, suffix: str, prefix: str = "") -> bytes:
    """The bytes of a weight file."""
    path = folder / f"content{suffix}"
    small_networks.write({prefix + key: value for key, value in state.items()}, path)
    return path.read_bytes()


def config(**values: Any) -> bytes:
    return json.dumps(CONFIG | values).encode()


def published(skip: dict[str, Tensor], noskip: dict[str, Tensor], size: int, folder: Path) -> dict[str, bytes]:
    """The files of the published repository: as its loader wants them, as its class saves them, and as of old."""
    return {
        "README.md": b"# CheXmask-U",
        "v1_skip/config.json": config(inputsize=size),
        "v1_skip/pytorch_model.bin": content(skip, folder, ".bin"),
        "v1_skip_prefixed/config.json": config(inputsize=size),
        "v1_skip_prefixed/pytorch_model.bin": content(skip, folder, ".bin", "model."),
        "v1_noskip/config.json": config(inputsize=size, use_skip=False),
        "v1_noskip/pytorch_model.bin": content(noskip, folder, ".bin"),
        "mixin_skip/config.json": config(inputsize=size),
        "mixin_skip/model.safetensors": content(skip, folder, ".safetensors", "model."),
        "mixin_noskip/config.json": config(inputsize=size, use_skip=False),
        "mixin_noskip/model.safetensors": content(noskip, folder, ".safetensors", "model."),
        "weights/skip.pt": content(skip, folder, ".pt"),
        "weights/noskip.pt": content(noskip, folder, ".pt"),
    }


FORMS = {
    "skip": ("v1_skip", "v1_skip_prefixed", "mixin_skip", "weights/skip.pt"),
    "noskip": ("v1_noskip", "mixin_noskip", "weights/noskip.pt"),
}


def test_each_published_form_gives_the_model_of_the_plain_file(server: hub.Hub, tmp_path: Path) -> None:
    models = {variant: network(variant) for variant in FORMS}
    states = {variant: state_of(model, tmp_path) for variant, model in models.items()}
    server.model(REPO, published(states["skip"], states["noskip"], small_networks.SIZE, tmp_path))
    for variant, places in FORMS.items():
        for place in places:
            loaded = load_model(f"{HERE}/{place}")
            assert loaded.variant == variant
            assert (answers(loaded) == answers(models[variant])).all()


def test_each_published_form_gives_the_published_numbers(server: hub.Hub, shared: Path, tmp_path: Path) -> None:
    """The golden vectors, of which test_model.py says more."""
    stems = {variant: shared / "golden" / f"hybridgnet_{variant}_256" for variant in FORMS}
    states = {variant: load_file(stem.with_suffix(".safetensors")) for variant, stem in stems.items()}
    server.model(REPO, published(states["skip"], states["noskip"], 256, tmp_path))
    for variant, places in FORMS.items():
        expected = np.load(stems[variant].with_suffix(".npz"))
        for place in places:
            model = load_model(f"{HERE}/{place}")
            with torch.inference_mode():
                mean, _, features = model.encode(torch.from_numpy(expected["image"]).float()[None, None] / 255)
                pixels = model.decode(torch.from_numpy(expected["z"])[None], features)[0] * 1024
            np.testing.assert_allclose(mean[0], expected["mu"], atol=1e-4)
            np.testing.assert_allclose(pixels.mean(0), expected["mean_px"], atol=0.01)
            np.testing.assert_allclose(pixels.std(0, correction=0), expected["std_px"], atol=0.01)


def test_a_place_in_a_repository_names_one_file(
    server: hub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = server.model(REPO, {"v1_skip/model.safetensors": b"1"})
    weights.tags |= {"v1.0": weights.main, "refs/pr/1": weights.main}
    old = weights.main
    everything = {"v1_skip/pytorch_model.bin": b"2", "both/a.pt": b"3", "both/a.bin": b"4", "both/config.json": b"{}"}
    weights.commit(everything | {"model.safetensors": b"5", "model.pt": b"6", "v1_skip/more/a.safetensors": b""}, "m")
    expected = [
        (f"{HERE}/v1_skip", weights.main, "v1_skip/pytorch_model.bin"),
        (f"{HERE}/v1_skip/", weights.main, "v1_skip/pytorch_model.bin"),
        (f"{HERE}/v1_skip@main", weights.main, "v1_skip/pytorch_model.bin"),
        (f"{HERE}/v1_skip@v1.0", old, "v1_skip/model.safetensors"),
        (f"{HERE}/v1_skip@refs/pr/1", old, "v1_skip/model.safetensors"),
        (f"{HERE}/v1_skip@{old}", old, "v1_skip/model.safetensors"),
        (f"{HERE}/both/a.pt", weights.main, "both/a.pt"),
    ]
    for source, commit, file in expected:
        assert find(source).facts() == {"source": source, "commit": commit, "file": file}
    assert not capsys.readouterr().err
    assert find(f"{HERE}/both").file == "both/a.bin"
    assert find(HERE).file == "model.safetensors"
    assert capsys.readouterr().err.splitlines() == [
        f"Weights: {HERE}/both: takes both/a.bin, not both/a.pt",
        f"Weights: {HERE}: takes model.safetensors, not model.pt",
    ]


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{source}: ")
    return message


def test_what_cannot_be_had_is_refused_in_one_line(server: hub.Hub, tmp_path: Path) -> None:
    skip, noskip = (state_of(network(variant), tmp_path) for variant in ("skip", "noskip"))
    whole = content(skip, tmp_path, ".bin", "model.")
    safetensors = content(skip, tmp_path, ".safetensors")
    files = {
        "v1_skip/config.json": config(),
        "v1_skip/pytorch_model.bin": whole,
        "swapped/config.json": config(),
        "swapped/pytorch_model.bin": content(noskip, tmp_path, ".bin"),
        "broken_config/config.json": b"{",
        "broken_config/pytorch_model.bin": whole,
        "cut/pytorch_model.bin": whole[:-1000],
        "cut_safetensors/model.safetensors": safetensors[:-1000],
        "foreign/pytorch_model.bin": content({"conv1.weight": torch.zeros(3, 3)}, tmp_path, ".bin"),
        "pickled/pytorch_model.bin": b"cposix\nsystem\n(S'true'\ntR.",
        "two/a.pt": whole,
        "two/b.pt": whole,
        "notes/README.md": b"# Notes",
    }
    server.model(REPO, files)
    server.model("org/gated", {"v1_skip/pytorch_model.bin": whole}).gated = "auto"
    folders = "broken_config, cut, cut_safetensors, foreign, pickled, swapped, two, v1_skip"
    expected = [
        (HERE, f"name one of its folders with weights: {folders}"),
        (f"{HERE}/v2", f"there is no v2; name one of its folders with weights: {folders}"),
        (f"{HERE}/v1", "there is no v1;"),
        (f"{HERE}/v1_skip/model.bin", "there is no v1_skip/model.bin"),
        (f"{HERE}/notes", "no .safetensors, .bin, .pt or .pth file is there"),
        (f"{HERE}/two", "several .pt files, name one: two/a.pt, two/b.pt"),
        (f"{HERE}/v1_skip@v9.9", "no such revision"),
        (f"{HERE}/v1_skip@{'0' * 40}", "no such revision"),
        (f"{HERE}/swapped", "swapped/config.json: use_skip is True, but the weights beside it are of use_skip False"),
        (f"{HERE}/broken_config", "broken_config/config.json is no JSON"),
        (f"{HERE}/cut", "not readable as .bin weights"),
        (f"{HERE}/cut_safetensors", "not readable as .safetensors weights"),
        (f"{HERE}/foreign", "no encoder.fc_mu.weight matrix, so these are not HybridGNet weights"),
        (f"{HERE}/pickled", "might run code"),
        ("hf://org/unknown/v1_skip", "no such repository on the Hub"),
        ("hf://org/gated/v1_skip", "access must be asked for"),
        ("hf://o--rg/bad name/v1", "the Hub did not give it"),
    ]
    for source, words in expected:
        assert words in refusal(source)
    message = refusal(f"{HERE}/v1_skip", sha256="0" * 64)
    assert hashlib.sha256(whole).hexdigest() in message
    assert f"expected {'0' * 64}" in message


def test_a_download_that_went_wrong_is_not_kept(server: hub.Hub, tmp_path: Path) -> None:
    """All three would load: only their digest tells."""
    right, *wrong = (content(state_of(network(seed=seed), tmp_path), tmp_path, ".bin") for seed in range(3))
    server.model(REPO, {"v1_skip/pytorch_model.bin": right})
    server.corrupt[right] = list(wrong)
    for _ in wrong:
        assert "it was removed, try again" in refusal(f"{HERE}/v1_skip")
    assert load_model(f"{HERE}/v1_skip").sha256 == hashlib.sha256(right).hexdigest()


LOADER = """
import json, sys
from chexmask_u import CheckpointError
from chexmask_u.weight_files import find
print("ready", flush=True)
sys.stdin.readline()
results = []
for source in sys.argv[1:]:
    try:
        results.append(["ok", find(source).fetch()[1]])
    except CheckpointError as error:
        results.append(["refused", str(error)])
print(json.dumps(results))
"""


def loader(served: hub.Hub, cache: Path, *sources: str, **variables: str) -> subprocess.Popen[str]:
    """A process that will fetch these weights once it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", LOADER, *sources],
        env=served.environment(cache) | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def results(*processes: subprocess.Popen[str]) -> list[list[list[str]]]:
    """Tell all to fetch at the same time; what each then says."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]


def test_processes_of_one_machine_fetch_once_and_later_ones_need_no_hub(tmp_path: Path) -> None:
    data, cache = b"0123456789" * 1000, tmp_path / "cache"
    digest = hashlib.sha256(data).hexdigest()
    source = f"{HERE}/v1_skip"
    with hub.serve() as served:
        weights = served.model(REPO, {"v1_skip/pytorch_model.bin": data, "v1_noskip/pytorch_model.bin": b"1"})
        weights.tags["v1.0"] = weights.main
        served.download_seconds = 1.0
        # By the branch, the tag and the commit, so that the cache knows them all.
        named = [source, f"{source}@v1.0", f"{source}@{weights.main}"]
        found = results(*(loader(served, cache, *names) for names in (named, named[::-1])))
        assert found == [[["ok", digest]] * 3] * 2
        assert served.downloads("v1_skip/pytorch_model.bin") == 1
        others = [f"{HERE}/v1_noskip", f"{source}@v2.0", "hf://org/other/v1_skip"]
    # The Hub is gone, and one of them knows that there is no network.
    offline = results(
        loader(served, cache, *named, *others, HF_HUB_OFFLINE="1"), loader(served, cache, *named, *others)
    )
    for (*kept, folder, revision, repository), reason in zip(offline, ("HF_HUB_OFFLINE", "ConnectError"), strict=True):
        assert kept == [["ok", digest]] * 3
        assert "there is no v1_noskip in the cache of this machine" in folder[1]
        for outcome, message in (revision, repository):
            assert outcome == "refused"
            assert f"the Hub cannot be reached ({reason}" in message


# A run keeps to the commit that it was begun with.


def test_a_run_goes_on_with_its_commit_though_main_has_moved(
    server: hub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (content(state_of(network(seed=seed), tmp_path), tmp_path, ".bin") for seed in range(2))
    weights = server.model(REPO, {"v1_skip/pytorch_model.bin": first})
    source, begun = f"{HERE}/v1_skip", weights.main
    frozen = find(source).facts() | {"sha256": hashlib.sha256(first).hexdigest()}
    assert find_again(source, frozen).commit == begun
    assert not capsys.readouterr().err
    # What is there by now would be preferred, too.
    weights.commit({"v1_skip/model.safetensors": b"", "v1_skip/pytorch_model.bin": second}, "better ones")
    assert load_model(find_again(source, frozen)).sha256 == frozen["sha256"]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{source} is at commit {weights.main} by now" in line
    assert f"goes on with commit {begun}" in line
    # Another name is another wish, and a run of an older version knows no commit.
    assert find_again(f"{HERE}/v1_skip@main", frozen).commit == weights.main
    assert find_again(source, {"source": source, "sha256": frozen["sha256"]}).commit == weights.main
    assert find_again(source, None).commit == weights.main


def test_a_pinned_source_and_its_copy_on_another_machine_stay_the_same_file(
    server: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (content(state_of(network(seed=seed), tmp_path), tmp_path, ".bin") for seed in range(2))
    weights = server.model(REPO, {"v1_skip/pytorch_model.bin": first})
    found = find(f"{HERE}/v1_skip")
    known = found.known(found.fetch()[1])
    weights.commit({"v1_skip/pytorch_model.bin": second}, "better ones")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another machine's"))
    asked = len(server.requests)
    assert known.fetch()[1] == known.sha256
    # One file by its commit, and no question about what the repository holds.
    assert {(one.method, one.path.split("/")[-1]) for one in server.requests[asked:]} == {
        ("HEAD", "pytorch_model.bin"),
        ("GET", "pytorch_model.bin"),
    }
    assert load_model(found.uri).sha256 == known.sha256
    with pytest.raises(CheckpointError, match="it was removed, try again"):
        replace(known, sha256="0" * 64).fetch()


def test_a_local_file_that_is_another_one_elsewhere_is_refused(tmp_path: Path) -> None:
    small_networks.write(state_of(network(), tmp_path), tmp_path / "weights.pt")
    found = find(str(tmp_path / "weights.pt"))
    known = found.known(found.fetch()[1])
    small_networks.write(state_of(network(seed=1), tmp_path), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="as it was before"):
        known.fetch()


def test_a_run_that_was_begun_before_commits_were_kept_goes_on(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    settings = GenerateSettings(manifest="m.parquet", output=run.url, weights=f"{HERE}/v1_skip")
    facts = ManifestFacts(uri="m.parquet", sha256="0" * 64, rows=1, sources={"folder": 1})
    old = {"source": settings.weights, "sha256": "1" * 64, "variant": "skip", "input_size": 64}
    freeze(run, settings, facts, old)
    now = old | {"commit": "2" * 40, "file": "v1_skip/pytorch_model.bin"}
    assert check_same(run, settings, now, facts.sha256)
    with pytest.raises(InputError, match="weights sha256 was"):
        check_same(run, settings, now | {"sha256": "3" * 64}, facts.sha256)
