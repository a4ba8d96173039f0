"""Networks of a small input with random weights, and the files that such weights lie in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.hybridgnet import HybridGNet

SIZE = 64


def network(variant: str = "skip", seed: int = 0) -> HybridGNet:
    torch.manual_seed(seed)
    return HybridGNet(input_size=SIZE, variant=variant).eval()


@torch.inference_mode()
def answers(model: HybridGNet) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images, z = torch.rand(2, 1, SIZE, SIZE, generator=generator), torch.randn(2, 3, 64, generator=generator)
    mean, log_var, features = model.encode(images)
    return torch.cat([mean.ravel(), log_var.ravel(), model.decode(z, features).ravel()])


def state_of(model: HybridGNet, folder: Path) -> dict[str, Tensor]:
    """The weights by upstream's names."""
    save_model(model, folder / "state.safetensors")
    # Not what is mapped from the file, which the next network's weights replace.
    return {key: value.clone() for key, value in load_file(folder / "state.safetensors").items()}


def write(state: dict[str, Any], path: Path) -> Path:
    """Save in the form that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


# As the published repository has it, but for the size.
CONFIG = {
    "latents": 64,
    "inputsize": SIZE,
    "K": 6,
    "filters": [2, 32, 32, 32, 16, 16, 16],
    "skip_features": 32,
    "n_nodes": [120, 120, 120, 60, 60, 60],
    "eval_sampling": True,
    "use_skip": True,
    "license": "mit",
}
