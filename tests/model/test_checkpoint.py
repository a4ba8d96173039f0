"""Weights: what is loaded is what was saved, and what does not fit is refused in one line that says why."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chexmask_u.model.checkpoint import CheckpointError, load_model, save_model
from chexmask_u.model.hybridgnet import HybridGNet
from tests.support import hub

SIZE = 64


def network(variant: str = "skip", seed: int = 0) -> HybridGNet:
    torch.manual_seed(seed)
    return HybridGNet(input_size=SIZE, variant=variant).eval()  # type: ignore[arg-type]


@torch.inference_mode()
def answers(model: HybridGNet) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images, z = torch.rand(2, 1, SIZE, SIZE, generator=generator), torch.randn(2, 3, 64, generator=generator)
    mean, log_var, features = model.encode(images)
    return torch.cat([mean.ravel(), log_var.ravel(), model.decode(z, features).ravel()])


def state_of(model: HybridGNet, folder: Path) -> dict[str, Tensor]:
    """The weights by upstream's names."""
    save_model(model, folder / "state.safetensors")
    return load_file(folder / "state.safetensors")


def refusal(source: str | Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(str(source), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    return message


# What is loaded


def test_a_saved_model_answers_as_before(tmp_path: Path, variant: str) -> None:
    model = network(variant)
    digest = save_model(model, tmp_path / "weights.safetensors")
    loaded = load_model(str(tmp_path / "weights.safetensors"))
    assert (loaded.variant, loaded.input_size, loaded.training) == (variant, SIZE, False)
    assert (answers(loaded) == answers(model)).all()
    assert digest == loaded.sha256 == hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()


def test_half_precision_halves_the_file_and_nearly_keeps_the_answers(tmp_path: Path, variant: str) -> None:
    model = network(variant)
    save_model(model, tmp_path / "full.safetensors")
    save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "full.safetensors")]
    assert sizes[0] < 0.55 * sizes[1]
    loaded = load_model(str(tmp_path / "half.safetensors"))
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert (answers(loaded) - answers(model)).abs().max() < 0.02


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_of_torch_gives_the_same_model(tmp_path: Path, variant: str, legacy: bool) -> None:
    model = network(variant)
    path = tmp_path / "bestMSE.pt"
    torch.save(state_of(model, tmp_path), path, _use_new_zipfile_serialization=not legacy)
    loaded = load_model(str(path))
    assert (answers(loaded) == answers(model)).all()
    assert loaded.variant == variant


def test_names_are_upstreams(tmp_path: Path) -> None:
    names = set(state_of(network(), tmp_path))
    assert {
        *["encoder.dconv_down1.block.0.weight", "encoder.dconv_down1.skip.0.weight", "encoder.fc_logvar.bias"],
        *["dec_lin.weight", "graphConv_up6.lins.5.weight", "graphConv_up6.bias", "graphConv_up1.lins.0.weight"],
        *["SC_1.graphConv_pre.lins.0.weight", "SC_2.graphConv_pre.lins.0.weight"],
    } <= names
    assert not any(name.startswith(("decoder.", "module.")) for name in names)


def test_weights_are_readable_by_whom_other_new_files_are(tmp_path: Path) -> None:
    save_model(network(), tmp_path / "weights.safetensors")
    (tmp_path / "other").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("weights.safetensors", "other")]
    assert modes[0] == modes[1]


def test_the_expected_digest_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    digest = save_model(network(), path)
    assert load_model(str(path), sha256=digest.upper()).sha256 == digest
    message = refusal(path, sha256="0" * 64)
    assert digest in message
    assert "0" * 64 in message


def test_weights_are_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    digest = save_model(network(), tmp_path / "weights.safetensors")
    assert load_model("~/weights.safetensors").sha256 == digest


# What is refused


class Intruder:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, save: Callable[[Any, Path], Any]) -> None:
    trace = tmp_path / "the code ran"
    path = tmp_path / "weights.pt"
    save({**state_of(network(), tmp_path), "extra": Intruder(trace)}, path)
    message = refusal(path)
    assert not trace.exists()
    assert "state_dict()" in message
    assert "weights_only" not in message
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists(), "the intruder is harmless, so this test shows nothing"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_and_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    state = state_of(network(), tmp_path)
    whole = tmp_path / f"whole{suffix}"
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    data = whole.read_bytes()
    contents = [data[:cut] for cut in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1)]
    contents += [b"<html>not found</html>" * 100, bytes(1000), b"version https://git-lfs.github.com/spec/v1\n"]
    contents += [b"\xff" * 8 + data[8:], data[:50] + b"\x93" * 60 + data[110:]]
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}{suffix}"
        path.write_bytes(content)
        refusal(path)


def test_a_damaged_legacy_file_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(state_of(network(), tmp_path), whole, _use_new_zipfile_serialization=False)
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    for index, cut in enumerate([*rng.integers(1, 4000, 20).tolist(), len(data) // 2, len(data) - 1]):
        path = tmp_path / f"{index}.pt"
        path.write_bytes(data[:cut])
        refusal(path)


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def _with(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, name: change(state[name])}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(_without("dec_lin.bias"), ["missing dec_lin.bias"], id="missing"),
        pytest.param(_without("encoder.fc_mu.weight"), ["encoder.fc_mu.weight", "not HybridGNet"], id="no latent"),
        pytest.param(
            lambda state: {**state, "classifier.weight": torch.zeros(2)}, ["unexpected classifier.weight"], id="extra"
        ),
        pytest.param(
            _with("graphConv_up5.bias", lambda value: value[:-1]),
            ["graphConv_up5.bias is [15], not [16]"],
            id="other shape",
        ),
        pytest.param(
            _with("encoder.fc_mu.weight", lambda value: value[:, :-1]),
            ["encoder.fc_mu.weight [64, 511]", "no square input"],
            id="no square",
        ),
        pytest.param(
            _with("encoder.fc_mu.weight", lambda value: torch.zeros(64, 128 * 9)),
            ["encoder.fc_logvar.weight is [64, 512], not [64, 1152]"],
            id="two sizes",
        ),
        pytest.param(
            _with("dec_lin.weight", lambda value: value.index_fill(0, torch.tensor([3]), torch.nan)),
            ["dec_lin.weight", "not finite"],
            id="nan",
        ),
        pytest.param(
            _with("encoder.fc_mu.bias", lambda value: value - torch.inf),
            ["encoder.fc_mu.bias", "not finite"],
            id="infinite",
        ),
        pytest.param(
            lambda state: {f"module.{key}": value for key, value in state.items()},
            ["not HybridGNet"],
            id="other prefix",
        ),
        pytest.param(lambda state: {"conv.weight": torch.zeros(3, 3)}, ["not HybridGNet"], id="another network"),
        pytest.param(lambda state: {}, ["not HybridGNet"], id="nothing"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    expected: list[str],
    suffix: str,
) -> None:
    state = {key: value.contiguous() for key, value in change(state_of(network(), tmp_path)).items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    message = refusal(path)
    for part in expected:
        assert part in message, message


def test_many_problems_stay_one_short_line(tmp_path: Path) -> None:
    state = {key: value for key, value in state_of(network(), tmp_path).items() if key.startswith("encoder.fc")}
    save_file(state, tmp_path / "weights.safetensors")
    message = refusal(tmp_path / "weights.safetensors")
    assert len(message) < 600
    assert "more" in message


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        pytest.param(lambda state: {"epoch": 3, "state_dict": state}, "epoch, state_dict", id="with the epoch"),
        pytest.param(lambda state: {"model": state}, "model", id="in a dict"),
        pytest.param(lambda state: list(state.values()), "list", id="in a list"),
        pytest.param(lambda state: state["dec_lin.bias"], "Tensor", id="one tensor"),
        pytest.param(lambda state: dict(enumerate(state.values())), "0, 1, 2", id="numbered"),
    ],
)
def test_a_state_dict_wrapped_in_another_way_is_refused(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any], expected: str
) -> None:
    torch.save(wrap(state_of(network(), tmp_path)), tmp_path / "weights.pt")
    message = refusal(tmp_path / "weights.pt")
    assert expected in message
    assert "state_dict()" in message


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "weights.pt")
    assert "state_dict()" in refusal(tmp_path / "weights.pt")


def test_sources_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    missing = refusal(tmp_path / "missing.safetensors")
    assert "no such weight file" in missing
    assert "'demo'" in missing
    (tmp_path / "weights.onnx").write_bytes(b"")
    for source in (tmp_path / "weights.onnx", tmp_path, "no-such-name", ""):
        assert "hf://ORG/REPO" in refusal(source)
    (tmp_path / "folder.pt").mkdir()
    assert "no such weight file" in refusal(tmp_path / "folder.pt")
    for source in ("hf://", "hf://org", "hf://org/", "hf://@main", "hf://org@main/repo"):
        assert "hf://ORG/REPO" in refusal(source)


# The Hub


LOADER = """
import json, sys
from chexmask_u.model.checkpoint import CheckpointError, load_model
results = []
for source in sys.argv[1:]:
    try:
        results.append(["ok", load_model(source).sha256])
    except CheckpointError as error:
        results.append(["refused", str(error)])
print(json.dumps(results))
"""


def load_from(served: hub.Hub, cache: Path, *sources: str) -> list[list[str]]:
    loader = subprocess.run(
        [sys.executable, "-c", LOADER, *sources],
        env=served.environment(cache),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert loader.returncode == 0, loader.stderr
    return json.loads(loader.stdout.splitlines()[-1])


def weight_file(folder: Path, seed: int) -> bytes:
    save_model(network(seed=seed), folder / "any.safetensors")
    return (folder / "any.safetensors").read_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_weights_come_from_the_hub_by_folder_and_revision(tmp_path: Path) -> None:
    first, second, third, fourth = (weight_file(tmp_path, seed) for seed in range(4))
    torch.save(state_of(network(seed=4), tmp_path), tmp_path / "any.pt")
    old_format = (tmp_path / "any.pt").read_bytes()
    here = "hf://org/weights"
    expected = [
        (f"{here}/v1_skip", "ok", sha256(old_format)),
        (f"{here}/v1_skip/", "ok", sha256(old_format)),
        (f"{here}/v1_skip@v1.0", "ok", sha256(first)),
        (f"{here}/v1_skip@refs/pr/1", "ok", sha256(second)),
        (f"{here}@v1.0", "ok", sha256(first)),
        (f"{here}/two/b.safetensors", "ok", sha256(second)),
        (f"{here}/both", "ok", sha256(third)),
        ("hf://org/single", "ok", sha256(third)),
        (f"{here}/two", "refused", "name one: two/a.safetensors, two/b.safetensors"),
        (f"{here}/two/c.safetensors", "refused", "no .safetensors or .pt"),
        (f"{here}/notes", "refused", "no .safetensors or .pt"),
        (f"{here}/v1", "refused", "no .safetensors or .pt"),
        (f"{here}/v1_skip@v9.9", "refused", "no such revision"),
        ("hf://org/unknown/v1_skip", "refused", "no such repository on the Hub"),
        ("hf://org/gated", "refused", "access must be asked for"),
        ("hf://o--rg/bad name/v1", "refused", "the Hub did not give it"),
        # Two downloads go wrong, and neither is kept. Both would load: only their digest tells.
        ("hf://org/corrupt", "refused", "differs from the Hub's sha256"),
        ("hf://org/corrupt", "refused", "differs from the Hub's sha256"),
        ("hf://org/corrupt", "ok", sha256(fourth)),
    ]
    with hub.serve() as served:
        served.repos["org/weights"] = {
            "main": {
                "README.md": b"# Weights",
                "v1_skip/bestMSE.pt": old_format,
                "v1_skip_2/a.safetensors": second,
                "two/a.safetensors": first,
                "two/b.safetensors": second,
                "both/weights.pt": old_format,
                "both/weights.safetensors": third,
                "notes/README.md": b"# Notes",
            },
            "v1.0": {"v1_skip/weights.safetensors": first},
            "refs/pr/1": {"v1_skip/weights.safetensors": second},
        }
        served.repos["org/single"] = {"main": {"model.safetensors": third}}
        served.repos["org/corrupt"] = {"main": {"model.safetensors": fourth}}
        served.corrupt[fourth] = [first, second]
        served.gated.add("org/gated")
        found = load_from(served, tmp_path / "cache", *(source for source, _, _ in expected))
    for (source, outcome, part), (found_outcome, text) in zip(expected, found, strict=True):
        assert found_outcome == outcome, f"{source}: {text}"
        assert part in text, f"{source}: {text}"
        if outcome == "refused":
            assert text.startswith(f"{source}: ")
            assert "\n" not in text


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    with hub.serve() as served:
        pass
    ((outcome, message),) = load_from(served, tmp_path, "hf://org/weights")
    assert outcome == "refused"
    assert "the Hub did not give it" in message
    assert "check the connection" in message
