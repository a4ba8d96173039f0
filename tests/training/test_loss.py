"""The objectives and their schedules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import chexmask_u as cu
from chexmask_u.errors import InputError
from chexmask_u.settings import TrainSettings
from chexmask_u.training.loss import SKIP_WEIGHT, Objective, energy_score, kl_weight, learning_rate
from tests.support.annotated import settings


def test_loss_of_lungs_ignores_what_the_network_says_of_the_heart(variant: str) -> None:
    torch.manual_seed(0)
    model = cu.HybridGNet(64, variant)
    objective = Objective(model)
    images, target, noise = torch.rand(2, 1, 64, 64), torch.rand(2, 94, 2), torch.randn(2, 64)
    terms = objective(images, target, noise)
    mean, log_var, features = model.encode(images)
    z = mean + noise * torch.exp(log_var / 2)
    decoded = model.decode_all(z[:, None], features)
    offset = decoded.landmarks[:, 0, :94] - target
    torch.testing.assert_close(terms.landmarks, offset.square().mean())
    if variant == "skip":
        halves = torch.stack([(target[:, 2 * i] + target[:, 2 * i + 1]) / 2 for i in range(47)], dim=1)
        torch.testing.assert_close(terms.skip1, (decoded.pos1[:, 0, :47] - halves).square().mean())
        torch.testing.assert_close(terms.skip2, (decoded.pos2[:, 0, :94] - target).square().mean())
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, torch.exp(log_var / 2)), normal(0.0, 1.0))
    torch.testing.assert_close(terms.kl, expected.sum(1).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        terms.total(0.1), terms.landmarks + terms.skip1 + terms.skip2 + 0.1 * expected.mean(), rtol=1e-4, atol=1e-4
    )


def test_energy_score_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    drawn, target = rng.random((2, 5, 7, 2)), rng.random((2, 7, 2))
    scored = []
    for image in range(2):
        for node in range(7):
            x, y = drawn[image, :, node], target[image, node]
            error = np.mean([np.hypot(*(one - y)) for one in x])
            apart = np.mean([np.hypot(*(x[i] - x[j])) for i in range(5) for j in range(5) if i != j])
            scored.append(error - apart / 2)
    assert energy_score(torch.from_numpy(drawn), torch.from_numpy(target)).item() == pytest.approx(np.mean(scored))


@pytest.mark.parametrize("draws", [2, 4])
def test_energy_score_is_least_for_draws_that_are_spread_as_the_truth_is(draws: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # The second node is four times as unsure as the first, and along one axis twice as much as along the other.
    spread = torch.tensor([[[0.01, 0.02]], [[0.04, 0.08]]]).view(1, 2, 2)
    truth = spread * torch.randn(40_000, 2, 2, generator=generator)
    drawn = spread.unsqueeze(1) * torch.randn(40_000, draws, 2, 2, generator=generator)

    def score(factor: float | torch.Tensor, offset: float = 0.0) -> float:
        return energy_score(factor * drawn + offset, truth).item()

    assert score(1) == min(score(factor) for factor in (0.0, 0.5, 0.8, 1, 1.25, 2))
    assert score(1) < min(score(1, offset) for offset in (-0.02, 0.02))
    # Right on the whole, and wrong at each node.
    assert score(1) < score(torch.tensor([2.5, 0.625]).view(2, 1))


def test_energy_of_lungs_is_that_of_all_draws_of_one_encoding(variant: str) -> None:
    torch.manual_seed(0)
    model = cu.HybridGNet(64, variant)
    images, target, noise = torch.rand(2, 1, 64, 64), torch.rand(2, 94, 2), torch.randn(2, 3, 64)
    terms = Objective(model, objective="energy")(images, target, noise.flatten(1))
    mean, log_var, features = model.encode(images)
    draws = [model.decode_all((mean + one * torch.exp(log_var / 2))[:, None], features) for one in noise.unbind(1)]
    expected = energy_score(torch.cat([draw.landmarks[:, :, :94] for draw in draws], 1), target)
    torch.testing.assert_close(terms.landmarks, expected)
    total = expected + 0.1 * terms.kl / 64
    if variant == "skip":
        halves = torch.stack([(target[:, 2 * i] + target[:, 2 * i + 1]) / 2 for i in range(47)], dim=1)
        skip1 = energy_score(torch.cat([draw.pos1[:, :, :47] for draw in draws], 1), halves)
        skip2 = energy_score(torch.cat([draw.pos2[:, :, :94] for draw in draws], 1), target)
        total = total + (skip1 + skip2) / 2
    torch.testing.assert_close(terms.total(0.1, SKIP_WEIGHT["energy"]), total)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"draws": 1}, "--draws must be at least 2"), ({"variant": "dropout"}, "needs --variant skip or noskip")],
)
def test_energy_score_of_what_has_no_draws_to_compare_is_refused(changes: dict[str, object], words: str) -> None:
    settings(**changes)
    with pytest.raises(InputError, match=words):
        settings(objective="energy", **changes)


def test_default_schedules_are_the_papers() -> None:
    paper = TrainSettings(drawings=1, output="unused")
    weights = [kl_weight(paper, epoch) for epoch in (0, 100, 200, 900)]
    np.testing.assert_allclose(weights, [1e-5, (1e-5 + 1e-2) / 2, 1e-2, 1e-2])
    rates = [learning_rate(paper, epoch) for epoch in (0, 49, 50, 149)]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 0.9e-4, 0.81e-4])


def test_the_learning_rate_can_fall_along_a_cosine() -> None:
    chosen = TrainSettings(
        drawings=1, output="unused", schedule="cosine", learning_rate=1e-3, decay_epochs=60, epochs=60
    )
    rates = [learning_rate(chosen, epoch) for epoch in (0, 20, 30, 40, 60)]
    np.testing.assert_allclose(rates, [1e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0], atol=1e-12)
    with pytest.raises(InputError, match="--decay-epochs 60, before --epochs 61"):
        replace(chosen, epochs=61)
