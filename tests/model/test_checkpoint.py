"""Weights: what is loaded is what was saved, and what does not fit is refused in one line that says why."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from chexmask_u.errors import CheckpointError
from chexmask_u.model.checkpoint import save_model
from chexmask_u.weight_files import find, load_model
from tests.support.small_networks import CONFIG, SIZE, answers, network, state_of, write


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
    loaded = load_model(tmp_path / "half.safetensors")
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert (answers(loaded) - answers(model)).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("pytorch_model.bin", ""),
        ("pytorch_model.bin", "model."),
        ("model.safetensors", "model."),
        ("bestMSE.pt", ""),
        ("bestMSE.pt", "module."),
        ("last.pth", "model.module."),
        ("model.safetensors", "net_2."),
    ],
)
def test_every_form_of_the_same_weights_gives_the_same_model(
    tmp_path: Path, variant: str, name: str, prefix: str
) -> None:
    model = network(variant)
    state = {prefix + key: value for key, value in state_of(model, tmp_path).items()}
    loaded = load_model(str(write(state, tmp_path / "weights" / name)))
    assert loaded.variant == variant
    assert (answers(loaded) == answers(model)).all()


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "with the epoch": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": [1e-4]}},
    "under model": lambda state: {"model": state},
    "beside its settings": lambda state: {"model": {"latents": 64}, "state_dict": state},
    "prefixed, under both": lambda state: {
        "model": {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    },
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_checkpoint_gives_the_state_dict_in_it(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    model = network("noskip")
    loaded = load_model(str(write(wrap(state_of(model, tmp_path)), tmp_path / "checkpoint.pth")))
    assert (answers(loaded) == answers(model)).all()


def test_a_config_that_agrees_is_no_obstacle(tmp_path: Path, variant: str) -> None:
    path = write(state_of(network(variant), tmp_path), tmp_path / "here" / "pytorch_model.bin")
    config = CONFIG | {"use_skip": variant == "skip"}
    for content in (config, {"unknown": {"a": [1]}}):
        path.with_name("config.json").write_text(json.dumps(content))
        assert load_model(str(path.parent)).variant == variant


@pytest.mark.parametrize(
    ("variant", "change", "words"),
    [
        ("noskip", {}, "use_skip is True, but the weights beside it are of use_skip False"),
        ("skip", {"use_skip": False}, "use_skip is False, but the weights beside it are of use_skip True"),
        ("skip", {"inputsize": 1024}, f"inputsize is 1024, but the weights beside it are of inputsize {SIZE}"),
        ("skip", {"latents": 32}, "latents is 32, but the weights beside it are of latents 64"),
        ("skip", {"K": 3}, "K is 3, but the weights beside it are of K 6"),
    ],
)
def test_a_config_of_other_weights_is_refused(tmp_path: Path, variant: str, change: dict[str, Any], words: str) -> None:
    path = write(state_of(network(variant), tmp_path), tmp_path / "swapped" / "pytorch_model.bin")
    path.with_name("config.json").write_text(json.dumps(CONFIG | change))
    for source in (path, path.parent):
        message = refusal(source)
        assert words in message
        assert str(path.with_name("config.json")) in message


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\xff"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = write(state_of(network(), tmp_path), tmp_path / "here" / "model.safetensors")
    path.with_name("config.json").write_bytes(content.encode("latin-1"))
    assert "config.json is no JSON" in refusal(path)


def test_a_folder_gives_its_one_file_by_form_and_says_what_it_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    for name in ("a.pth", "b.pt", "c.bin", "d.safetensors"):
        write({}, folder / name)
        (folder / "README.md").write_text("# Weights")
        assert find(str(folder)).file == str(folder / name)
        said = capsys.readouterr().err
        passed_over = ", ".join(sorted(path.name for path in folder.glob("?.*") if path.name != name))
        assert said == (f"Weights: {folder}: takes {name}, not {passed_over}\n" if passed_over else "")
    assert find(str(folder / "a.pth")).file == str(folder / "a.pth")
    assert not capsys.readouterr().err
    write({}, folder / "e.safetensors")
    assert "several .safetensors files, name one: d.safetensors, e.safetensors" in refusal(folder)


def test_a_folder_without_weights_tells_where_they_are(tmp_path: Path) -> None:
    for name in ("v1_skip", "weights", "notes"):
        (tmp_path / "all" / name).mkdir(parents=True)
    write({}, tmp_path / "all" / "v1_skip" / "pytorch_model.bin")
    write({}, tmp_path / "all" / "weights" / "bestMSE.pt")
    assert "name one of its folders with weights: v1_skip, weights" in refusal(tmp_path / "all")
    message = refusal(tmp_path / "all" / "notes")
    assert "no .safetensors, .bin, .pt or .pth file is there" in message
    assert "name one" not in message


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


@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_refused_and_does_not_run(
    tmp_path: Path, save: Callable[[Any, Path], Any], name: str, recwarn: pytest.WarningsRecorder
) -> None:
    trace = tmp_path / "the code ran"
    path = tmp_path / name
    save({**state_of(network(), tmp_path), "extra": Intruder(trace)}, path)
    message = refusal(path)
    assert not trace.exists()
    assert not recwarn
    assert "state_dict()" in message
    assert "weights_only" not in message
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists(), "the intruder is harmless, so this test shows nothing"


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; fetch the file again"),
        (b"<!doctype html><title>Sign in</title>", "is a web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a pointer of Git LFS (`git lfs pull`)"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_a_failed_download_left_is_named(tmp_path: Path, suffix: str, content: bytes, words: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert words in refusal(path)


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
            lambda state: {f"model.{key}": value for key, value in state.items()} | {"loss.weight": torch.ones(1)},
            ["model.encoder.fc_mu.weight and loss.weight share no prefix"],
            id="no common prefix",
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
        pytest.param(lambda state: {"epoch": 3, "weights": state}, "epoch, weights", id="under another name"),
        pytest.param(lambda state: {"model": {"student": state}}, "student", id="two of them"),
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
    for source in (tmp_path / "weights.onnx", "no-such-name", "", "s3://bucket/weights.pt"):
        assert "hf://ORG/REPO" in refusal(source)
    (tmp_path / "folder.pt").mkdir()
    assert "no .safetensors, .bin, .pt or .pth file is there" in refusal(tmp_path / "folder.pt")
    for source in ("hf://", "hf://org", "hf://org/", "hf://@main", "hf://org@main/repo"):
        assert "hf://ORG/REPO" in refusal(source)
