"""Epochs, validation and state of one training process; knows nothing of Ray or storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from chexmask_u.anatomy import LANDMARKS, N_LANDMARKS
from chexmask_u.model.variants import VARIANTS, build
from chexmask_u.settings import TrainSettings
from chexmask_u.training.augment import augment
from chexmask_u.training.examples import Examples
from chexmask_u.training.goals import goal_of
from chexmask_u.training.loss import kl_weight, learning_rate

# Batches made ahead, so that the network never waits for augmentation; more where there are more threads to make them.
AHEAD = 4

_NO_LIMIT = float("inf")


class DivergedError(RuntimeError):
    """A loss or gradient that is no finite number, with the epoch, the batch and the images in it."""

    def __init__(self, epoch: int, batch: int, names: list[str], terms: dict[str, float]) -> None:
        shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        super().__init__(
            f"epoch {epoch + 1}, batch {batch + 1}: the gradient is not finite ({shown}); images: {', '.join(names)}"
        )
        self.facts = {"epoch": epoch + 1, "batch": batch + 1, "images": names, "terms": terms}


@dataclass(frozen=True)
class Place:
    """Which of the training processes this is, and its device."""

    rank: int
    world: int
    device: torch.device


class Training:
    """A network in training, on one of several processes that all call the same methods in the same order.

    Batches, augmentation and noise are keyed by (seed, epoch, batch, position), so they are the same for any number of
    processes and after any interruption.

    Args:
        settings: all of them; each process takes its part of `batch_size`.
        train, validation: all examples, of side `settings.input_size`; drawings last, from row `first_drawing` on.
        place: which process this is.
        prepare: moves a module to the device and, among several processes, wraps it to share gradients.
    """

    def __init__(
        self,
        settings: TrainSettings,
        train: Examples,
        first_drawing: int,
        validation: Examples,
        place: Place,
        prepare: Callable[[nn.Module], nn.Module],
    ) -> None:
        self.settings, self.train, self.validation, self.place = settings, train, validation, place
        self.batches = Batches(settings, train, first_drawing, place)
        torch.manual_seed(settings.seed)
        self.model = build(settings.input_size, settings.variant)
        if settings.freeze_convolutions:
            self.model.freeze_convolutions()
        # Instance norm on a GPU undoes it, before each convolution.
        self.layout = torch.channels_last if place.device.type == "cpu" else torch.contiguous_format
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]  # torch lacks this one
        self.goal = goal_of(settings)
        self.objective = prepare(self.goal.objective(self.model))
        learning = [weights for weights in self.model.parameters() if weights.requires_grad]
        self.optimiser = torch.optim.Adam(learning, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.epoch = 0
        self.history: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.history = state["epoch"], list(state["history"])

    def run_epoch(self, count: Callable[[int], None]) -> dict[str, float]:
        """Train for one epoch and, if it is due, validate; returns the row of metrics that was added to the history.

        Args:
            count: is told of each batch.

        Raises:
            DivergedError: on all processes alike, before the batch has changed the weights.
        """
        rate, weight = learning_rate(self.settings, self.epoch), kl_weight(self.settings, self.epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.objective.train()
        sums = torch.zeros(len(self.goal.terms), device=self.place.device)
        for number, batch in enumerate(self.batches.of_epoch(self.epoch)):
            sums += self._update(number, batch, weight)
            count(1)
        means = self._shared_mean(sums / self.settings.batches)
        row = {"epoch": float(self.epoch + 1), "learning_rate": rate, "kl_weight": weight}
        row |= {f"train_{name}": float(value) for name, value in zip(self.goal.terms, means, strict=True)}
        row["train_loss"] = float(self.goal.total(list(means), weight))
        self.epoch += 1
        if self.is_due():
            row |= self.validate()
        self.history.append(row)
        return row

    def is_due(self) -> bool:
        """Whether the epoch that was finished ends with a validation and a checkpoint."""
        return self.epoch % self.settings.every == 0 or self.epoch >= self.settings.epochs

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Scores of the held-out images, each of which is scored by exactly one process."""
        self.objective.eval()
        mine: list[tuple[int, Any]] = []
        for row in range(self.place.rank, len(self.validation), self.place.world):
            grey = self.model.grey(torch.from_numpy(self.validation.images[row, None]).to(self.place.device))
            judged = self.goal.judge(self.model, grey, self.validation.names[row], self.validation.landmarks[row])
            mine.append((row, judged))
        everyone = sorted(self._gather(mine), key=lambda one: one[0])
        return self.goal.summary([judged for _, judged in everyone])

    def _update(self, number: int, batch: Batch, weight: float) -> Tensor:
        device = self.place.device
        images, target, noise = (
            part.to(device, non_blocking=True) for part in (batch.images, batch.target, batch.noise)
        )
        terms = self.objective(images.contiguous(memory_format=self.layout), target, noise)
        self.optimiser.zero_grad()
        self.goal.total(terms, weight).backward()
        limit = _NO_LIMIT if self.settings.clip is None else self.settings.clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        # Gradients are shared by now, so that all processes see the same norm and stop together.
        if not torch.isfinite(norm):
            names = [name for part in self._gather([batch.names]) for name in part]
            values = {name: float(value.detach()) for name, value in zip(self.goal.terms, terms, strict=True)}
            raise DivergedError(self.epoch, number, names, values)
        self.optimiser.step()
        return torch.stack([term.detach() for term in terms])

    def _shared_mean(self, values: Tensor) -> Tensor:
        if self.place.world > 1:
            dist.all_reduce(values)
            values /= self.place.world
        return values

    def _gather(self, mine: list[Any]) -> list[Any]:
        """The items of all processes, in order of their rank."""
        if self.place.world == 1:
            return mine
        parts: list[list[Any]] = [[] for _ in range(self.place.world)]
        dist.all_gather_object(parts, mine)
        return [item for part in parts for item in part]


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch: images float32 [B, 1, S, S], targets as the goal has them, noise [B, M * noise].

    And the names of the examples.
    """

    images: Tensor
    target: Tensor
    noise: Tensor
    names: list[str]


class Batches:
    """The batches of each epoch: every one of images with hearts, or of images with lungs alone.

    The kind of a batch is drawn in proportion to the annotated images of each kind. Among images with hearts, each is a
    drawing with the chance `drawings_share`. Images of a batch differ, as far as there are enough.
    """

    def __init__(self, settings: TrainSettings, examples: Examples, first_drawing: int, place: Place) -> None:
        self.settings, self.examples = settings, examples
        self.goal = goal_of(settings)
        heart = examples.has_heart()
        rows = np.arange(len(examples))
        self.drawings = rows[first_drawing:]
        self.hearts = rows[:first_drawing][heart[:first_drawing]]
        self.lungs = rows[:first_drawing][~heart[:first_drawing]]
        with_heart = len(self.hearts) or (len(self.lungs) if len(self.drawings) else 0)
        self.lungs_chance = len(self.lungs) / max(1, len(self.lungs) + with_heart)
        self.mine = slice(place.rank, None, place.world)
        self.on_gpu = place.device.type == "cuda"

    def rows(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Rows of the examples in a batch, over all processes."""
        size = self.settings.batch_size
        rng = np.random.default_rng([self.settings.seed, epoch, number])
        if rng.random() < self.lungs_chance:
            return _differing(rng, self.lungs, size)
        drawn = size if not len(self.hearts) else 0
        if len(self.drawings) and len(self.hearts):
            drawn = int(rng.binomial(size, self.settings.drawings_share))
        return np.concatenate([_differing(rng, self.drawings, drawn), _differing(rng, self.hearts, size - drawn)])

    def of_epoch(self, epoch: int) -> Iterator[Batch]:
        """Parts of an epoch's batches that are this process's, some of them made ahead."""
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            waiting: list[Future[Batch]] = []
            for number in range(self.settings.batches):
                waiting.append(pool.submit(self._make, epoch, number))
                if len(waiting) > max(AHEAD, threads):
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def _make(self, epoch: int, number: int) -> Batch:
        rows = self.rows(epoch, number)
        nodes = N_LANDMARKS if self.examples.has_heart_at(rows[0]) else LANDMARKS["heart"].start
        size = VARIANTS[self.settings.variant].noise_at(self.settings.input_size)
        count = self.settings.draws_per_image() * size
        positions = range(len(rows))[self.mine]
        # Pinned for a GPU, or the copy to it would not be beside the work on the batch before.
        images = torch.empty(len(positions), 1, *self.examples.images.shape[1:], pin_memory=self.on_gpu)
        targets, noise = [], []
        for place, position in enumerate(positions):
            # From 1: with 0 it would be the stream that chose the batch's rows, since zeros at the end do not count.
            rng = np.random.default_rng([self.settings.seed, epoch, number, position + 1])
            row = rows[position]
            out = images[place, 0].numpy()
            _, points = augment(rng, self.examples.images[row], self.examples.landmarks[row], self.settings, out)
            targets.append(self.goal.target(points[:nodes]))
            noise.append(rng.standard_normal(count, np.float32))
        target, draws = (torch.from_numpy(np.stack(part)) for part in (targets, noise))
        if self.on_gpu:
            target, draws = target.pin_memory(), draws.pin_memory()
        return Batch(images, target, draws, [self.examples.names[row] for row in rows[self.mine]])


def _differing(rng: np.random.Generator, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of the rows [n], drawn: [count], each at most once if there are enough."""
    if not count:
        return rows[:0]
    return rng.choice(rows, count, replace=count > len(rows))
