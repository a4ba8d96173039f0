"""Landmarks: squared errors or energy scores of the nodes and the skip blocks' positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chexmask_u.anatomy import FRAME
from chexmask_u.model.predict import latent_noise
from chexmask_u.model.variants import VARIANTS
from chexmask_u.training.goals.base import Goal
from chexmask_u.training.loss import SKIP_WEIGHT, Objective, Terms, energy_score
from chexmask_u.training.scores import image_scores, mean_scores, posterior

# Draws of a validation image's energy score: with more of them the mean over 20 images hardly moves.
VALIDATION_DRAWS = 20


class Judged(NamedTuple):
    """Scores of an image, and mean and sigma of its latents, float32 [64] each."""

    scores: dict[str, float]
    mean: NDArray[np.float32]
    sigma: NDArray[np.float32]


class LandmarkGoal(Goal):
    """Landmarks near the annotated ones, in pixels of the 1024 frame where they are judged.

    They are judged as decoded from the posterior mean. With --objective energy, ``energy`` is the score of
    `VALIDATION_DRAWS` draws.
    """

    terms = Terms._fields

    def target(self, landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        return landmarks

    def objective(self, model: Any) -> nn.Module:
        return Objective(model, self.settings.precision, self.settings.objective)

    def total(self, terms: Sequence[Tensor], kl_weight: float) -> Tensor:
        return Terms(*terms).total(kl_weight, SKIP_WEIGHT[self.settings.objective])

    def judge(self, model: Any, grey: Tensor, name: str, landmarks: NDArray[np.float32]) -> Judged:
        decoded, mean, sigma = (values[0].cpu().numpy() for values in model.centre(grey))
        scores = image_scores(decoded[0] * FRAME, landmarks * FRAME)
        if self.settings.objective == "energy":
            scores["energy"] = self._energy(model, grey, name, landmarks)
        return Judged(scores, mean, sigma)

    def summary(self, judged: Sequence[Judged]) -> dict[str, float]:
        scores = mean_scores([one.scores for one in judged])
        if not VARIANTS[self.settings.variant].has_posterior:
            return scores
        health = posterior(np.stack([one.mean for one in judged]), np.stack([one.sigma for one in judged]))
        return scores | {name: float(health[name]) for name in ("sigma", "kl", "active_latents")}

    def error(self, row: dict[str, float]) -> float:
        return row["energy" if self.settings.objective == "energy" else "mse"]

    def _energy(self, model: Any, grey: Tensor, name: str, landmarks: NDArray[np.float32]) -> float:
        """Energy score in pixels of an image, of draws that are the same in every epoch."""
        noise = torch.from_numpy(latent_noise(name, VALIDATION_DRAWS, self.settings.seed, model.noise_size)).to(grey)
        target = torch.from_numpy(landmarks).to(grey)
        there = target.isfinite().all(dim=1)
        drawn = model.sample(grey, lambda: noise.unsqueeze(0)).landmarks[:, :, there]
        return float(energy_score(drawn, target[there].unsqueeze(0))) * FRAME
