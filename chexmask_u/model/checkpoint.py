"""Weights in a file: read with every key and size checked, saved with upstream's key names."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from chexmask_u.errors import CheckpointError
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.network import BaseNetwork
from chexmask_u.model.variants import VARIANTS, build, called

# Where a checkpoint holds its state dict: in one of them, or in one within the other.
_WRAPPERS = ("state_dict", "model", "state_dict")

# What failed downloads leave under a weight file's name, by its first bytes.
_OTHERS = {
    b"<": "a web page or XML, as failed downloads leave it",
    b"version https://git-lfs": "a pointer of Git LFS (`git lfs pull`)",
}
_LONGEST_START = max(map(len, _OTHERS))


def read_model(path: Path, source: str, config: Mapping[str, Any], config_name: str) -> BaseNetwork:
    """Read a network from a file, in evaluation mode; input size and variant are read from the tensors.

    Args:
        path: a safetensors file by its suffix, else one of PyTorch, read with ``weights_only``: a state dict or a
            checkpoint that holds one. All keys may share a prefix.
        source: what messages call the weights.
        config: what the config.json beside the file says, with upstream's names.
        config_name: what messages call that.

    Raises:
        CheckpointError: if the file is damaged, its keys or sizes do not fit, or the config contradicts them.
    """
    state = _without_prefix(_read_state(path, source), source)
    variant = called(state)
    try:
        model = build(VARIANTS[variant].size_of(state), variant)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    _check_fit(state, model, source)
    _check_config(config, model, f"{source}: {config_name}")
    model.load_state_dict({name: state[model.saved_as(name)].float() for name in model.state_dict()})
    return model.eval()


def save_model(model: BaseNetwork, path: str | Path, *, dtype: torch.dtype = torch.float32) -> str:
    """Save the weights as safetensors with upstream's key names; returns the sha256 of the file."""
    state = {
        model.saved_as(name): value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()
    }
    content = save(state)
    # Not save_file, which lets nobody but its owner read the file.
    Path(path).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _read_state(path: Path, source: str) -> dict[str, Tensor]:
    with path.open("rb") as content:
        start = content.read(_LONGEST_START)
    if not start or (other := next((name for mark, name in _OTHERS.items() if start.startswith(mark)), None)):
        raise CheckpointError(f"{source}: is {other if start else 'empty'}; fetch the file again")
    try:
        with warnings.catch_warnings():
            # torch's, of a file by another program's pickle, which is refused or read like any other.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the protection off.
        raise CheckpointError(
            f"{source}: is damaged, or holds more than tensors and might run code; save the model's state_dict() alone"
        ) from error
    except Exception as error:  # a damaged file makes torch's unpickler raise whatever it stumbles over
        raise CheckpointError(
            f"{source}: not readable as {path.suffix} weights ({_one_line(error)}); if it was cut short, fetch it again"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        held = f"a dict of {', '.join(map(str, list(state)[:4]))}" if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{source}: holds {held}, not a state dict (names to tensors); save the model's state_dict() alone"
        )
    return state


def _without_prefix(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state dict of the network alone, where it was a part of another module, or wrapped by one."""
    marks = {kind.mark for kind in VARIANTS.values()}
    found = [(key.removesuffix(mark), mark) for key in state for mark in marks if f".{key}".endswith(f".{mark}")]
    if not found:
        raise CheckpointError(f"{source}: no {HybridGNet.mark} matrix, so these are not HybridGNet weights")
    prefix, mark = min(found, key=lambda one: len(one[0]))
    if others := sorted(key for key in state if not key.startswith(prefix)):
        raise CheckpointError(
            f"{source}: {prefix}{mark} and {others[0]} share no prefix; save the network's state_dict() alone"
        )
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _check_fit(state: dict[str, Tensor], model: BaseNetwork, source: str) -> None:
    expected = {model.saved_as(name): value.shape for name, value in model.state_dict().items()}
    problems = [f"missing {key}" for key in expected.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in state.keys() - expected.keys()]
    problems += [
        f"{key} is {list(state[key].shape)}, not {list(shape)}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    problems += [
        f"{key} holds values that are not finite numbers"
        for key in expected.keys() & state.keys()
        if not bool(torch.isfinite(state[key].float()).all())
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:6])
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(f"{source}: does not fit {model.family} ({model.variant}): {shown}{more}")


def _check_config(config: Mapping[str, Any], model: BaseNetwork, name: str) -> None:
    for field, value in model.config().items():
        if field in config and config[field] != value:
            raise CheckpointError(
                f"{name}: {field} is {config[field]!r}, but the weights beside it are of {field} {value!r}; "
                "they do not belong together"
            )


def _one_line(error: Exception) -> str:
    """Its first sentence: torch adds advice of a paragraph."""
    line = str(error).strip().partition("\n")[0]
    return line.partition(". ")[0] or type(error).__name__
