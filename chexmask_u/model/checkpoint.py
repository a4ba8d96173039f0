"""Weights on disk and on the Hub: load with every key and size checked, save with upstream's key names."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from chexmask_u.errors import InputError
from chexmask_u.model.dropout import build
from chexmask_u.model.encoder import CHANNELS, DOWNSAMPLING
from chexmask_u.model.hybridgnet import HybridGNet, Variant

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")

_HUB_URI = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:/(?P<folder>[^@]+))?(?:@(?P<revision>.+))?")


class CheckpointError(InputError):
    """Weights that cannot be found, read or fitted to the network; the message is one line that names the remedy."""


def say_if_demonstration(source: str) -> None:
    """Tell on stderr whoever is about to work with the demonstration weights that they are no more than that."""
    if source == "demo":
        print("Weights: the bundled demonstration, not the published ones, and not for clinical use", file=sys.stderr)


def load_model(source: str = "demo", *, device: str | torch.device = "cpu", sha256: str | None = None) -> HybridGNet:
    """Load HybridGNet in evaluation mode; input size and variant are read from the weights.

    Args:
        source: "demo" for the bundled demonstration weights (not the published ones, not for clinical use); a path to a
            ``.safetensors`` file or to a PyTorch ``.pt`` state dict (read with ``weights_only``, so no code in it
            runs); or ``hf://ORG/REPO[/FOLDER-OR-FILE][@REVISION]``.
        device: where the model is placed.
        sha256: digest that the weight file must have; None accepts any.

    Returns:
        The model, with the digest of its file in ``model.sha256``.

    Raises:
        CheckpointError: if the file is missing, damaged, has another digest, or its keys or sizes do not fit.
    """
    path = locate(source)
    digest = _sha256(path)
    if sha256 is not None and digest != sha256.lower():
        raise CheckpointError(f"{source}: sha256 is {digest}, expected {sha256}; fetch the weights again")
    state = _read_state(path, source)
    model = build(_input_size(state, source), _variant(state))
    _check_fit(state, model, source)
    model.load_state_dict({_module_key(key): value.float() for key, value in state.items()})
    model.sha256 = digest
    return model.to(device).eval()


def save_model(model: HybridGNet, path: str | Path, *, dtype: torch.dtype = torch.float32) -> str:
    """Save the weights as safetensors with upstream's key names; returns the sha256 of the file."""
    state = {
        key.removeprefix("decoder."): value.detach().to("cpu", dtype).contiguous()
        for key, value in model.state_dict().items()
    }
    # Not save_file, which lets nobody but its owner read the file.
    Path(path).write_bytes(save(state))
    return _sha256(Path(path))


def locate(source: str) -> Path:
    """Local path of the weights that `source` names (see `load_model`); downloads from the Hub when it must."""
    if source == "demo":
        return Path(str(resources.files("chexmask_u") / "weights" / "demo.safetensors"))
    if source.startswith("hf://"):
        return _download(source)
    path = Path(source).expanduser()
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{source}: weights must be 'demo', hf://ORG/REPO/FOLDER or one of {WEIGHT_SUFFIXES}")
    if not path.is_file():
        raise CheckpointError(f"{source}: no such weight file; use 'demo' for the bundled weights")
    return path


def _download(source: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    match = _HUB_URI.fullmatch(source)
    if match is None:
        raise CheckpointError(f"{source}: expected hf://ORG/REPO[/FOLDER-OR-FILE][@REVISION]")
    repo, folder, revision = match["repo"], (match["folder"] or "").strip("/"), match["revision"]
    try:
        files = {
            file.path: file
            for file in HfApi().list_repo_tree(repo, revision=revision, recursive=True)
            if file.path.endswith(WEIGHT_SUFFIXES)
            and (file.path == folder or file.path.startswith(f"{folder}/" if folder else ""))
        }
    except Exception as error:  # the client lets errors of its HTTP library through, whichever that is
        raise CheckpointError(f"{source}: {_hub_problem(error)}") from error
    for suffix in WEIGHT_SUFFIXES:
        candidates = sorted(path for path in files if path.endswith(suffix))
        if candidates:
            break
    else:
        raise CheckpointError(f"{source}: no {' or '.join(WEIGHT_SUFFIXES)} file there")
    if len(candidates) > 1:
        raise CheckpointError(f"{source}: several weight files, name one: {', '.join(candidates)}")
    try:
        path = Path(hf_hub_download(repo, candidates[0], revision=revision))
    except Exception as error:
        raise CheckpointError(f"{source}: {_hub_problem(error)}") from error
    lfs = getattr(files[candidates[0]], "lfs", None)
    if lfs is not None and _sha256(path) != lfs.sha256:
        # The client would link to its copy again; it keys it by the digest that the copy should have.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{source}: the downloaded file differs from the Hub's sha256; it was removed, try again")
    return path


def _hub_problem(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "access must be asked for on the repository's page, and then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository on the Hub, or it is private and needs `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision"
    return f"the Hub did not give it ({_one_line(error)}); check the connection, or name a local file"


def _read_state(path: Path, source: str) -> dict[str, Tensor]:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the protection off.
        raise CheckpointError(
            f"{source}: is damaged, or holds more than tensors and might run code; save the model's state_dict() alone"
        ) from error
    except Exception as error:  # a damaged file makes torch's unpickler raise whatever it stumbles over
        raise CheckpointError(f"{source}: not readable as {path.suffix} weights ({_one_line(error)})") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        held = f"a dict of {', '.join(map(str, list(state)[:4]))}" if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{source}: holds {held}, not a state dict (names to tensors); save the model's state_dict() alone"
        )
    return state


def _module_key(key: str) -> str:
    return key if key.startswith("encoder.") else f"decoder.{key}"


def _variant(state: dict[str, Tensor]) -> Variant:
    if not any(key.startswith("SC_1.") for key in state):
        return "noskip"
    return "skip" if any(key.startswith("encoder.fc_logvar.") for key in state) else "dropout"


def _input_size(state: dict[str, Tensor], source: str) -> int:
    weight = state.get("encoder.fc_mu.weight")
    if weight is None or weight.ndim != 2:
        raise CheckpointError(f"{source}: no encoder.fc_mu.weight matrix, so these are not HybridGNet weights")
    side = round((weight.shape[1] / CHANNELS[-1]) ** 0.5)
    if side < 2 or CHANNELS[-1] * side**2 != weight.shape[1]:
        raise CheckpointError(f"{source}: encoder.fc_mu.weight {list(weight.shape)} fits no square input")
    return side * DOWNSAMPLING


def _check_fit(state: dict[str, Tensor], model: HybridGNet, source: str) -> None:
    expected = {key.removeprefix("decoder."): value.shape for key, value in model.state_dict().items()}
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
        raise CheckpointError(f"{source}: does not fit HybridGNet ({model.variant}): {shown}{more}")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
