"""Score weights on annotated radiographs: errors, overlap, the posterior's health, and an occlusion test."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from chexmask_u import storage, weight_files
from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.calibration.calibration import Calibration, calibration_of
from chexmask_u.calibration.conformal import images_needed
from chexmask_u.calibration.fit import CLEAN, COVERAGES, Measured
from chexmask_u.calibration.seen import Seen
from chexmask_u.calibration.worth import coverage_words, covered, trust, trust_words
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder, as_csv
from chexmask_u.model.device import choose
from chexmask_u.model.network import BaseNetwork, Network
from chexmask_u.model.pixel import PixelNetwork
from chexmask_u.model.predict import Prediction, predict
from chexmask_u.result import Result
from chexmask_u.runs.job import check_places
from chexmask_u.settings import EvaluateSettings
from chexmask_u.training import examples as annotated
from chexmask_u.training.evaluate_masks import mask_table, score_masks
from chexmask_u.training.examples import Examples
from chexmask_u.training.figures import entropy, uncertainty
from chexmask_u.training.measure import KINDS, Count, check_regions, measure, uncounted
from chexmask_u.training.run import PROBLEMS, SCORES, SETTINGS
from chexmask_u.training.scores import calibration, image_scores, mean_scores, posterior
from chexmask_u.training.shifts import SHIFTS

# Grey that hides the middle of the right lung: rows and columns of the frame.
COVER_ROWS = slice(FRAME // 3, 3 * FRAME // 4)
COVER_COLUMNS = slice(FRAME // 16, FRAME // 2)
COVER_GREY = 128

# Images of which a part is hidden, beside the kinds that `measure` knows.
_HIDDEN = "hidden"

# All kinds of images together, in `shifts`.
ALL_KINDS = "all"

MASKS_NOTE = (
    "  {} of them annotated by masks: distances to nodes spaced along a contour mean little for a network that was"
    " trained on landmarks; Dice and Hausdorff hold"
)


@dataclass(frozen=True)
class Evaluation:
    """Scores over all images, and of each: `summary` for JSON, `images` with one row per image."""

    summary: dict[str, Any]
    images: list[dict[str, Any]]


def read(settings: EvaluateSettings) -> tuple[Examples, list[annotated.Problem]]:
    """The images to be scored, in the 1024 frame.

    Raises:
        InputError: if there are none, or some cannot be used and --on-bad is refuse.
    """
    part = "all" if settings.split is None else settings.part
    given = {} if settings.split is None or part == "all" else annotated.read_split(settings.split)

    def wanted(names: Sequence[str]) -> list[bool]:
        # One that the file does not name is read, too: if it can be used, that is an error.
        return [given.get(name.partition("/")[2], part) == part for name in names]

    found, problems = annotated.read_examples(settings, FRAME, only=wanted)
    if (folder := _output(settings)) is not None:
        folder.write(PROBLEMS, annotated.problems_csv(problems))
    annotated.refuse(problems, settings.on_bad)
    if given:
        annotated.split(found.names, 0.0, settings.split)
    found = annotated.join([found, annotated.held_out(settings.drawings, settings.seed, FRAME)])
    if not len(found):
        raise InputError("there is no annotated image to score; see --data, --split and --part")
    return found, problems


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Score the weights that the settings name on the images that they name.

    Raises:
        CheckpointError: as `load_model`.
        InputError: as `read`; or if there is no GPU where one is asked for, or the output holds something else than an
            earlier evaluation.
    """
    check_places({"--output": settings.output})
    folder = _output(settings)
    if folder is not None:
        _check_own(folder)
    weights = weight_files.find(settings.weights)
    model = weight_files.load_network(weights, device=choose(settings.device))
    assert model.sha256 is not None
    check_regions(settings.leave_out)
    if isinstance(model, PixelNetwork):
        _check_for_masks(settings, model.family)
    judged = None
    if settings.calibration is not None:
        judged = calibration_of(settings.calibration, model.sha256, "--calibration")
    examples, problems = read(settings)
    weight_files.say_if_demonstration(settings.weights)
    if settings.data and settings.split is None:
        print(
            "no --split: every image is scored, also those that the weights may have been trained on", file=sys.stderr
        )
    total = predictions(len(examples), masks=isinstance(model, PixelNetwork), shifts=settings.shifts)
    with tqdm(total=total, desc="evaluate", unit="image", disable=None) as bar:
        result = score(
            model,
            examples,
            samples=settings.samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
            judged=judged,
            leave_out=settings.leave_out,
            shifts=settings.shifts,
            count=bar.update,
        )
    head = {
        "weights": settings.weights,
        "commit": weights.commit,
        "file": weights.facts()["file"],
        "sha256": model.sha256,
        "variant": model.variant,
        "input_size": model.input_size,
        "left_out": len(problems),
    }
    evaluation = Evaluation(head | result.summary, result.images)
    if folder is not None:
        folder.write("images.csv", as_csv(evaluation.images))
        folder.write("uncertainty.png", picture(evaluation))
        folder.write_json(SCORES, evaluation.summary)
    return evaluation


def _check_for_masks(settings: EvaluateSettings, family: str) -> None:
    """Refuse what judges landmarks alone."""
    given = {
        "--calibration": settings.calibration is not None,
        "--shifts": settings.shifts,
        "--leave-out": bool(settings.leave_out),
    }
    for flag in (flag for flag, is_given in given.items() if is_given):
        raise InputError(f"{flag}: is for landmarks, and {settings.weights} ({family}) gives masks alone; leave it out")


def predictions(images: int, *, masks: bool, shifts: bool) -> int:
    """How many images `score` predicts, of so many."""
    return images * len(_kinds(masks=masks, shifts=shifts))


def _kinds(*, masks: bool, shifts: bool) -> tuple[str, ...]:
    """How `score` shows each image: as it is, with a part hidden and, of landmarks, shifted."""
    return CLEAN, _HIDDEN, *(SHIFTS if shifts and not masks else ())


def _output(settings: EvaluateSettings) -> Folder | None:
    return None if settings.output is None else Folder(storage.normalise(settings.output))


def _check_own(folder: Folder) -> None:
    folder.check_own("evaluation", [SCORES], ignored=(PROBLEMS,))
    # A training run has scores of its own, which say that it is finished.
    if SETTINGS in folder.names():
        raise InputError(f"{folder.url}: holds a training run; choose another --output or a new folder in it")


def score(
    model: BaseNetwork,
    examples: Examples,
    *,
    samples: int,
    seed: int,
    batch_size: int,
    judged: Calibration | None = None,
    leave_out: Sequence[str] = (),
    shifts: bool = False,
    count: Count = uncounted,
) -> Evaluation:
    """Score a model on annotated images.

    ``summary`` has, over all images and in pixels of the 1024 frame: what `scores.mean_scores` gives, of the landmarks
    decoded from the posterior mean; ``mse_of_mean``, of the mean over the draws, which is what a dataset holds; what
    `scores.calibration` and `scores.posterior` give; ``covered``, what hiding the right lung does; ``from_masks``, of
    how many images the annotation is a mask, against which distances are meaningful only for a network that was trained
    on masks; and ``trust``, what `worth.trust` says of a landmark's std, of its part across the contour and of the
    radii, each against the distance to the annotated landmark and contour, with the radii's coverage; and ``shifts``,
    if asked for, the same of each kind of `shifts.SHIFTS`, and as ``all`` of those and the clean images together. Of a
    network of masks it has what `evaluate_masks.score_masks` gives.

    Args:
        model: from `load_network`.
        examples: in the 1024 frame.
        samples, seed: as `predict` takes them; the names of the examples fix the draws.
        batch_size: images the network takes at once.
        judged: the calibration whose radii are to be judged, if any.
        leave_out: regions of the contour that are not measured on images annotated by masks.
        shifts: whether to do so under shifts too, which takes three times as many predictions.
        count: is told of the images that are predicted, which are so many as `predictions` says.
    """
    hidden = examples.images.copy()
    hidden[:, COVER_ROWS, COVER_COLUMNS] = COVER_GREY
    kinds = _kinds(masks=isinstance(model, PixelNetwork), shifts=shifts)
    # The others are made by `measure`.
    shown = {CLEAN: examples.images, _HIDDEN: hidden}
    if isinstance(model, PixelNetwork):
        return Evaluation(*score_masks(model, examples, [shown[kind] for kind in kinds], samples, seed, count))
    assert isinstance(model, Network)
    truth = examples.landmarks * np.float32(FRAME)
    clear, covered = (
        _predict(model, shown[kind], examples.names, samples, seed, batch_size, count)
        for kind in kinds
        if kind in shown
    )
    centre = _decode_mean(model, examples.images, batch_size)
    covered_centre = _decode_mean(model, hidden, batch_size)

    measured = measure(
        model,
        examples,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        leave_out=leave_out,
        kinds=[kind for kind in kinds if kind != _HIDDEN],
        clean=clear,
        count=count,
    )
    under_shifts: dict[str, Any] = {}
    if shifts:
        under_shifts = {kind: _trust(measured, judged, [kind]) for kind in SHIFTS}
        under_shifts = {"shifts": under_shifts | {ALL_KINDS: _trust(measured, judged, KINDS)}}
    rows = [image_scores(*pair) for pair in zip(centre, truth, strict=True)]
    covered_rows = [image_scores(*pair) for pair in zip(covered_centre, truth, strict=True)]
    offset = clear.landmarks_mean - truth
    summary: dict[str, Any] = {
        "images": len(examples),
        "with_heart": int(examples.has_heart().sum()),
        "from_masks": sum(name in examples.from_masks for name in examples.names),
        **mean_scores(rows),
        "mse_of_mean": float(np.nanmean(np.nanmean(np.square(offset), axis=(1, 2)))),
        **calibration(clear.landmarks_mean, clear.landmarks_std, truth),
        # Without a variational layer there is no posterior.
        **(posterior(clear.latent_mean, clear.latent_std) if model.has_posterior else {}),
        "trust": _trust(measured, judged, [CLEAN]),
        **under_shifts,
        "covered": mean_scores(covered_rows)
        | calibration(covered.landmarks_mean, covered.landmarks_std, truth)
        | _occlusion(clear, covered, truth),
    }
    images = [
        {"name": name, **row, "uncertainty": float(spread.mean()), "uncertainty_covered": float(hidden_spread.mean())}
        for name, row, spread, hidden_spread in zip(
            examples.names, rows, clear.landmarks_std, covered.landmarks_std, strict=True
        )
    ]
    return Evaluation(summary, images)


def _trust(measured: Measured, judged: Calibration | None, kinds: Sequence[str]) -> dict[str, Any]:
    """What `worth.trust` says of these kinds together, by error and by uncertainty; and the coverage of the radii."""
    found: dict[str, Any] = {}
    for of, by_kind in measured.errors.items():
        rows = measured.annotated(of)
        if not len(rows):
            continue
        errors = np.concatenate([by_kind[kind][rows] for kind in kinds])
        seen = Seen.join([measured.seen[kind].take(rows) for kind in kinds])
        found[of] = {name: trust(getattr(seen, name), errors, len(kinds)) for name in ("std", "spread", "across")}
        radius = None if judged is None else (judged.landmark if of == "landmark" else judged.contour)
        if judged is None or radius is None:
            continue
        reach = [coverage for coverage in COVERAGES if images_needed(coverage) <= radius.scores.images]
        looks = {"radius": seen.spread_alone()} | ({"radius_with_images": seen} if of in judged.with_images else {})
        for name, given in looks.items():
            found[of][name] = {
                **trust(judged.expected(given, of), errors, len(kinds)),
                "coverages": {
                    f"{coverage:g}": covered(errors, judged.radii(given, coverage, of), len(kinds))
                    for coverage in reach
                },
            }
    return found


def _trust_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for of, measures in found.items():
        for name, one in measures.items():
            if one["r"] is None:
                continue
            shares = "".join(
                f"; asked for {coverage}: {coverage_words(share)}"
                for coverage, share in one.get("coverages", {}).items()
            )
            lines.append(f"  {name.replace('_', ' ')} against the distance to the {of}: {trust_words(one)}{shares}")
    return lines


def table(summary: dict[str, Any]) -> str:
    """The scores as lines of text for people."""
    if "entropy" in summary:
        return mask_table(summary)
    covered = summary["covered"]
    organs = [organ for organ in ORGANS if f"dice_{organ}" in summary]
    lines = [
        f"{summary['images']:,} images ({summary['with_heart']:,} with heart); pixels of the {FRAME} frame",
        f"  error: mean {summary['distance']:.1f} px, worst image {summary['worst_distance']:.1f} px, "
        f"of a coordinate RMSE {summary['rmse']:.1f} px, MSE {summary['mse']:.0f} px² "
        f"(of the draws' mean {summary['mse_of_mean']:.0f})",
        *([MASKS_NOTE.format(summary["from_masks"])] if summary["from_masks"] else []),
        *(
            f"  {organ.replace('_', ' ')}: Dice {summary[f'dice_{organ}']:.3f}, "
            f"Hausdorff {summary[f'hausdorff_{organ}']:.1f} px"
            for organ in organs
        ),
        f"  std: {summary['std']:.2f} px, {summary['std_error_ratio']:.2f} of the error; of the coordinates, "
        f"{100 * summary['within_1_std']:.0f}% lie within 1 std and {100 * summary['within_2_std']:.0f}% within 2; "
        f"rank correlation with the error {_or_unknown(summary['rank_correlation'])}",
        *(
            [
                f"  posterior: mean sigma {summary['sigma']:.3f}, KL {summary['kl']:.1f} nats, "
                f"{summary['active_latents']} of {len(summary['kl_per_latent'])} latents in use"
            ]
            if "kl" in summary
            else []
        ),
        f"  right lung covered: std {covered['std']:.2f} px; {covered['std_ratio_under_cover']:.2f} times as large "
        f"under the cover, {covered['std_ratio_elsewhere']:.2f} times elsewhere; "
        f"larger in {100 * covered['images_higher']:.0f}% of the images; MSE {covered['mse']:.0f} px²",
        *_trust_lines(summary["trust"]),
        *(
            line
            for kind, found in summary.get("shifts", {}).items()
            for line in (f"  {_KIND_TITLES.get(kind, kind)}:", *("  " + told for told in _trust_lines(found)))
        ),
    ]
    return "\n".join(lines)


def picture(found: Evaluation) -> bytes:
    """What the uncertainty is worth, as PNG."""
    return entropy(found.images) if "entropy" in found.summary else uncertainty(found.summary)


_KIND_TITLES = {ALL_KINDS: "clean and all shifts together"}


def _or_unknown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _occlusion(clear: Prediction, covered: Prediction, truth: NDArray[np.float32]) -> dict[str, float]:
    """How the std changes for the landmarks, of any organ, that are hidden, and for all others."""
    x, y = truth[..., 0], truth[..., 1]
    under = (x >= COVER_COLUMNS.start) & (x < COVER_COLUMNS.stop) & (y >= COVER_ROWS.start) & (y < COVER_ROWS.stop)
    # NaN compares as outside; a heart that is not annotated may be anywhere.
    elsewhere = ~under & np.isfinite(x)
    before, after = clear.landmarks_std.mean(axis=-1), covered.landmarks_std.mean(axis=-1)
    return {
        "std_ratio_under_cover": float(after[under].mean() / before[under].mean()),
        "std_ratio_elsewhere": float(after[elsewhere].mean() / before[elsewhere].mean()),
        "images_higher": float((after.mean(axis=1) > before.mean(axis=1)).mean()),
    }


def _predict(
    model: Network, images: NDArray[np.uint8], names: list[str], samples: int, seed: int, size: int, count: Count
) -> Prediction:
    """What `predict` gives of images uint8 [N, 1024, 1024], so many at once."""
    parts = []
    for rows in _batches(len(images), size):
        parts.append(predict(model, images[rows], names[rows], samples, seed))
        count(len(images[rows]))
    return Prediction.join(parts)


@torch.inference_mode()
def _decode_mean(model: Network, images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Landmarks float32 [N, 120, 2] in pixels of the frame, decoded from the posterior's mean."""
    decoded = []
    for rows in _batches(len(images), size):
        grey = model.grey(torch.from_numpy(images[rows]).to(model.device))
        decoded.append(model.centre(grey).landmarks[:, 0].cpu().numpy() * FRAME)
    return np.concatenate(decoded)


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def verb(settings: EvaluateSettings) -> Result:
    """`chexmask-u evaluate`."""
    found = evaluate(settings)
    return Result(found.summary, f"{settings.weights}: {table(found.summary)}")
