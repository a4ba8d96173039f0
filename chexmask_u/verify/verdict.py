"""From what a comparison adds up to: the same dataset or not, in words, with the reasons that differences can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from chexmask_u import sources
from chexmask_u.anatomy import FRAME
from chexmask_u.verify.compare import (
    EXPECTED,
    KNOWN,
    MAPPED,
    MAPPINGS,
    READINGS,
    Comparison,
    Images,
    spread_ratio_expected,
)

# A smaller sample says little: of so many, one may differ.
LEAST_IMAGES = 8

# Share of the images that a known reading has to explain, and of their coordinates that have to lie within `EXPECTED`
# expected standard deviations: two sets of draws have 1.0, and 0.985 (5 draws) to 0.999 (50); other weights 0 and 0.22
# (measured on 40 radiographs and 30 drawings).
SAME_IMAGES = 0.95
SAME_COORDINATES = 0.95

# The median ratio of standard deviations may be off by this factor, and three standard errors besides. The lookup's
# rounding moves one by 2.5% at the median; of two sets of draws it was 0.96 to 1.03, of other weights 0.5 (measured).
SAME_SPREAD = 1.1

# Median Dice of each organ, where the landmarks are as published: of two sets of draws it is 0.995 and more (measured).
SAME_DICE = 0.95

# A fault names what differs if it explains so many of the images that differ.
MAIN_SHARE = 0.5

# Landmarks whose distance to their own image's record is this share of that to another image's have nothing to do with
# it; of other weights it is a seventh (measured).
UNRELATED = 0.8

# Pixels of the CSV; a smaller offset that all images share changes fewer than one integer in ten.
LEAST_OFFSET = 0.1

# Pixels of the 1024 frame; JPEG alone moves means by 0.05 to 0.08 at the median (measured).
UNTOLD_OFFSET = 0.2

# A median lies for sure within so many standard errors of its rank: below 20 images, between the least and the largest.
_SURE = 4

# Cosine of both sides' anisotropy; 0 where spreads are the same on both axes, so that none can be told from the other.
EXCHANGED_SPREAD = -0.2

# Standard deviations of a normal distribution per median absolute deviation; a median's error per mean's.
_MAD, _MEDIAN_ERROR = 1.4826, 1.2533

_FAULTS = {
    "other_frame": "their landmarks are in the pixels of the other frame than Height and Width say: those of"
    " OriginalResolution and of Preprocessed are mixed up in the CSV",
    "axes_swapped": "x and y are exchanged in the CSV",
    "row_before": "rows are shifted: each holds the landmarks of the image one row before it",
    "row_after": "rows are shifted: each holds the landmarks of the image one row after it",
}

_NO_STD = "the CSV has no Landmarks (Std)"


@dataclass(frozen=True)
class Verdict:
    """Whether a source is the same within what is known, one sentence that says so or what differs, and reasons."""

    verdict: Literal["same", "different"]
    sentence: str
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Context:
    """What a verdict has to know beside the numbers.

    Attributes:
        source: name of the source.
        demonstration: whether the bundled weights were used, which the published data set was not made with.
        skip: whether the network looks features up at positions.
        lossless: whether images were prepared without a source's lossy compression.
    """

    source: str
    demonstration: bool
    skip: bool
    lossless: bool


@dataclass(frozen=True)
class Spread:
    """Ratio of the standard deviations, ours over published.

    Attributes:
        images: that have them on both sides.
        median: over the images, of each one's median.
        low, high: 5% and 95% of the images.
        expected: of as many draws from the same distribution.
        allowed: factor by which the median may be off.
        other_frame: whether it is as expected if the published ones are in the pixels of the other frame.
        exchanged: whether the published ones have x and y exchanged.
    """

    images: int
    median: float
    low: float
    high: float
    expected: float
    allowed: float
    other_frame: bool
    exchanged: bool

    @property
    def as_expected(self) -> bool:
        return bool(abs(np.log(self.median / self.expected)) <= np.log(self.allowed))


def spread(comparison: Comparison) -> Spread | None:
    """The standard deviations of a comparison; None where too few images have them on both sides."""
    images = comparison.images
    there = np.isfinite(images.spread)
    values = images.spread[there].astype(np.float64)
    if len(values) < LEAST_IMAGES:
        return None
    median, error = _median(values)
    expected = spread_ratio_expected(comparison.draws)
    allowed = np.log(SAME_SPREAD) + 3 * error
    to_other = np.log(images.scale[there]) * (1 if comparison.frame == "original" else -1)
    low, high = np.exp(np.quantile(values, (0.05, 0.95)))
    other = abs(float(np.median(values + to_other)) - np.log(expected)) <= allowed
    return Spread(
        len(values),
        float(np.exp(median)),
        float(low),
        float(high),
        expected,
        float(np.exp(allowed)),
        bool(other),
        _is_exchanged(images.alignment[there]),
    )


def _is_exchanged(alignment: NDArray[np.float32]) -> bool:
    known = alignment[np.isfinite(alignment)].astype(np.float64)
    if len(known) < LEAST_IMAGES:
        return False
    _, high = _sure_median(known)
    return bool(np.median(known) < EXCHANGED_SPREAD and high < 0)


@dataclass(frozen=True)
class Offset:
    """What all images that are as the CSV says are moved by, published less ours, pixels of the CSV.

    Attributes:
        x, y: median over the images.
        seen: whether it is more than nothing.
        cut: whether it is what means have that were cut to whole numbers instead of rounded.
        told: whether it is nothing, or that, if the images are mapped in one of the known ways.
    """

    x: float
    y: float
    seen: bool
    cut: bool
    told: bool


def offset(comparison: Comparison) -> Offset | None:
    """The offset that the images of a comparison share; None where too few are as the CSV says."""
    images = comparison.images
    chosen = images.of("as_said") | images.of("truncated")
    if chosen.sum() < LEAST_IMAGES:
        return None
    (x, x_error), (y, y_error) = (_median(axis) for axis in images.shift[chosen].astype(np.float64).T)
    seen = abs(x) > max(LEAST_OFFSET, 3 * x_error) or abs(y) > max(LEAST_OFFSET, 3 * y_error)
    scale = images.scale[chosen].astype(np.float64)
    pixel = 1.0 if comparison.frame == "1024" else float(np.median(1 / scale))
    # In original pixels, cut in the 1024 frame and once more after they were mapped.
    most = 0.5 if comparison.frame == "1024" else float(np.median(np.where(scale == 1, 0.5, 0.5 / scale + 0.5)))
    as_cut = _is_cut(images.shift[chosen], UNTOLD_OFFSET * pixel, most)
    told = as_cut or any(_is_cut(shifts, UNTOLD_OFFSET * pixel, most) for shifts in _mapped_shifts(images, chosen))
    return Offset(x, y, seen, seen and as_cut and x < 0 and y < 0, told)


def _mapped_shifts(images: Images, chosen: NDArray[np.bool_]) -> Iterator[NDArray[np.float32]]:
    """What the chosen images are moved by [n, 2], under each known mapping that explains them."""
    for index in range(1, len(MAPPED)):
        shifts = images.shifts[chosen, index]
        fits = np.isfinite(shifts).all(axis=1)
        if fits.sum() >= max(LEAST_IMAGES, SAME_IMAGES * len(fits)):
            yield shifts[fits]


def _is_cut(shifts: NDArray[np.float32], slack: float, most: float) -> bool:
    """Whether, but for the slack, one amount from -`most` to 0 may be the median of both axes of shifts [n, 2]."""
    low, high = _sure_median(shifts)
    return bool(max(-most, *(low - slack)) <= min(0.0, *(high + slack)))


def _sure_median(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The values of [n, ...] between which the median of all that they were drawn from lies, however they scatter."""
    ordered = np.sort(values, axis=0)
    rank = max(0, int((len(ordered) - _SURE * np.sqrt(len(ordered))) / 2))
    return ordered[rank], ordered[-1 - rank]


def _median(values: NDArray[np.float64]) -> tuple[float, float]:
    """Median and its standard error."""
    median = float(np.median(values))
    return median, float(_MEDIAN_ERROR * _MAD * np.median(np.abs(values - median)) / np.sqrt(len(values)))


def judge(comparison: Comparison, context: Context, dice: Mapping[str, float]) -> Verdict:
    """The verdict on one source; `dice` is each organ's median over images whose landmarks are as the CSV says."""
    images = comparison.images
    count = len(images)
    explained = sum(images.count(name) for name in KNOWN)
    of_all = f"{explained:,} of {count:,} images"
    spreads = spread(comparison)
    no_spread = None if spreads else _NO_STD if comparison.draws.ours > 1 else "one draw has no spread"
    reasons = _reasons(comparison, context)
    if count - explained > max(1, (1 - SAME_IMAGES) * count):
        sentence = f"NOT the same: {of_all} are as published; {_difference(comparison)}"
        if no_spread == _NO_STD:
            sentence += f"; {no_spread}, so it may be CheXmask's own, which another network made"
        return Verdict("different", sentence + _demonstration(context), reasons)
    if (moved := offset(comparison)) is not None and not moved.told:
        sentence = (
            f"NOT the same: {of_all} are near, but with an offset of ({moved.x:+.2f}, {moved.y:+.2f}) px in all images,"
            " in pixels of the CSV, which neither rounding nor a known mapping makes: landmarks were moved, or images"
            " were prepared otherwise"
        )
        return Verdict("different", sentence + _demonstration(context), reasons)
    share = comparison.within_expected / comparison.coordinates
    if share < SAME_COORDINATES:
        sentence = (
            f"NOT the same: {of_all} are near, but {share:.1%} of the coordinates lie within {EXPECTED:g} expected"
            f" standard deviations, where two sets of draws have more than {SAME_COORDINATES:.0%}"
        )
        return Verdict("different", sentence + _demonstration(context), reasons)
    if low := {organ: value for organ, value in dice.items() if value < SAME_DICE}:
        organs = ", ".join(f"{organ.replace('_', ' ')} {value:.3f}" for organ, value in low.items())
        sentence = (
            f"NOT the same: {of_all} have the published landmarks, but not the masks (median Dice: {organs}): the"
            " CSV's masks are not those of its landmarks, or are of another organ or image"
        )
        return Verdict("different", sentence, reasons)
    if no_spread:
        sentence = (
            f"the same as far as means tell: {no_spread}, so spreads were not compared, and means were held against the"
            f" spread of single draws; {of_all} lie within it"
        )
        return Verdict("same", sentence, reasons)
    if spreads is not None and not spreads.as_expected:
        sentence = (
            f"NOT the same: {of_all} have the published means, but not the standard deviations: ours are"
            f" {spreads.median:.2f} times the published ones, where {spreads.expected:.2f} is expected"
        )
        if spreads.other_frame:
            sentence += "; the published ones are in the pixels of the other frame than the means"
        return Verdict("different", sentence, reasons)
    if spreads is not None and spreads.exchanged:
        sentence = (
            f"NOT the same: {of_all} have the published means, but not the standard deviations: x and y are exchanged"
            " in Landmarks (Std)"
        )
        return Verdict("different", sentence, reasons)
    if comparison.within_rounding == comparison.coordinates:
        return Verdict("same", f"the same numbers, to the rounding of the published ones: {of_all}", reasons)
    sentence = f"the same within what is known: {of_all} are as near as two sets of draws of one network are"
    mapped = sum(images.count(name) for name in MAPPINGS)
    if mapped:
        sentence += f" ({mapped:,} of them once the fault of the published mapping is taken back)"
    return Verdict("same", sentence, reasons)


def _difference(comparison: Comparison) -> str:
    """What differs, in the images that no known reading explains."""
    images = comparison.images
    outside = ~np.isin(images.reading, [list(READINGS).index(name) for name in KNOWN])
    counts = {name: images.count(name) for name in READINGS if name not in KNOWN}
    main = max(counts, key=lambda name: counts[name])
    if main in _FAULTS and counts[main] >= MAIN_SHARE * outside.sum():
        return f"of {counts[main]:,}, {_FAULTS[main]}"
    if main == "shifted" and counts[main] >= MAIN_SHARE * outside.sum():
        x, y = np.median(images.shift[images.of("shifted")], axis=0)
        return (
            f"of {counts[main]:,}, all landmarks are shifted as a whole, by ({x:+.1f}, {y:+.1f}) pixels of the CSV at"
            " the median, which is no border crop: the images were cropped or padded otherwise, or are others"
        )
    distance = float(np.median(images.distances[outside].mean(axis=1)))
    chance = float(np.nanmedian(images.chance[outside]))
    if distance >= UNRELATED * chance:
        return (
            f"the others are no nearer to their own image's record ({distance:.1f} px of the {FRAME} frame at the"
            f" median) than to another image's ({chance:.1f} px): other weights, another node order, or rows of other"
            " images (shuffled, or ids that name others)"
        )
    times = float(np.median(images.misfit[outside]))
    return (
        f"the others are of the same images ({distance:.1f} px of the {FRAME} frame apart at the median, and"
        f" {chance:.1f} from another image's), but {times:.1f} times as far as draws and rounding explain, without a"
        " pattern: other weights, or images that were prepared otherwise"
    )


def _demonstration(context: Context) -> str:
    if not context.demonstration:
        return ""
    return "; these are the demonstration weights, and the published ones made the data set (--weights hf://...)"


def _reasons(comparison: Comparison, context: Context) -> list[str]:
    """Why numbers of the same network and images differ, as far as it applies; what was found comes first."""
    images, draws, moved = comparison.images, comparison.draws, offset(comparison)
    untold = moved is not None and not moved.told
    reasons = [
        f"found in {images.count(name):,} images: {READINGS[name]}"
        for name in KNOWN
        if name != "as_said" and images.count(name) and not (untold and name == "truncated")
    ]
    if moved is not None and moved.cut:
        reasons.append(
            f"found in all: an offset of ({moved.x:+.2f}, {moved.y:+.2f}) pixels of the CSV; means that were cut to"
            " whole numbers instead of rounded lie half a pixel lower on both axes"
        )
    reasons.append(
        f"draws: the published ones cannot be repeated, so means of {draws.ours} and {draws.published} differ by about"
        f" {np.sqrt(1 / draws.ours + 1 / draws.published):.2f} of a node's standard deviation"
    )
    twice = comparison.frame == "original" and (images.scale != 1).any()
    mapped = " in the 1024 frame before they were mapped, and again after" if twice else ""
    reasons.append(f"rounding: published means are whole numbers{mapped}; standard deviations have two decimals")
    if context.skip:
        reasons.append(
            "lookup: the published one takes 3 or 4 taps a side at about 5% of the nodes, as rounding has it, which"
            " moves single means by pixels and standard deviations by several times; it differs between devices too"
        )
    if context.lossless and context.source == "mimic-cxr-jpg":
        reasons.append(
            "JPEG: the published images were compressed once more (quality 95), these were not: 0.05 to 0.08 px at the"
            " median, 0.3 to 0.5 at the 95th percentile"
        )
    if unknown := sources.get(context.source).unknown_steps:
        reasons.append(f"preparation: {unknown}")
    reasons.append("no reason: the published batches of one image, which this network's normalisation equals")
    return reasons
