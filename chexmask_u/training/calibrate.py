"""Make a calibration of weights from annotated images that they were not trained on, and try it on the rest of them."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from chexmask_u import storage, weight_files
from chexmask_u.anatomy import FRAME
from chexmask_u.calibration import fit
from chexmask_u.calibration.calibration import Calibration, Of, Radius, calibration_of
from chexmask_u.calibration.conformal import images_needed
from chexmask_u.calibration.fit import CLEAN, COVERAGES, Measured
from chexmask_u.calibration.known import LEAST_IMAGES, Known
from chexmask_u.calibration.seen import IMAGE_FEATURES, Seen
from chexmask_u.calibration.worth import coverage_words, trust_words
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.model.device import choose
from chexmask_u.model.network import Network
from chexmask_u.model.predict import predict
from chexmask_u.record import ODD_SCORE, RADIUS_COVERAGE, ReadError
from chexmask_u.result import Result
from chexmask_u.settings import CalibrateSettings
from chexmask_u.steps.read import read_image
from chexmask_u.training import examples as annotated
from chexmask_u.training import odd
from chexmask_u.training.annotations import files_below, name_of
from chexmask_u.training.augmented import augmented_features
from chexmask_u.training.examples import Examples
from chexmask_u.training.measure import KINDS, check_regions, measure
from chexmask_u.version import __version__
from chexmask_u.weight_files import WeightFile

# Of the images that weights were trained on so many are enough to say which landmarks err more than others.
_TRAINED_IMAGES = 60

_ASSUMES = (
    "The coverage{of} is promised for a landmark drawn at random from one more image that is drawn as these were: the"
    " same hospitals, devices, patients and annotators, an image being as likely as any other. It is an average over"
    " landmarks and images: single landmarks, hard images and single kinds of image may be covered less. Elsewhere it"
    " is not promised at all; calibrate there with --start."
)


@dataclass(frozen=True)
class _Parts:
    """Annotated images by whether the weights were trained on them; `told` says what tells."""

    held_out: Examples
    trained: Examples
    told: str


def calibrate(settings: CalibrateSettings) -> Calibration:
    """Measure, fit, try, and write calibration.json.

    Raises:
        InputError: if images, weights, split or the calibration to start from cannot be used, or are too few.
    """
    check_regions(settings.leave_out)
    if settings.augmentations and settings.start is not None:
        raise InputError("--augmentations: a calibration to --start from knows nothing of them; leave one of both out")
    place, name = _place(settings.output)
    weights = weight_files.find(settings.weights)
    model = weight_files.load_model(weights, device=choose(settings.device))
    assert model.sha256 is not None
    start = None
    if settings.start is not None:
        start = calibration_of(settings.start, model.sha256, "--start")
    parts = _read(settings, weights)
    if not len(parts.held_out):
        raise InputError("there is no annotated image that the weights were not trained on; see --data and --split")
    measured = _measure(model, parts.held_out, settings)
    trained = _measure(model, parts.trained, settings) if len(parts.trained) and start is None else None

    def features(images: list[NDArray[np.uint8]], names: list[str]) -> NDArray[np.float64]:
        found = [np.empty((0, IMAGE_FEATURES))]
        for start in range(0, len(images), settings.batch_size):
            rows = slice(start, start + settings.batch_size)
            prediction = predict(model, np.stack(images[rows]), names[rows], settings.samples, settings.seed)
            found.append(Seen.of(prediction).image_features())
        return np.concatenate(found)

    usual, others = measured.seen[CLEAN].image_features(), _known(features, measured, parts.trained, settings)
    about = {**_about(settings, weights, parts), "odd_images": odd.trial(parts.held_out, usual, others, features)}
    if settings.augmentations:
        about["augmentations"] = _augmented(model, parts, measured, trained, settings)
    made = _fit(measured, trained, np.concatenate([usual, others]), start, model.sha256, about)
    Folder(place).write(name, made.text)
    return made


def _place(output: str) -> tuple[str, str]:
    """Folder and name of the file that is to be written, which may hold another calibration."""
    place, _, name = storage.normalise(output).rpartition("/")
    if PurePosixPath(name).suffix != ".json":
        raise InputError(f"--output {output}: must be a .json file, such as calibration.json")
    before = Folder(place).read(name)
    if before is not None:
        Calibration.from_text(before.decode("utf-8", "replace"), f"--output {output}")
    return place, name


def _read(settings: CalibrateSettings, weights: WeightFile) -> _Parts:
    found, problems = annotated.read_examples(settings, FRAME)
    annotated.refuse(problems, settings.on_bad)
    found = annotated.join([found, annotated.held_out(settings.drawings, settings.seed, FRAME)])
    trained = np.zeros(len(found), bool)
    if settings.split is not None:
        trained = np.array(annotated.trained_on(found.names, settings.split), bool)
        told = f"--split {PurePosixPath(settings.split).name}"
    elif annotated.refuse_trained(found.names, weights):
        told = f"{annotated.SPLIT} beside the weights"
    else:
        told = "nothing"
        print(
            "No --split, and none beside the weights: nothing tells which images they were trained on; of such images"
            " every radius is too small",
            file=sys.stderr,
        )
    order = sorted(np.flatnonzero(trained).tolist(), key=lambda row: hashlib.sha256(found.names[row].encode()).digest())
    return _Parts(found.take(np.flatnonzero(~trained)), found.take(order[:_TRAINED_IMAGES]), told)


def _measure(model: Network, examples: Examples, settings: CalibrateSettings) -> Measured:
    with tqdm(total=len(examples) * len(KINDS), desc="measure", unit="image", disable=None) as bar:
        return measure(
            model,
            examples,
            samples=settings.samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
            leave_out=settings.leave_out,
            count=bar.update,
        )


def _known(
    features: odd.Features, measured: Measured, trained: Examples, settings: CalibrateSettings
) -> NDArray[np.float64]:
    """Features of the radiographs that count as known beside the measured ones: trained ones, and those of --known."""
    images, names = list(trained.images), list(trained.names)
    for folder in settings.known:
        files = [uri for uri in files_below(storage.normalise(folder)) if uri.lower().endswith(_IMAGE_SUFFIXES)]
        if not files:
            raise InputError(f"--known {folder}: holds no image")
        taken = {name.partition("/")[2] for name in (*measured.names, *names)}
        for uri in files:
            if name_of(uri) in taken:
                continue
            try:
                images.append(read_image(uri, max_side=settings.max_side).image)
            except ReadError as error:
                raise InputError(f"--known {folder}: {uri} cannot be read ({error.reason}: {error})") from error
            names.append(f"known/{name_of(uri)}")
    return features(images, names)


_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def _about(settings: CalibrateSettings, weights: WeightFile, parts: _Parts) -> dict[str, Any]:
    """How it is made, without the places where the data lie."""
    held_out, trained = (
        Counter(name.partition("/")[0] for name in examples.names) for examples in (parts.held_out, parts.trained)
    )
    masks = Counter(name.partition("/")[0] for name in parts.held_out.names if name in parts.held_out.from_masks)
    return {
        "made_with": f"chexmask_u {__version__}",
        "weights": {**weights.facts(), "source": PurePosixPath(settings.weights).name},
        "samples": settings.samples,
        "seed": settings.seed,
        "images": {name: {"images": count, "masks_alone": masks[name]} for name, count in held_out.items()},
        "images_sha256": parts.held_out.digest(),
        "trained_images_for_the_shape": dict(trained),
        "told_apart_by": parts.told,
        "left_out_of_masks": list(settings.leave_out),
    }


def _fit(
    measured: Measured,
    trained: Measured | None,
    known: NDArray[np.float64],
    start: Calibration | None,
    sha256: str,
    about: Mapping[str, Any],
) -> Calibration:
    before: Mapping[str, Radius | None] = {}
    before_with_images: Mapping[str, Radius | None] = {}
    if start is not None:
        before, before_with_images = {"landmark": start.landmark, "contour": start.contour}, start.with_images
    alone = trained and trained.spread_alone()
    radii, trials = _radii(measured.spread_alone(), alone, before)
    contour, landmark = radii["contour"], radii["landmark"]
    if contour is None and landmark is None:
        raise InputError(
            f"{len(measured.names)} annotated image{'s' if len(measured.names) > 1 else ''} that the weights were not"
            f" trained on: too few; a coverage of 0.9 takes {images_needed(0.9)} for its scores and half as many again"
            " for the expected error, which --start brings along"
        )
    with_images: dict[str, Radius] = {}
    with_images_trials: dict[str, Any] = {}
    # A calibration of before there were edge features has nothing to start from.
    if start is None or before_with_images:
        found, with_images_trials = _radii(measured, trained, before_with_images)
        with_images.update({of: radius for of, radius in found.items() if radius is not None})
    usual = Known.fit(known) if len(known) >= LEAST_IMAGES else start.known if start is not None else None
    about = {
        **about,
        "edge_features": bool(with_images),
        "started_from": None if start is None else start.digest,
        "images_that_count": {of: None if radius is None else radius.scores.images for of, radius in radii.items()},
        "landmark_checked": landmark is not None and landmark.checked,
        "known_radiographs": 0 if usual is None else len(usual.distances),
        "assumes": _assumes(radii),
        "trials": trials,
        "trials_with_images": with_images_trials,
    }
    made = Calibration(sha256, landmark, contour, usual, about, with_images)
    # As it will be read again, to the last digit.
    return Calibration.from_text(made.text, "calibration")


def _assumes(radii: Mapping[Of, Radius | None]) -> str:
    """For which radii a coverage is promised, and of which images."""
    promised = [of for of, radius in radii.items() if radius is not None and radius.checked]
    text = _ASSUMES.format(of="" if len(promised) == len(_OF) else f" of the {promised[0]} radius")
    if radii["landmark"] is not None and not radii["landmark"].checked:
        text += " For the landmark radius none is promised, here or elsewhere."
    return text


def _augmented(
    model: Network,
    parts: _Parts,
    measured: Measured,
    trained: Measured | None,
    settings: CalibrateSettings,
) -> dict[str, Any]:
    """What radii of clean images would be worth without and with the spread over variants of the image.

    No radius is made of it: a prediction or a record does not hold that spread, which takes as many more predictions.
    """

    def with_variants(some: Measured, examples: Examples) -> Measured:
        features = augmented_features(
            model,
            examples,
            count=settings.augmentations,
            samples=settings.samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
        )
        return some.with_further(features)

    pairs = [(measured.clean(), None if trained is None else trained.clean())]
    pairs.append(
        (with_variants(pairs[0][0], parts.held_out), trained and with_variants(trained.clean(), parts.trained))
    )
    without, within = (
        {of: fit.trial(some, of, trained=other) for of in _OF if len(some.annotated(of))} for some, other in pairs
    )
    return {"variants": settings.augmentations, "without": without, "with": within}


def _radii(
    measured: Measured, trained: Measured | None, before: Mapping[str, Radius | None]
) -> tuple[dict[Of, Radius | None], dict[str, Any]]:
    """Both radii and what they are worth; `before` are those of the calibration to start from."""
    radii: dict[Of, Radius | None] = {}
    trials: dict[str, Any] = {}
    for of in _OF:
        rows, start = measured.annotated(of), before.get(of)
        radii[of] = fit.radius(measured, of, rows, start=start, trained=trained) if len(rows) else None
        if radii[of] is not None:
            trials[of] = fit.trial(measured, of, start=start, trained=trained)
    landmark, contour, here = before.get("landmark"), before.get("contour"), radii["contour"]
    if radii["landmark"] is None and landmark and contour and here:
        radii["landmark"] = fit.stretched(landmark, contour, here)
    return radii, trials


_OF: tuple[Of, ...] = ("landmark", "contour")


def table(calibration: Calibration) -> str:
    """The calibration in lines for people."""
    about = calibration.about
    of_images = ", ".join(
        f"{counts['images']} of {name}"
        + (f" ({counts['masks_alone']} with masks alone)" if counts["masks_alone"] else "")
        for name, counts in about["images"].items()
    )
    lines = [f"{of_images}; pixels of the {FRAME} frame"]
    trained = about["trained_images_for_the_shape"]
    if trained:
        lines.append(
            f"  {sum(trained.values())} images that the weights were trained on say which landmarks err more than"
            " others, and nothing of how far"
        )
    if not calibration.with_images:
        lines.append("  no radius looks at the image: that of --start has none that does")
    lacking_images = []
    for of in _OF:
        images = about["images_that_count"][of]
        if (lacks := _lacks(about, of)) is not None:
            lacking_images.append(lacks)
        if images is None:
            lines.append(f"  {of}: no radius, since no image has such an annotation")
            continue
        if of == "landmark" and not about["landmark_checked"]:
            lines += _UNCHECKED
            continue
        reach = [f"{coverage:g}" for coverage in COVERAGES if images_needed(coverage) <= images]
        lacking = [f"{c:g} takes {images_needed(c)}" for c in (*COVERAGES, 0.99) if images_needed(c) > images]
        lines.append(
            f"  {of}: {images} images count, enough for a coverage of {', '.join(reach) or 'none'}"
            + (f"; {'; '.join(lacking)}" if lacking else "")
        )
        by_dataset = len(about["images"]) > 1
        lines += _trial_lines(about["trials"].get(of, {}), by_dataset, ("std", "spread", "across"))
        looking = _trial_lines(about["trials_with_images"].get(of, {}), by_dataset)
        lines += ["    with the image:", *("  " + line for line in looking)] if looking else []
        if tried := about.get("augmentations"):
            for name in ("without", "with"):
                lines.append(
                    f"    of clean images alone, with the image and {name} {tried['variants']} variants of it:"
                )
                lines += ["  " + line for line in _trial_lines(tried[name].get(of, {}), by_dataset)]
    if calibration.known is None:
        lines.append(f"  no ood_score: it takes {LEAST_IMAGES} radiographs; see --known")
    else:
        lines.append(f"  ood_score: percentile among {about['known_radiographs']} radiographs")
        lines += _odd_lines(about["odd_images"])
    # What is lacking stands last, where it is read.
    return "\n".join([*lines, *_wrapped(about["assumes"]), *lacking_images])


_UNCHECKED = (
    "  landmark: no image here has annotated landmarks: it is that of --start, stretched as the contour's, and",
    "    no coverage is promised",
)


def _lacks(about: Mapping[str, Any], of: Of) -> str | None:
    """What the radius lacks for `segment` and `release`, as a line; None where it has enough images, or is none."""
    images = about["images_that_count"][of]
    if images is None:
        return None
    if of == "landmark" and not about["landmark_checked"]:
        more, what = images_needed(RADIUS_COVERAGE) - images, "that count in the calibration of --start"
    else:
        more = fit.further_images(about["trials"][of]["images"], images, RADIUS_COVERAGE)
        what = "image" if more == 1 else "images"
    if more <= 0:
        return None
    needed = f"segment and release need radii of {100 * RADIUS_COVERAGE:.0f}%"
    return f"  {of}: {needed}, and its radius takes {more} more {what}"


def _trial_lines(trial: Mapping[str, Any], by_dataset: bool, beside: Sequence[str] = ()) -> list[str]:
    """What radii cover and tell, by kind of image; and what the spread beside them tells."""
    lines = []
    for kind, found in trial.get("kinds", {}).items():
        shares = "; ".join(f"{coverage}: {coverage_words(one)}" for coverage, one in found["coverages"].items())
        lines.append(f"    {kind + ' images' if kind == CLEAN else kind}: {shares or 'too few images'}")
        told = {"radius": found, **{name: found[name] for name in beside}}
        lines += [f"      {name}: {trust_words(one)}" for name, one in told.items() if one["r"] is not None]
    if by_dataset:
        for coverage, alone in trial.get("datasets", {}).items():
            each = ", ".join(f"{name} {share:.2f}" for name, share in alone.items())
            lines.append(f"    asked for {coverage}, of each dataset alone: {each}")
    return lines


def _odd_lines(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["    not tried: it takes more images"]
    said = [
        f"    tried on images that it did not know: {found['false_alarms']} of {found['images']} usual ones lie beyond"
        f" the {ODD_SCORE:.0f}th percentile"
    ]
    for kind, one in found["kinds"].items():
        said.append(
            f"    {kind}: AUC {one['auc']:.3f} [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}], beyond"
            f" {100 * one['beyond']:.0f}%"
        )
    return said


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ")


def verb(settings: CalibrateSettings) -> Result:
    """`chexmask-u calibrate`."""
    made = calibrate(settings)
    facts = {"calibration": settings.output, "digest": made.digest, **made.about}
    return Result(facts, f"{settings.output}: {table(made)}")
