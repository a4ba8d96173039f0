"""What the trainer asks of a goal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from chexmask_u.settings import TrainSettings


class Goal(ABC):
    """What networks of one kind are trained to, and how they are judged between epochs.

    Args:
        settings: of the training.
    """

    terms: ClassVar[tuple[str, ...]]
    """Names of the loss's terms."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    @abstractmethod
    def target(self, landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
        """What an example's landmarks [n, 2], unit square, are to the loss; n is 120, or 94 for lungs alone."""

    @abstractmethod
    def objective(self, model: Any) -> nn.Module:
        """The network with its loss as one module: (images, targets, noise) of a batch -> `terms`, a tuple of scalars.

        Images are float32 [B, 1, S, S] in [0, 1], noise is standard normal float32 [B, M * model.noise_size].
        """

    @abstractmethod
    def total(self, terms: Sequence[Tensor], kl_weight: float) -> Tensor:
        """What is minimised."""

    @abstractmethod
    def judge(self, model: Any, grey: Tensor, name: str, landmarks: NDArray[np.float32]) -> Any:
        """What `summary` takes of a validation image, float32 [1, 1, S, S], with its landmarks [120, 2], unit square.

        It travels between processes.
        """

    @abstractmethod
    def summary(self, judged: Sequence[Any]) -> dict[str, float]:
        """Scores over all validation images."""

    @abstractmethod
    def error(self, row: dict[str, float]) -> float:
        """What the best epoch has least of, in a row that `summary` is part of."""
