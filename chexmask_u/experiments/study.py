"""What every experiment works on: images, weights, and predictions, each kept as soon as it is made."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from chexmask_u import storage, weight_files
from chexmask_u.anatomy import FRAME, N_LANDMARKS
from chexmask_u.calibration.calibration import Calibration, load_calibration
from chexmask_u.errors import InputError
from chexmask_u.experiments.statistics import enough
from chexmask_u.folder import Folder
from chexmask_u.images.corruptions import Image
from chexmask_u.model.device import choose
from chexmask_u.model.network import Network
from chexmask_u.model.predict import Prediction, predict
from chexmask_u.record import ReadError
from chexmask_u.settings import NO_CALIBRATION, EvaluateSettings, ExperimentSettings
from chexmask_u.steps.read import read_image
from chexmask_u.training import evaluate
from chexmask_u.training import examples as annotated
from chexmask_u.training.examples import Examples
from chexmask_u.use import inputs
from chexmask_u.weight_files import WeightFile

# Folder of what was predicted, below the output.
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Weights:
    """One of the weights that are compared.

    Attributes:
        label: what tables and figures call it: the name of its file.
        source: as it was given.
        file: where it lies.
        sha256: its digest.
        variant, input_size: of the network in it.
        has_posterior: whether its latents have one.
    """

    label: str
    source: str
    file: WeightFile
    network: Network

    @property
    def sha256(self) -> str:
        assert self.network.sha256 is not None
        return self.network.sha256

    def facts(self) -> dict[str, Any]:
        return {
            "label": self.label,
            **self.file.facts(),
            "sha256": self.sha256,
            "variant": self.network.variant,
            "input_size": self.network.input_size,
        }


class Study:
    """The images and weights of an experiment, read when they are first needed.

    Args:
        settings: what the user asked for.
        predictions: folder where predictions are kept, which several experiments may share.
    """

    def __init__(self, settings: ExperimentSettings, predictions: Folder) -> None:
        self.settings = settings
        self._predictions = predictions

    @cached_property
    def weights(self) -> list[Weights]:
        """The weights, in the order in which they were given.

        Raises:
            CheckpointError: as `load_model`.
            InputError: if two would be called the same.
        """
        found: list[Weights] = []
        for source in self.settings.all_weights():
            file = weight_files.find(source)
            network = weight_files.load_model(file, device=choose(self.settings.device))
            name = PurePosixPath(source.rstrip("/")).stem
            if any(name == other.label for other in found):
                raise InputError(f"--weights {source}: others called {name} are given already; rename the file")
            found.append(Weights(name, source, file, network))
        return found

    @cached_property
    def examples(self) -> Examples:
        """The images, prepared to 1024, with their annotations; landmarks are NaN where there are none.

        Raises:
            InputError: if there are none, some cannot be used and --on-bad is refuse, or weights were trained on some.
        """
        settings = self.settings
        parts = []
        if settings.data or settings.drawings:
            given = {name: value for name, value in settings.asdict().items() if name in _READING}
            parts.append(evaluate.read(EvaluateSettings.from_mapping(given))[0])
        if settings.images:
            parts.append(self.read_folder(settings.images, "--images"))
        if not parts:
            raise InputError("--data is needed, a folder of annotated images, or --images, or --drawings N")
        found = annotated.join(parts)
        self._refuse_trained(found)
        if settings.limit is not None and len(found) > settings.limit:
            order = sorted(range(len(found)), key=lambda row: _digest(found.names[row]))
            found = found.take(sorted(order[: settings.limit]))
        return found

    def _refuse_trained(self, found: Examples) -> None:
        """Refuse images that the weights were trained on, unless the user said which part is meant."""
        if self.settings.split is not None:
            return
        for source in self.settings.all_weights():
            file = weight_files.find(source)
            beside = file.beside("split.csv") if file.repo is None else None
            if beside is None:
                continue
            given = annotated.read_split(str(beside))
            trained = [name for name in found.names if given.get(name.partition("/")[2]) == "train"]
            if trained:
                raise InputError(
                    f"{len(trained)} of {len(found)} images, such as {trained[0]}, are among those that the weights"
                    f" {source} were trained on; give --split {beside} to take only the others"
                )

    def read_folder(self, named: Sequence[str], flag: str) -> Examples:
        """Images without annotations, called "FOLDER/image".

        Raises:
            InputError: if there are none, or some cannot be read and --on-bad is refuse.
        """
        images: list[Image] = []
        names: list[str] = []
        bad: list[str] = []
        for given in named:
            folder = PurePosixPath(storage.normalise(given)).name
            for one in inputs.find([given], storage.normalise(self.settings.output)).images:
                try:
                    images.append(read_image(one.uri, max_side=self.settings.max_side).image)
                except ReadError as error:
                    bad.append(str(error))
                else:
                    names.append(f"{folder}/{one.stem}")
        if bad and self.settings.on_bad == "refuse":
            raise InputError(f"{flag}: {len(bad)} images cannot be read, such as {bad[0]}; see --on-bad")
        if not images:
            raise InputError(f"{flag} {named[0]}: none of its images can be read, such as {bad[0]}")
        nowhere = np.full((len(images), N_LANDMARKS, 2), np.nan, np.float32)
        return Examples(names, np.stack(images), nowhere)

    def need(self, least: int, what: str) -> None:
        """Raise InputError unless there are so many images."""
        enough(len(self.examples), what, least)

    def calibration(self, weights: Weights) -> Calibration | None:
        """The calibration of some weights, or None where none is theirs.

        Raises:
            InputError: if the one that is named belongs to none of the weights.
        """
        given = self.settings.calibration
        if given == NO_CALIBRATION:
            return None
        if given is None:
            try:
                return load_calibration(weights.source)
            except InputError:
                return None
        found = load_calibration(given)
        if all(found.weights_sha256 != one.sha256 for one in self.weights):
            found.check_weights(self.weights[0].sha256, f"--calibration {given}")
        return found if found.weights_sha256 == weights.sha256 else None

    def predict(
        self,
        weights: Weights,
        condition: str = "",
        change: Callable[[int], Image] | None = None,
        examples: Examples | None = None,
    ) -> Prediction:
        """Predictions of all images, as they are or changed; blocks that were predicted before are taken as they are.

        Args:
            weights: which ones.
            condition: what is changed, in words that fix it: predictions are kept by them.
            change: row of the image -> the changed image; None for the image as it is.
            examples: the images, if other than the study's own.
        """
        examples = self.examples if examples is None else examples
        blocks = []
        starts = range(0, len(examples), self.settings.batch_size)
        told = f"{weights.label}{', ' if condition else ''}{condition}"
        for start in tqdm(starts, desc=told, unit="batch", disable=None):
            rows = range(start, min(start + self.settings.batch_size, len(examples)))
            name = f"{weights.sha256[:12]}-{self._key(examples, rows, condition)}.npz"
            kept = self._kept(name)
            if kept is None:
                images = np.stack([examples.images[row] if change is None else change(row) for row in rows])
                names = [examples.names[row] for row in rows]
                kept = predict(weights.network, images, names, self.settings.samples, self.settings.seed)
                self._predictions.write(name, _as_npz(kept))
            blocks.append(kept)
        return Prediction.join(blocks)

    def _key(self, examples: Examples, rows: Sequence[int], condition: str) -> str:
        words = [condition, str(self.settings.samples), str(self.settings.seed)]
        words += [f"{examples.names[row]} {_digest_of(examples, row)}" for row in rows]
        return _digest("\n".join(words))[:32]

    def _kept(self, name: str) -> Prediction | None:
        content = self._predictions.read(name)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return Prediction(**{field.name: archive[field.name] for field in fields(Prediction)})
        except Exception:
            # A file that was cut off is made anew.
            return None

    def facts(self) -> dict[str, Any]:
        """What results.json says of the images and weights."""
        return {
            "weights": [one.facts() for one in self.weights],
            "images": _image_facts(self.examples) if self.settings.is_given_data else None,
            "samples": self.settings.samples,
            "seed": self.settings.seed,
        }


# Settings by which annotated images are read.
_READING = ("data", "landmarks", "landmarks_in", "drawings", "on_bad", "split", "part", "seed", "max_side")


def _image_facts(examples: Examples) -> dict[str, Any]:
    datasets = [name.partition("/")[0] for name in examples.names]
    return {
        "n": len(examples),
        "by_dataset": {name: datasets.count(name) for name in dict.fromkeys(datasets)},
        "sha256": examples.digest(),
    }


def _as_npz(prediction: Prediction) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **asdict(prediction))
    return buffer.getvalue()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(examples: Examples, row: int) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(examples.images[row]).data)
    digest.update(np.ascontiguousarray(examples.landmarks[row]).data)
    return digest.hexdigest()


def places(examples: Examples, prediction: Prediction) -> NDArray[np.float32]:
    """Where the landmarks lie, [B, 120, 2], pixels of the 1024 frame: as annotated, and else as predicted."""
    given = examples.landmarks * np.float32(FRAME)
    return np.where(np.isfinite(given), given, prediction.landmarks_mean)
