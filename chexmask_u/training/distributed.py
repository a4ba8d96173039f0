"""Training through Ray Train: prepare the data once, train on one or more workers, finish with the best checkpoint.

Beside `cluster.py` and `pipeline.py` the only importer of Ray.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import cv2
import pyarrow.fs as pafs
import torch

from chexmask_u import storage
from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.errors import InputError, StoppedError
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.network import Network
from chexmask_u.model.precision import without_tf32
from chexmask_u.model.variants import VARIANTS, build
from chexmask_u.runs import cluster, lock
from chexmask_u.runs.progress import progress
from chexmask_u.runs.write import versions
from chexmask_u.settings import TrainSettings
from chexmask_u.training import evaluate as evaluation
from chexmask_u.training import examples as annotated
from chexmask_u.training import figures
from chexmask_u.training.examples import Examples
from chexmask_u.training.loop import DivergedError, Place, Training
from chexmask_u.training.run import (
    PROBLEMS,
    SCORES,
    WEIGHTS,
    TrainingRun,
    begun_with,
    card,
    command,
    freeze,
    metrics_csv,
)
from chexmask_u.weight_files import WeightFile, find_again, load_model

# How often a worker may die, of too little memory for instance, before the run ends; preempted nodes do not count.
MAX_FAILURES = 3

# Draws per image of the scores in the model card.
CARD_SAMPLES = 50

# Held-out drawings where there is nothing else to hold out.
HELD_OUT_DRAWINGS = 64

_STATE = "state.pt"
_EPOCH = re.compile(r"/epoch-(\d+)$")
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_RANK = "rank"

# Squared error in px² that no network but a diverged one has.
_NOT_YET = float(FRAME**2)


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train, or go on with a run that was interrupted, and finish it.

    Returns:
        What scores.json holds; or ``diverged``, with the epoch, batch and images that gave a loss that is not finite.

    Raises:
        InputError: on bad input, before training, or if another process trains there.
        StoppedError: if workers died too often, or the run was taken over; the same command goes on.
    """
    if util.find_spec("tensorboard") is None:
        raise InputError('training needs TensorBoard: pip install "chexmask-u[train]"')
    run = TrainingRun(storage.normalise(settings.output))
    run.check_place()
    initial = None if settings.initial_weights is None else _find_initial(settings, run)
    with lock.held(run.url), cluster.connected(settings.address) as started_here:
        gpus = cluster.gpus()
        if settings.device == "cuda" and not gpus and started_here:
            raise InputError("--device cuda: Ray sees no GPU on this machine; leave the flag out")
        use_gpu = settings.device == "cuda" or (settings.device == "auto" and gpus > 0)
        # As many of the GPUs as can share a batch.
        sharing = max(n for n in range(1, max(1, gpus) + 1) if settings.batch_size % n == 0)
        workers = settings.workers or (sharing if use_gpu else 1)
        train_ref, validation_ref, facts = _prepared(settings, run, initial)
        print(
            f"{facts['train']:,} images to train on, {facts['validation']:,} held out, {facts['left_out']:,} left out",
            file=sys.stderr,
        )
        finished = run.read_json(SCORES)
        if finished is not None and finished["epochs"] >= settings.epochs:
            return finished | {"already_done": True}
        if settings.epochs <= settings.kl_epochs and VARIANTS[settings.variant].has_posterior:
            print(
                f"the KL weight grows until epoch {settings.kl_epochs + 1}, so {settings.epochs} do not reach "
                f"--kl-last {settings.kl_last:g}; set --kl-epochs below --epochs",
                file=sys.stderr,
            )
        outcome = _fit(settings, run, initial, train_ref, validation_ref, facts["first_drawing"], workers, use_gpu)
        if outcome["diverged"] is not None:
            run.write("diverged.json", json.dumps(outcome["diverged"], indent=2) + "\n")
            return outcome
        result: dict[str, Any] = cluster.on_worker(finish, settings, run.url, outcome["best"], facts)
        return result


def _prepared(settings: TrainSettings, run: TrainingRun, initial: WeightFile | None) -> tuple[Any, Any, dict[str, Any]]:
    """References to the training and validation examples, which stay with the workers, and facts about them."""
    import ray

    task = ray.remote(num_cpus=1, num_returns=3, max_retries=cluster.MAX_RESTARTS)(prepare)
    references: Any = task.remote(settings, run.url, initial)
    train_ref, validation_ref, facts_ref = references
    try:
        facts: dict[str, Any] = ray.get(facts_ref)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    return train_ref, validation_ref, facts


def prepare(settings: TrainSettings, url: str, initial: WeightFile | None) -> tuple[Examples, Examples, dict[str, Any]]:
    """Read, check and split all examples, and freeze the run's settings and the weights that it begins with.

    Returns:
        Training examples, drawings last; validation examples; and how many there are of what.
    """
    run = TrainingRun(url)
    found, problems = annotated.read_examples(settings, settings.input_size)
    if problems:
        run.write(PROBLEMS, annotated.problems_csv(problems))
    annotated.refuse(problems, settings.on_bad)
    parts = annotated.split(found.names, settings.validation, settings.split)
    training, validation = (
        found.take([row for row, part in enumerate(parts) if part == wanted]) for wanted in ("train", "validation")
    )
    first_drawing = len(training)
    if settings.drawings:
        training = annotated.join([training, annotated.drawn(settings.drawings, settings.seed, settings.input_size)])
    if not len(found):
        validation = annotated.held_out(HELD_OUT_DRAWINGS, settings.seed, settings.input_size)
    if not len(training) or not len(validation):
        raise InputError(
            f"{len(training)} images are left to train on and {len(validation)} to validate; "
            "see --data, --split and --validation"
        )
    freeze(run, settings, training, validation, problems, initial)
    names = [*((name, "train") for name in training.names), *((name, "validation") for name in validation.names)]
    datasets: dict[str, dict[str, int]] = {}
    for name, part in names:
        counts = datasets.setdefault(name.partition("/")[0], {"train": 0, "validation": 0})
        counts[part] += 1
    facts = {
        "train": len(training),
        "validation": len(validation),
        "left_out": len(problems),
        "first_drawing": first_drawing,
        "datasets": datasets,
        "validation_names": validation.names,
        "initial_sha256": None if initial is None else initial.sha256,
    }
    return training, validation, facts


def _find_initial(settings: TrainSettings, run: TrainingRun) -> WeightFile:
    """The weights that the run begins with, or was begun with; for workers, too.

    Raises:
        CheckpointError: if there are none.
        InputError: if they are of another network than the one to be trained.
    """
    found = find_again(str(settings.initial_weights), begun_with(run))
    return found.known(str(_initial(settings, found).sha256))


def _initial(settings: TrainSettings, found: WeightFile) -> Network:
    model = load_model(found)
    if (model.variant, model.input_size) != (settings.variant, settings.input_size):
        raise InputError(
            f"--initial-weights {settings.initial_weights}: are of the variant {model.variant} at input size "
            f"{model.input_size}; set --variant and --input-size alike"
        )
    return model


def _fit(
    settings: TrainSettings,
    run: TrainingRun,
    initial: WeightFile | None,
    train_ref: Any,
    validation_ref: Any,
    first_drawing: int,
    workers: int,
    use_gpu: bool,
) -> dict[str, Any]:
    """Run Ray Train to its end; returns the best checkpoint's folder, or what diverged."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    # Ray's type hints are those of its older Train, which these are not.
    trainer_type: Any = TorchTrainer
    run_config_type: Any = RunConfig

    filesystem, path = storage.arrow_filesystem(run.url)
    forgotten = _mend(filesystem, path)
    before = run.read("metrics.csv")
    done = max(0, len((before or b"").splitlines()) - 1)
    with progress(settings.epochs * settings.batches, done * settings.batches, "train", "batch") as tally:
        trainer = trainer_type(
            _worker,
            train_loop_config={
                "settings": settings,
                "url": run.url,
                "initial": initial,
                "train": train_ref,
                "validation": validation_ref,
                "first_drawing": first_drawing,
                "forgotten": forgotten,
                "tally": tally,
            },
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=run_config_type(
                name="checkpoints",
                storage_path=path,
                storage_filesystem=filesystem,
                checkpoint_config=CheckpointConfig(
                    num_to_keep=1, checkpoint_score_attribute=_RANK, checkpoint_score_order="min"
                ),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                worker_runtime_env={"env_vars": _on_loopback()},
            ),
        )
        try:
            result = _beside(trainer.fit)
        except TrainingFailedError as error:
            raise StoppedError(str(error).strip().splitlines()[-1].strip()) from error
    outcome = result.return_value or {"diverged": None}
    # A checkpoint of an older version has no rank.
    best = min(result.best_checkpoints or [], key=lambda one: one[1].get(_RANK, one[1]["mse"]), default=None)
    return outcome | {"best": None if best is None else best[0].path}


def _beside(function: Callable[[], Any]) -> Any:
    """Run a function in another thread and wait for it.

    In the main thread Ray Train would take Ctrl-C for itself, for good, and end the process with code 0.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _on_loopback() -> dict[str, str]:
    """Keep the workers' own connections where Ray's are."""
    import ray

    address = ray.get_runtime_context().gcs_address
    if not address.startswith("127."):
        return {}
    return {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}


def _mend(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """Put aside Ray's list of checkpoints if a kill tore it; returns those that Ray then knows nothing of, in order.

    Ray writes the list in place, after the newest checkpoint itself is whole.
    """
    snapshot = storage.join(path, "checkpoints", _SNAPSHOT)
    # Without a list, a kill came before the first one was written, or before one took the place of a torn one.
    if filesystem.get_file_info(snapshot).type != pafs.FileType.NotFound:
        with filesystem.open_input_stream(snapshot) as file:
            content = file.read()
        with suppress(ValueError):
            json.loads(content)
            return []
        filesystem.move(snapshot, f"{snapshot}.damaged")
    return [folder for folder in _checkpoints(filesystem, path) if _is_whole(filesystem, folder)]


def _is_whole(filesystem: pafs.FileSystem, folder: str) -> bool:
    """Whether a checkpoint can be loaded: an older kill can have torn one that is not the newest any more."""
    from ray.train import Checkpoint

    # What the storage says is wrong is no fault of the file's.
    with Checkpoint(folder, filesystem=filesystem).as_directory() as local:
        try:
            _load(local)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            print(f"{folder}: a checkpoint that a kill tore; passed over", file=sys.stderr)
            return False
    return True


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What every Ray Train worker runs; returns ``diverged``, None if nothing did."""
    import ray
    from ray import train as ray_train
    from ray.train import Checkpoint
    from ray.train.torch import get_device, prepare_model

    settings: TrainSettings = config["settings"]
    context = ray_train.get_context()
    threads = settings.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    torch.set_num_threads(threads)
    without_tf32()
    cv2.setNumThreads(1)
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())
    examples, validation = ray.get(config["train"]), ray.get(config["validation"])
    # The network's buffers are constants, alike everywhere.
    shared = partial(prepare_model, parallel_strategy_kwargs={"broadcast_buffers": False})
    training = Training(settings, examples, config["first_drawing"], validation, place, shared)
    run = TrainingRun(config["url"])
    first = place.rank == 0
    if config["initial"] is not None:
        training.model.load_state_dict(_initial(settings, config["initial"]).state_dict())
    checkpoint = ray_train.get_checkpoint()
    if checkpoint is not None:
        training.load(_state_of(checkpoint))
    for folder in config["forgotten"]:
        # Not only the newest: the best one is to be kept, too. A worker that starts again has reported some before.
        if _epoch_of(folder) > training.epoch:
            forgotten = Checkpoint(folder, filesystem=storage.arrow_filesystem(run.url)[0])
            training.load(_state_of(forgotten))
            _report(training, first)
    count: Callable[[int], None] = config["tally"].add if first else _ignore
    with _Board(run, training.epoch) if first else _NoBoard() as board:
        while training.epoch < settings.epochs:
            try:
                row = training.run_epoch(count)
            except DivergedError as error:
                return {"diverged": error.facts | {"message": str(error)}}
            if first:
                board.add(row)
                run.write("metrics.csv", metrics_csv(training.history))
            if training.is_due():
                _report(training, first)
    return {"diverged": None}


def _report(training: Training, first: bool) -> None:
    """Have Ray Train keep the state as a checkpoint, with the scores of its epoch; all workers call this."""
    from ray import train as ray_train
    from ray.train import Checkpoint

    with tempfile.TemporaryDirectory() as folder:
        if first:
            torch.save(training.state(), Path(folder, _STATE))
        ray_train.report(
            training.history[-1] | {_RANK: _rank(training.settings, training.history[-1])},
            checkpoint=Checkpoint.from_directory(folder) if first else None,
            checkpoint_dir_name=f"epoch-{training.epoch:06d}",
        )


def _rank(settings: TrainSettings, row: dict[str, float]) -> float:
    """What the best epoch has least of: the validation error, or the energy score where that is the objective.

    An epoch with the KL weight that was asked for goes before all that still had a smaller one: their posterior is
    another.
    """
    weight_reached = row["epoch"] > settings.kl_epochs or not VARIANTS[settings.variant].has_posterior
    return row["energy" if settings.objective == "energy" else "mse"] + (0 if weight_reached else _NOT_YET)


def _state_of(checkpoint: Any) -> dict[str, Any]:
    with checkpoint.as_directory() as folder:
        return _load(folder)


def _load(folder: str) -> dict[str, Any]:
    # Not to a GPU: weights are copied there from here, and Adam's count of its steps belongs on the host.
    state: dict[str, Any] = torch.load(Path(folder, _STATE), map_location="cpu", weights_only=True)
    return state


def _ignore(batches: int) -> None:
    pass


class _NoBoard:
    """What the workers other than the first write to TensorBoard: nothing."""

    def __enter__(self) -> _NoBoard:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, row: dict[str, float]) -> None:
        pass


class _Board(_NoBoard):
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


_SCHEDULES = ("learning_rate", "kl_weight")


def finish(settings: TrainSettings, url: str, best: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the weights of the best checkpoint, their scores, pictures and model card; returns what scores.json holds.

    Args:
        settings: of the run.
        url: the run's folder.
        best: path of the checkpoint on the run's file system.
        facts: from `prepare`.
    """
    from ray.train import Checkpoint

    run = TrainingRun(url)
    filesystem, path = storage.arrow_filesystem(url)
    state = _state_of(Checkpoint(best, filesystem=filesystem))
    newest = [best, *_checkpoints(filesystem, path)][-1]
    last = _state_of(Checkpoint(newest, filesystem=filesystem))
    model = build(settings.input_size, settings.variant)
    model.load_state_dict(state["model"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, WEIGHTS)
        digest = save_model(model, file, dtype=torch.float16 if settings.half else torch.float32)
        run.write(WEIGHTS, file.read_bytes())
        # As its users will: from the file, so rounded as it is there.
        model = load_model(str(file), sha256=digest)
    names = frozenset(facts["validation_names"])
    validation, _ = annotated.read_examples(settings, FRAME, only=lambda some: [name in names for name in some])
    if not len(validation):
        validation = annotated.held_out(len(names), settings.seed, FRAME)
    evaluated = evaluation.score(model, validation, samples=CARD_SAMPLES, seed=0, batch_size=1)
    content = {
        "weights": WEIGHTS,
        "sha256": digest,
        "variant": model.variant,
        "input_size": model.input_size,
        "epoch": state["epoch"],
        "epochs": last["epoch"],
        "samples": CARD_SAMPLES,
        "datasets": facts["datasets"],
        "left_out": facts["left_out"],
        "initial_sha256": facts["initial_sha256"],
        "every": settings.every,
        "kl_weight": state["history"][-1]["kl_weight"],
        "scores": evaluated.summary,
        "settings": settings.numbers() | {"half": settings.half},
        "command": command(settings),
        "versions": versions(),
        "organs": ORGANS,
    }
    run.write("curves.png", figures.curves(last["history"]))
    run.write("uncertainty.png", figures.uncertainty(evaluated.summary))
    run.write("images.csv", evaluation.images_csv(evaluated.images))
    run.write("README.md", card(content))
    # Last: it says that the run is finished.
    run.write(SCORES, json.dumps(content, indent=2) + "\n")
    return content


def _checkpoints(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """Folders of the checkpoints of the run at a path, oldest first."""
    found = filesystem.get_file_info(pafs.FileSelector(storage.join(path, "checkpoints"), allow_not_found=True))
    return sorted((info.path for info in found if _EPOCH.search(info.path)), key=_epoch_of)


def _epoch_of(folder: str) -> int:
    return int(_EPOCH.findall(folder)[0])
