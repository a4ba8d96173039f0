"""Which epoch is the best, and checkpoints that a kill tore."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chexmask_u import storage
from chexmask_u.settings import TrainSettings
from chexmask_u.training import checkpoints


def test_the_best_epoch_has_the_kl_weight_that_was_asked_for_if_any_has() -> None:
    paper = TrainSettings(drawings=1, output="unused")
    rows = [{"epoch": 150.0, "mse": 90.0}, {"epoch": 210.0, "mse": 110.0}, {"epoch": 300.0, "mse": 100.0}]
    assert min(rows, key=lambda row: checkpoints.rank(paper, row))["epoch"] == 300
    assert min(rows[:1], key=lambda row: checkpoints.rank(paper, row))["epoch"] == 150
    dropout = replace(paper, variant="dropout")
    assert min(rows, key=lambda row: checkpoints.rank(dropout, row))["epoch"] == 150
    by_energy = replace(paper, objective="energy")
    scored = [row | {"energy": energy} for row, energy in zip(rows, (4.0, 5.0, 6.0), strict=True)]
    assert min(scored, key=lambda row: checkpoints.rank(by_energy, row))["epoch"] == 210


def test_checkpoints_that_a_torn_list_forgot_are_all_found_in_order_and_a_torn_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filesystem, path = storage.arrow_filesystem(str(tmp_path))
    assert checkpoints.mend(filesystem, path) == []
    for epoch in (10, 2, 4):
        folder = tmp_path / "checkpoints" / f"epoch-{epoch:06d}"
        folder.mkdir(parents=True)
        torch.save({"epoch": epoch, "weights": torch.zeros(5000)}, folder / "state.pt")
    torn = tmp_path / "checkpoints" / "epoch-000004" / "state.pt"
    torn.write_bytes(torn.read_bytes()[:5000])
    snapshot = tmp_path / "checkpoints" / "checkpoint_manager_snapshot.json"
    snapshot.write_text("{}")
    assert checkpoints.mend(filesystem, path) == [], "Ray has its list"
    snapshot.write_text('{"check')
    # The second time as after a kill that came before Ray wrote a new list.
    for _ in range(2):
        assert [Path(folder).name for folder in checkpoints.mend(filesystem, path)] == ["epoch-000002", "epoch-000010"]
        assert "epoch-000004: a checkpoint that a kill tore" in capsys.readouterr().err
