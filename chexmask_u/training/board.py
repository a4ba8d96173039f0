"""TensorBoard's event file of a training run."""

from __future__ import annotations

from chexmask_u.training.run import TrainingRun

_SCHEDULES = ("learning_rate", "kl_weight")


class NoBoard:
    """What the workers other than the first write to TensorBoard: nothing."""

    def __enter__(self) -> NoBoard:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, row: dict[str, float]) -> None:
        pass


class Board(NoBoard):
    """TensorBoard's event file of the run; a resumed one hides what an interrupted one wrote after its checkpoint."""

    def __init__(self, run: TrainingRun, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(run.path("tensorboard"), purge_step=epoch + 1)

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def add(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            group = "train" if name.startswith("train_") else "settings" if name in _SCHEDULES else "validation"
            if name != "epoch":
                self.writer.add_scalar(f"{group}/{name.removeprefix('train_')}", value, int(row["epoch"]))
        self.writer.flush()
