"""What every experiment works on: images, weights, and predictions, each kept as soon as it is made."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from chexmask_u import storage, weight_files
from chexmask_u.anatomy import FRAME, N_LANDMARKS
from chexmask_u.calibration.calibration import Calibration, beside_weights, load_calibration
from chexmask_u.calibration.worth import contour_errors, landmark_errors
from chexmask_u.errors import InputError
from chexmask_u.experiments import records
from chexmask_u.experiments.statistics import enough
from chexmask_u.folder import Folder
from chexmask_u.images.corruptions import Image
from chexmask_u.model.device import choose
from chexmask_u.model.network import BaseNetwork, Network
from chexmask_u.model.predict import Prediction, predict, predict_draws
from chexmask_u.record import ReadError
from chexmask_u.settings import NO_CALIBRATION, EvaluateSettings, ExperimentSettings
from chexmask_u.steps.read import read_image
from chexmask_u.training import evaluate
from chexmask_u.training import examples as annotated
from chexmask_u.training.examples import Examples
from chexmask_u.use import inputs
from chexmask_u.weight_files import WeightFile

Compute = Callable[[Sequence[int], NDArray[np.uint8], list[str]], dict[str, NDArray[Any]]]

# Folder of what was predicted, below the output.
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class AnyWeights:
    """One of the weights that are compared, of landmarks or of masks.

    Attributes:
        label: what tables and figures call it: the name of its file.
        source: as it was given.
        file: where it lies.
        network: in it.
    """

    label: str
    source: str
    file: WeightFile
    network: BaseNetwork

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


@dataclass(frozen=True)
class Weights(AnyWeights):
    """Weights of a network that gives landmarks."""

    network: Network


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
        """The weights, in the order in which they were given, all of which give landmarks.

        Raises:
            CheckpointError: as `load_model`.
            InputError: if two would be called the same.
        """
        return [
            Weights(one.label, one.source, one.file, weight_files.with_landmarks(one.network, one.source))
            for one in self.networks
        ]

    def of_landmarks(self) -> Study:
        """The same with the weights alone that give landmarks.

        Raises:
            InputError: if there are none.
        """
        given = tuple(one.source for one in self.networks if isinstance(one.network, Network))
        if len(given) == len(self.networks):
            return self
        if not given:
            raise InputError("none of the weights give landmarks; add some that do with --weights")
        other = Study(replace(self.settings, weights=given), self._predictions)
        # What is read and loaded already.
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name in _SHARED})
        return other

    def refuse_masks(self) -> None:
        """Raise CheckpointError if one of the weights gives masks and no landmarks."""
        for one in self.networks:
            weight_files.with_landmarks(one.network, one.source)

    @cached_property
    def networks(self) -> list[AnyWeights]:
        """The weights, in the order in which they were given, of either kind.

        Raises:
            CheckpointError: as `load_network`.
            InputError: if two would be called the same.
        """
        found: list[AnyWeights] = []
        for file in self._files:
            network = weight_files.load_network(file, device=choose(self.settings.device))
            name = PurePosixPath(file.source.rstrip("/")).stem
            if any(name == other.label for other in found):
                raise InputError(f"--weights {file.source}: others called {name} are given already; rename the file")
            found.append(AnyWeights(name, file.source, file, network))
        return found

    @cached_property
    def _files(self) -> list[WeightFile]:
        """The weight files, each looked up once, which the Hub may be asked for."""
        return [weight_files.find(source) for source in self.settings.all_weights()]

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
        if settings.split is None:
            for file in self._files:
                annotated.refuse_trained(found.names, file)
        if settings.limit is not None and len(found) > settings.limit:
            order = sorted(range(len(found)), key=lambda row: _digest(found.names[row]))
            found = found.take(sorted(order[: settings.limit]))
        return found

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
            found = inputs.find([given], storage.normalise(self.settings.output))
            bad += [f"{path}: {why}" for path, why in found.lost.items()]
            for one in found.images:
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

    @property
    def has_images(self) -> bool:
        """Whether there are images to predict."""
        return bool(self.settings.data or self.settings.drawings or self.settings.images)

    @property
    def of_records(self) -> bool:
        """Whether records take the place of images, since none were given."""
        return self.settings.has_records and not self.has_images

    @cached_property
    def records_facts(self) -> dict[str, Any] | None:
        """What is said of the records that were given, if any were."""
        return records.facts(self.settings) if self.settings.has_records else None

    @cached_property
    def second(self) -> Examples | None:
        """The images with another person's landmarks, if they were given.

        Raises:
            InputError: if that person annotated other images.
        """
        settings = self.settings
        if not settings.annotator or self.of_records:
            return None
        given = {name: value for name, value in settings.asdict().items() if name in _READING}
        named = {value.partition("=")[0] for value in settings.annotator}
        kept = [value for value in settings.landmarks if value.partition("=")[0] not in named]
        given["landmarks"] = [*kept, *settings.annotator]
        found, _ = evaluate.read(EvaluateSettings.from_mapping(given))
        rows = {name: row for row, name in enumerate(found.names)}
        missing = [name for name in self.examples.names if name not in rows]
        if missing:
            raise InputError(
                f"--annotator: {len(missing)} of {len(self.examples)} images, such as {missing[0]}, have no landmarks"
                " of this person; give people who annotated the same images"
            )
        return found.take([rows[name] for name in self.examples.names])

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
            return beside_weights(weights.source, weights.sha256, for_radii=False)
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
        samples, seed = self.settings.samples, self.settings.seed

        def compute(rows: Sequence[int], images: NDArray[np.uint8], names: list[str]) -> dict[str, NDArray[Any]]:
            changed = images if change is None else np.stack([change(row) for row in rows])
            return asdict(predict(weights.network, changed, names, samples, seed))

        told = f"{weights.label}{', ' if condition else ''}{condition}"
        examples = self.examples if examples is None else examples
        return Prediction(**self.by_block(weights, examples, f"{condition}\n{samples}", told, compute))

    def predict_counts(self, weights: Weights, counts: Sequence[int]) -> list[Prediction]:
        """What the first draws of the largest of the counts are predictions of, for each count, of all images."""
        seed = self.settings.seed

        def compute(rows: Sequence[int], images: NDArray[np.uint8], names: list[str]) -> dict[str, NDArray[Any]]:
            whole, draws = predict_draws(weights.network, images, names, max(counts), seed)
            first = [draws[:, :count] for count in counts]
            return asdict(whole) | {
                "means": np.stack([some.mean(axis=1) for some in first], axis=1),
                "stds": np.stack([some.std(axis=1) for some in first], axis=1),
            }

        condition = f"the first of draws\n{', '.join(map(str, counts))}"
        kept = self.by_block(weights, self.examples, condition, f"{weights.label}, {max(counts)} draws", compute)
        means, stds = kept.pop("means"), kept.pop("stds")
        whole = Prediction(**kept)
        return [
            replace(whole, landmarks_mean=means[:, index], landmarks_std=stds[:, index]) for index in range(len(counts))
        ]

    def by_block(
        self, weights: AnyWeights, examples: Examples, condition: str, told: str, compute: Compute
    ) -> dict[str, NDArray[Any]]:
        """Arrays with a row per image, computed a batch at a time and kept; batches that are there are read.

        Args:
            weights: of which they are.
            examples: the images.
            condition: words that fix what is computed.
            told: what the progress bar is called.
            compute: rows, images uint8 [B, 1024, 1024] and names of a batch -> arrays by name, each [B, ...].
        """
        blocks = []
        starts = range(0, len(examples), self.settings.batch_size)
        for start in tqdm(starts, desc=told, unit="batch", disable=None):
            rows = range(start, min(start + self.settings.batch_size, len(examples)))
            name = f"{weights.sha256[:12]}-{self._key(examples, rows, condition)}.npz"
            block = self.kept(name)
            if block is None:
                names = [examples.names[row] for row in rows]
                block = compute(rows, examples.images[rows.start : rows.stop], names)
                self.keep(name, block)
            blocks.append(block)
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _key(self, examples: Examples, rows: Sequence[int], condition: str) -> str:
        words = [condition, str(self.settings.seed)]
        words += [f"{examples.names[row]} {examples.digests[row]}" for row in rows]
        return _digest("\n".join(words))[:32]

    def kept(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Arrays that were kept under a name; None where there are none, or the file was cut off."""
        content = self._predictions.read(name)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return dict(archive.items())
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            return None

    def keep(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays under a name that ends in .npz."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        self._predictions.write(name, buffer.getvalue())

    def facts(self) -> dict[str, Any]:
        """What results.json says of the images and weights."""
        return {
            "weights": [one.facts() for one in self.networks] if self.has_images else [],
            "images": _image_facts(self.examples) if self.has_images else None,
            "records": self.records_facts,
            "samples": self.settings.samples,
            "seed": self.settings.seed,
        }


# What a study with fewer weights has alike.
_SHARED = ("examples", "second", "records_facts")

# Settings by which annotated images are read.
_READING = ("data", "landmarks", "landmarks_in", "drawings", "on_bad", "split", "part", "seed", "max_side")


def _image_facts(examples: Examples) -> dict[str, Any]:
    datasets = [name.partition("/")[0] for name in examples.names]
    return {
        "n": len(examples),
        "by_dataset": {name: datasets.count(name) for name in dict.fromkeys(datasets)},
        "sha256": examples.digest(),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def places(examples: Examples, prediction: Prediction) -> NDArray[np.float32]:
    """Where the landmarks lie, [B, 120, 2], pixels of the 1024 frame: as annotated, and else as predicted."""
    given = examples.landmarks * np.float32(FRAME)
    return np.where(np.isfinite(given), given, prediction.landmarks_mean)


def distances(examples: Examples, landmarks: NDArray[np.floating]) -> tuple[NDArray[np.float64], str]:
    """How far predicted landmarks are off, [B, 120], pixels of the 1024 frame, and to what: "landmark" or "contour".

    Nodes spaced along a mask's contour are no landmarks that somebody saw: images with masks count where all have them,
    by the distance to the contour. NaN where there is no annotation.

    Raises:
        InputError: if no image is annotated.
    """
    truth = examples.landmarks * np.float32(FRAME)
    if not np.isfinite(truth).any():
        raise InputError("none of the images is annotated; give annotated ones with --data")
    seen = np.array([name not in examples.from_masks for name in examples.names], bool)
    seen &= np.isfinite(truth).any(axis=(1, 2))
    if not seen.any():
        return contour_errors(landmarks, truth), "contour"
    errors = landmark_errors(landmarks, truth)
    errors[~seen] = np.nan
    return errors, "landmark"
