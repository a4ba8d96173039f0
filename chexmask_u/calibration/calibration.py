"""A calibration: radii with a checked coverage and a score of how usual an image is, for one file of weights."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexmask_u import storage, weight_files
from chexmask_u.anatomy import N_LANDMARKS
from chexmask_u.calibration.conformal import Scores, check_coverage, images_needed
from chexmask_u.calibration.expected import Expected
from chexmask_u.calibration.known import Known
from chexmask_u.calibration.seen import Seen, is_prediction
from chexmask_u.errors import CheckpointError, InputError
from chexmask_u.folder import Folder
from chexmask_u.record import RADIUS_COVERAGE
from chexmask_u.settings import NO_CALIBRATION

NAME = "calibration.json"

Of = Literal["landmark", "contour"]

# Of the file; another first number would be read otherwise.
_FORMAT = 2

# Draws from which on radii cover nearly as often as those of 50, which hold 95% of the landmarks of 20 held-out images:
# of 20 draws 93%, of 10 89%, and of 5 80%.
LEAST_DRAWS = 20

# Digits that are kept of a number.
_DIGITS = 6


@dataclass(frozen=True)
class Radius:
    """How far a landmark may be off.

    Attributes:
        expected: the error that its spread lets expect.
        scores: how many times that it is, on images of which `expected` knows nothing.
        checked: whether such errors were annotated on those images; if not, another calibration's are stretched by as
            much as its contour's had to be, and no coverage is promised.
    """

    expected: Expected
    scores: Scores
    checked: bool

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        expected = {name: tuple(values) for name, values in content["expected"].items()}
        scores = Scores(int(content["scores"]["images"]), tuple(content["scores"]["quantiles"]))
        if len(expected["rates"]) != N_LANDMARKS:
            raise ValueError(f"{len(expected['rates'])} rates are not {N_LANDMARKS}")
        return cls(Expected(**expected), scores, bool(content["checked"]))


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the spread of the draws of one file of weights is worth, measured on annotated images.

    Attributes:
        weights_sha256: digest of the weights that it belongs to.
        landmark: radius around a landmark that its annotation lies in; None where no image had annotated landmarks.
        contour: distance within which the annotated contour passes the landmark.
        known: radiographs that an image is compared with; None where there were too few.
        about: how it was made and what was found, as calibration.json holds it.
        with_images: radii by `Of` that look at the images, too; none where it was made without.
    """

    weights_sha256: str
    landmark: Radius | None
    contour: Radius | None
    known: Known | None
    about: Mapping[str, Any]
    with_images: Mapping[str, Radius] = field(default_factory=dict)

    def radius(
        self, x: Any, coverage: float = 0.9, of: Of = "landmark", images: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Radius of each landmark that holds its annotation for the share `coverage` of the landmarks.

        The share is promised for a landmark drawn at random from a further image that is drawn as the calibration's
        images were, as `about` names them; for other images, or for every single landmark, nothing is promised.

        With `images` the radius is of another fit, which looks for edges of the image at the landmark, too, and ranks
        landmarks better; without, of one that knows the spread alone. Both hold the same share.

        Args:
            x: a `Prediction` of B images, or one released record; of `least_draws` draws an image at least, which
                neither tells: of five, radii asked for 90% hold 80%.
            coverage: between 0 and 1.
            of: "landmark", the distance to the annotated landmark; "contour", that to the annotated contour.
            images: uint8 [B, 1024, 1024], as they were predicted, or [1024, 1024] of a record.

        Returns:
            float32 [B, 120], or [120] of a record; pixels of the 1024 frame.

        Raises:
            InputError: if the calibration has no such radius, or too few images for the coverage, or that is none.
            ValueError: if the record lacks a column, a number is not finite, or the images are of another shape.
        """
        return self._as_given(x, self.radii(Seen.of(x, images), coverage, of))

    def expected_error(self, x: Any, of: Of = "landmark", images: ArrayLike | None = None) -> NDArray[np.float32]:
        """Expected distance of each landmark to its annotation, or to the contour; as `radius` gives its own."""
        return self._as_given(x, self.expected(Seen.of(x, images), of))

    def ood_score(self, x: Any) -> NDArray[np.float32]:
        """Percentile of each image among the known radiographs, 0 to 100: beyond 99 it is unlike nearly all of them.

        It is judged by the posterior and the spread of the draws alone.

        Returns:
            float32 [B], or [] of a record.

        Raises:
            InputError: if the calibration knows too few radiographs.
        """
        if self.known is None:
            raise InputError(f"the calibration has no ood_score; {NAME} says why")
        return self._as_given(x, self.known.score(Seen.of(x).image_features()))

    def check_weights(self, sha256: str, where: str) -> None:
        """Raise InputError if it belongs to other weights than those of that digest."""
        if self.weights_sha256 != sha256:
            raise InputError(
                f"{where}: belongs to the weights with sha256 {self.weights_sha256[:12]}, not {sha256[:12]};"
                " a spread means as much as its own weights' does, so make one with `chexmask-u calibrate`"
            )

    @property
    def least_draws(self) -> int:
        """How many draws of an image radii and scores take: of fewer, spreads are smaller than those it is made of."""
        return min(LEAST_DRAWS, int(self.about.get("samples", 0)))

    def check_draws(self, samples: int, where: str) -> None:
        """Raise InputError if so many draws of an image are too few for its radii."""
        if samples < self.least_draws:
            raise InputError(
                f"{where}: is of {self.about['samples']} draws of an image, and of {samples} its radii are too short;"
                f" take --samples {self.least_draws} or more, or --calibration {NO_CALIBRATION}"
            )

    def summary(self, coverage: float) -> dict[str, Any]:
        """What a release says of it: how it was made, and what was found on images held out from the fit.

        Raises:
            InputError: if it has too few images for the coverage.
        """
        about = self.about
        found: dict[str, Any] = {}
        for of, radius in (("landmark", self.landmark), ("contour", self.contour)):
            if radius is not None:
                radius.scores.at(coverage)
                kinds = about["trials"].get(of, {}).get("kinds", {})
                tried = {kind: told for kind, trial in kinds.items() if (told := _tried(trial, coverage))}
                found[of] = {
                    "images_that_count": radius.scores.images,
                    "checked": radius.checked,
                    "held_out": tried.get("clean"),
                    "kinds": tried,
                }
        return {
            "sha256": self.digest,
            "coverage": coverage,
            "made_with": about["made_with"],
            "images": about["images"],
            "started_from": about["started_from"],
            # A release is made of records, after their images are gone.
            "edge_features": False,
            "radii": found,
            "known_radiographs": about["known_radiographs"],
            "assumes": about["assumes"],
        }

    @cached_property
    def text(self) -> str:
        """What calibration.json holds."""
        content = {
            "format": _FORMAT,
            "weights_sha256": self.weights_sha256,
            "about": _rounded(self.about),
            **{
                name: None if part is None else _rounded(asdict(part))
                for name, part in (("landmark", self.landmark), ("contour", self.contour), ("known", self.known))
            },
            "with_images": {of: _rounded(asdict(radius)) for of, radius in self.with_images.items()},
        }
        return json.dumps(content) + "\n"

    @property
    def digest(self) -> str:
        """sha256 of calibration.json."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def from_text(cls, text: str, where: str) -> Self:
        """Of what calibration.json holds.

        Raises:
            InputError: naming the file, if it holds none.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise InputError(
                    f"{where}: is of format {content['format']}, and this version reads {_FORMAT};"
                    " make it again with `chexmask-u calibrate`"
                )
            known = None if content["known"] is None else Known.from_json(content["known"])
            landmark, contour = (
                None if content[of] is None else Radius.from_json(content[of]) for of in ("landmark", "contour")
            )
            with_images = {of: Radius.from_json(radius) for of, radius in content.get("with_images", {}).items()}
            return cls(content["weights_sha256"], landmark, contour, known, content["about"], with_images)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{where}: is no calibration, or damaged ({storage.explain(error)}); `chexmask-u calibrate` makes one"
            ) from error

    def __repr__(self) -> str:
        return f"Calibration(weights_sha256={self.weights_sha256[:12]!r}, digest={self.digest[:12]!r})"

    def expected(self, seen: Seen, of: str) -> NDArray[np.float64]:
        """As `expected_error`, of what was seen of B images already: float64 [B, 120]."""
        return self._radius(of, seen).expected(seen.error_features())

    def radii(self, seen: Seen, coverage: float, of: str) -> NDArray[np.float64]:
        """As `radius`, of what was seen of B images already: float64 [B, 120]."""
        check_coverage(coverage)
        given, features = self._radius(of, seen), seen.error_features()
        radii = given.scores.at(coverage) * given.expected(features)
        if of == "landmark" and self.contour is not None:
            # No landmark is nearer to its annotation than to the contour.
            contour = self._radius("contour", seen)
            radii = np.maximum(radii, contour.scores.at(coverage) * contour.expected(features))
        return radii

    def _radius(self, of: str, seen: Seen) -> Radius:
        if of not in ("landmark", "contour"):
            raise InputError(f"of must be 'landmark' or 'contour', not {of!r}")
        found = self.landmark if of == "landmark" else self.contour
        if found is None:
            raise InputError(f"the calibration has no {of} radius: no image that it is of has such an annotation")
        if seen.further is None:
            return found
        if of not in self.with_images:
            raise InputError(
                f"the calibration has no {of} radius that looks at images: leave them out, or make it again with"
                " `chexmask-u calibrate`"
            )
        return self.with_images[of]

    @staticmethod
    def _as_given(x: Any, values: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.asarray((values if is_prediction(x) else values[0]), np.float32)


def load_calibration(source: str = weight_files.DEMO) -> Calibration:
    """A calibration: what `chexmask-u calibrate` made.

    Args:
        source: path or URL of a calibration.json; or weights as `load_model` takes them, "demo" or others, beside
            which one lies.

    Raises:
        InputError: if there is none, it is damaged, or it lies beside weights that it does not belong to.
    """
    if PurePosixPath(source).suffix == ".json":
        folder, _, name = storage.normalise(source).rpartition("/")
        data = Folder(folder).read(name)
        if data is None:
            raise InputError(f"{source}: no such file; `chexmask-u calibrate` makes one{storage.nearest(source)}")
        return Calibration.from_text(data.decode("utf-8", "replace"), source)
    suffix = PurePosixPath(source).suffix
    other_kind = suffix and suffix not in weight_files.WEIGHT_SUFFIXES and storage.is_local(source)
    if other_kind and not Path(storage.normalise(source)).is_dir():
        raise InputError(
            f"{source}: a calibration ends in .json, not {suffix}; `chexmask-u calibrate` makes one, or name the"
            f" weights beside which one lies{storage.nearest(source)}"
        )
    try:
        weights = weight_files.find(source)
    except CheckpointError as error:
        raise InputError(f"{error}; or name a calibration, which ends in .json") from error
    path = weights.beside(NAME)
    if path is None:
        raise InputError(f"{source}: no {NAME} lies beside these weights; `chexmask-u calibrate --weights` makes one")
    found = _read(path, f"{source}: {NAME}")
    found.check_weights(weights.fetch()[1], f"{source}: {NAME}")
    return found


def _read(path: Path, where: str) -> Calibration:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror})") from error
    return Calibration.from_text(data.decode("utf-8", "replace"), where)


def calibration_of(source: str, sha256: str, flag: str) -> Calibration:
    """What `load_calibration` gives of what a flag names, if it is of the weights with that digest.

    Raises:
        InputError: naming the flag, if there is none, or it is of other weights.
    """
    try:
        found = load_calibration(source)
    except InputError as error:
        raise InputError(f"{flag} {error}") from error
    found.check_weights(sha256, f"{flag} {source}")
    return found


def chosen(given: str | None, source: str, sha256: str, samples: int | None = None) -> Calibration | None:
    """The calibration that is used with weights: the one that is named, else the one that lies beside them on disk.

    Of the weights of a Hub only a named one is used: what is made of a run must not need the Hub. One that lies beside
    the weights and cannot be used counts as none, and stderr says why.

    Args:
        given: as ``--calibration`` has it: as `load_calibration` takes it, "none", or None for the weights' own.
        source: of the weights, as `load_model` takes it.
        sha256: of the weights.
        samples: draws of an image; None if they are not known yet.

    Raises:
        InputError: if the one that is named is none, of other weights, or of many more draws, or has too few images for
            the radii.
    """
    if given == NO_CALIBRATION:
        return None
    if given is None:
        if source != weight_files.DEMO and (source.startswith("hf://") or not storage.is_local(source)):
            return None
        beside = beside_weights(source, sha256, for_radii=True)
        try:
            if beside is not None and samples is not None:
                beside.check_draws(samples, NAME)
        except InputError as error:
            _say_once(f"{NAME} beside the weights is not used: {error}")
            return None
        return beside
    found = calibration_of(given, sha256, "--calibration")
    _check_images(found, f"--calibration {given}")
    if samples is not None:
        found.check_draws(samples, f"--calibration {given}")
    return found


def beside_weights(source: str, sha256: str, *, for_radii: bool) -> Calibration | None:
    """The calibration that lies beside weights; None where there is none, or it cannot be used, as stderr then says.

    Args:
        source: of the weights, as `load_model` takes it.
        sha256: of the weights.
        for_radii: whether one with too few images for the radii cannot be used.
    """
    try:
        weights = weight_files.find(source)
        path = weights.beside(NAME)
    except CheckpointError:
        return None
    if path is None:
        return None
    try:
        found = _read(path, str(path))
        for digest in (weights.fetch()[1], sha256):
            found.check_weights(digest, str(path))
        if for_radii:
            _check_images(found, str(path))
    except InputError as error:
        # A model in hand and the runs of other versions count as the bundled weights, and may be of others.
        if source != weight_files.DEMO:
            _say_once(f"{NAME} beside the weights is not used: {error}")
        return None
    return found


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def _check_images(found: Calibration, where: str) -> None:
    for radius in (found.landmark, found.contour):
        if radius is not None and radius.scores.images < (needed := images_needed(RADIUS_COVERAGE)):
            raise InputError(
                f"{where}: a coverage of {RADIUS_COVERAGE:g} takes at least {needed} annotated images,"
                f" and the calibration has {radius.scores.images}; calibrate on more"
            )


def _tried(kind: Mapping[str, Any], coverage: float) -> dict[str, Any] | None:
    """What a trial on one kind of images found of a coverage, and how the expected error goes with the real one."""
    found = kind.get("coverages", {}).get(f"{coverage:g}")
    if found is None:
        return None
    return {**found, **{name: kind[name] for name in ("r", "r_interval", "ause", "ause_interval") if kind.get(name)}}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, tuple | list) else value
