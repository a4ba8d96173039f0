"""Experiments as users run them, and networks whose uncertainty says nothing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import torch

from chexmask_u import cli
from chexmask_u.model.checkpoint import save_model
from tests.support.small_networks import network


def run(name: str, output: Path, *arguments: object) -> dict[str, Any]:
    """What results.json holds once the command is done."""
    assert cli.main(["experiment", name, "--output", str(output), "--device", "cpu", *map(str, arguments)]) == cli.DONE
    return json.loads((output / "results.json").read_text())


def table(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((output / "table.csv").read_text())))


def verdicts(results: dict[str, Any]) -> list[str]:
    return [finding["verdict"] for finding in results["findings"]]


def blind_weights(path: Path) -> Path:
    """Weights of a network that draws alike whatever the image shows."""
    blind = network("noskip", seed=7)
    with torch.no_grad():
        for linear in (blind.encoder.fc_mu, blind.encoder.fc_logvar):
            linear.weight.zero_()
    save_model(blind, path)
    return path
