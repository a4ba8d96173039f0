"""How many draws are enough, and what they cost: variational beside MC dropout, in one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import chexmask_u as cu
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.variants import build
from chexmask_u.training import examples
from tests.support import experiments


@pytest.fixture(scope="module")
def dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("dropout") / "dropout.safetensors"
    save_model(build(64, "dropout"), path)
    return path


def test_fewer_draws_are_the_first_of_more_and_what_they_cost_is_kept(
    tmp_path: Path, dropout: Path, tiny_weights: Path
) -> None:
    counts = ("--count", 4, "--count", 50, "--count", 52, "--timed", 1)
    output = tmp_path / "out"
    given = ("--drawings", 3, *counts, "--weights", tiny_weights, "--weights", dropout)
    results = experiments.run("samples", output, *given)
    rows = experiments.table(output)
    assert [row["draws"] for row in rows] == ["4", "50", "52"] * 2
    by_weights = results["by_weights"]
    assert by_weights["tiny"]["52"]["agreement"] == pytest.approx(1)
    assert by_weights["tiny"]["4"]["agreement"] < by_weights["tiny"]["50"]["agreement"] < 1
    held_out = examples.held_out(3, 0, 1024)
    alone = cu.predict(cu.load_model(str(tiny_weights)), held_out.images, held_out.names, 4)
    errors = np.linalg.norm(alone.landmarks_mean - held_out.landmarks * 1024, axis=-1)
    r = np.corrcoef(alone.landmarks_std.mean(axis=-1).ravel(), errors.ravel())[0, 1]
    assert by_weights["tiny"]["4"]["r"] == pytest.approx(r, abs=1e-3)
    claims = {one["claim"]: one for one in results["findings"]}
    cheaper = claims["Variational draws cost less than MC dropout at equal N (tiny against dropout)"]
    assert cheaper["ours"].startswith("N = 50: ")
    assert cheaper["ours"].endswith("of 1 images")
    assert all(found["seconds"] > 0 for of in by_weights.values() for found in of.values())
    stable = claims["Agreement with the error is stable from 50 draws on (tiny)"]
    assert (stable["verdict"], stable["cause"][:8]) == ("cannot be told", "3 images")
    # Seconds are measured once.
    assert experiments.run("samples", output, *given)["by_weights"] == by_weights
