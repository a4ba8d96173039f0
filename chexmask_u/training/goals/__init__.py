"""What networks are trained to: landmarks, or masks."""

from __future__ import annotations

from chexmask_u.model.pixel import PixelNetwork
from chexmask_u.model.variants import VARIANTS
from chexmask_u.settings import TrainSettings
from chexmask_u.training.goals.base import Goal
from chexmask_u.training.goals.landmarks import LandmarkGoal
from chexmask_u.training.goals.masks import MaskGoal


def goal_of(settings: TrainSettings) -> Goal:
    """The goal of the settings' variant."""
    kind: type[Goal] = MaskGoal if issubclass(VARIANTS[settings.variant], PixelNetwork) else LandmarkGoal
    return kind(settings)
