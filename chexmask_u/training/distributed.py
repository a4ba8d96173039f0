"""Training through Ray Train: prepare the data once, train on one or more workers, finish with the best checkpoint.

Beside `cluster.py` and `pipeline.py` the only importer of Ray.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import cv2
import torch

from chexmask_u import storage
from chexmask_u.errors import InputError, StoppedError
from chexmask_u.model.pixel import PixelNetwork
from chexmask_u.model.precision import without_tf32
from chexmask_u.model.variants import VARIANTS
from chexmask_u.result import INCOMPLETE, Result
from chexmask_u.runs import cluster, lock
from chexmask_u.runs.job import check_places
from chexmask_u.settings import TrainSettings
from chexmask_u.training import checkpoints
from chexmask_u.training import evaluate as evaluation
from chexmask_u.training.board import Board, NoBoard
from chexmask_u.training.datasets import datasets
from chexmask_u.training.examples import read_split
from chexmask_u.training.finish import finish
from chexmask_u.training.loop import DivergedError, Place, Training
from chexmask_u.training.prepare import find_initial, load_initial, prepare
from chexmask_u.training.run import SCORES, TrainingRun, metrics_csv
from chexmask_u.weight_files import WeightFile

# How often a worker may die, of too little memory for instance, before the run ends; preempted nodes do not count.
MAX_FAILURES = 3

# What Ray Train orders checkpoints by.
_RANK = "rank"


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train, or go on with a run that was interrupted, and finish it.

    Returns:
        What scores.json holds; or ``diverged``, with the epoch, batch and images that gave a loss that is not finite.

    Raises:
        InputError: on bad input, before training, or if another process trains there.
        StoppedError: if workers died too often, or the run was taken over; the same command goes on.
    """
    if util.find_spec("tensorboard") is None:
        raise InputError('training needs TensorBoard: pip install -e ".[train]" in the project\'s folder')
    run = TrainingRun(storage.normalise(settings.output))
    run.check_place()
    check_early(settings)
    print(
        f"{settings.variant} at {settings.input_size} x {settings.input_size} pixels: --epochs {settings.epochs} of"
        f" --batches {settings.batches} of --batch-size {settings.batch_size}; then the held-out images' scores",
        file=sys.stderr,
    )
    initial = None if settings.initial_weights is None else find_initial(settings, run)
    with lock.held(run.url), cluster.connected(settings.address) as started_here:
        cluster.check_device(settings.device, "float32", started_here)
        use_gpu = cluster.on_gpus(settings.device)
        workers = settings.workers or (sharing(settings.batch_size, cluster.gpus()) if use_gpu else 1)
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
        if settings.variant == "phiseg" and settings.kl_last != 1:
            print(
                f"the KL weight of phiseg ends at --kl-last {settings.kl_last:g} of the evidence bound's, which is the "
                "paper's; set --kl-last 1 for that",
                file=sys.stderr,
            )
        print("the workers start, and make their first batches", file=sys.stderr)
        outcome = _fit(settings, run, initial, train_ref, validation_ref, facts["first_drawing"], workers, use_gpu)
        if outcome["diverged"] is not None:
            run.write_json("diverged.json", outcome["diverged"])
            return outcome
        masks = issubclass(VARIANTS[settings.variant], PixelNetwork)
        total = evaluation.predictions(facts["validation"], masks=masks, shifts=True)
        with cluster.progress(total, 0, "score") as tally:
            result: dict[str, Any] = cluster.on_worker(finish, settings, run.url, outcome["best"], facts, tally.add)
        return result


def check_early(settings: TrainSettings) -> None:
    """Check what can be known before a Ray is started on this machine; on a cluster, its workers see the data.

    Raises:
        InputError: if there is no GPU where one is asked for, or no such data.
    """
    check_places({"--output": settings.output})
    cluster.check_here(settings.device, "float32", settings.address)
    if cluster.starts_here(settings.address):
        datasets(settings)
        if settings.split is not None:
            read_split(settings.split)


def sharing(batch_size: int, gpus: int) -> int:
    """As many of the GPUs as can share a batch evenly; at least one, which may not be up yet."""
    return max(n for n in range(1, max(1, gpus) + 1) if batch_size % n == 0)


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
    forgotten = checkpoints.mend(filesystem, path)
    before = run.read("metrics.csv")
    done = max(0, len((before or b"").splitlines()) - 1)
    with cluster.progress(settings.epochs * settings.batches, done * settings.batches, "train", "batch") as tally:
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
                name=checkpoints.FOLDER,
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
    best = min(result.best_checkpoints or [], key=lambda one: one[1].get(_RANK, one[1].get("mse")), default=None)
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


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What every Ray Train worker runs; returns ``diverged``, None if nothing did."""
    import ray
    from ray import train as ray_train
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
        training.model.load_state_dict(load_initial(settings, config["initial"]).state_dict())
    checkpoint = ray_train.get_checkpoint()
    if checkpoint is not None:
        training.load(checkpoints.load(checkpoint.filesystem, checkpoint.path))
    for folder in config["forgotten"]:
        # Not only the newest: the best one is to be kept, too. A worker that starts again has reported some before.
        if checkpoints.epoch_of(folder) > training.epoch:
            training.load(checkpoints.load(storage.arrow_filesystem(run.url)[0], folder))
            _report(training, first)
    count: Callable[[int], None] = config["tally"].add if first else _ignore
    with Board(run, training.epoch) if first else NoBoard() as board:
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
            torch.save(training.state(), Path(folder, checkpoints.STATE))
        row = training.history[-1]
        ray_train.report(
            row | {_RANK: checkpoints.rank(training.settings, row)},
            checkpoint=Checkpoint.from_directory(folder) if first else None,
            checkpoint_dir_name=checkpoints.name_of(training.epoch),
        )


def _ignore(batches: int) -> None:
    pass


def verb(settings: TrainSettings) -> Result:
    """`chexmask-u train`."""
    facts = train(settings)
    if facts.get("diverged"):
        return Result(facts, f"Training stopped: {facts['diverged']['message']}", INCOMPLETE)
    folder = storage.normalise(settings.output)
    before = " (made before)" if facts.get("already_done") else ""
    lines = [
        f"Weights: {storage.join(folder, facts['weights'])}, epoch {facts['epoch']} of {facts['epochs']}{before}",
        evaluation.table(facts["scores"]),
        f"Card: {storage.join(folder, 'README.md')}",
    ]
    return Result(facts, "\n".join(lines))
