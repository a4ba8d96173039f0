"""Published landmarks beside regenerated ones: how far apart they are, and which way of reading them explains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, ORGANS

Floats = NDArray[np.float64]
Frame = Literal["original", "1024"]
"""Which pixels a CSV's landmarks are in: those of its OriginalResolution or of its Preprocessed folder."""

# An image is explained while, of each organ and axis, the median node lies within so many expected standard deviations.
# Two sets of 50 draws stay below 2.6 (240 comparisons on 40 radiographs, two sets of weights, also with the lookup's
# fourth tap and JPEG), of 10 draws below 3.0; other weights begin at 5.0, another image's landmarks at 7.3 (measured).
EXPLAINED = 3.0

# A coordinate is as expected within so many expected standard deviations.
EXPECTED = 3.0

# Published standard deviations have two decimals: below, rounding is more than a twentieth of them.
LEAST_STD = 0.1

# Variance of what rounding to whole numbers takes away.
_ROUNDING = 1 / 12

# 4% apart, beyond any image.
_EDGES = np.concatenate([[0.0], np.geomspace(0.01, 1e6, 460)])

READINGS: dict[str, str] = {
    "as_said": "as the CSV says",
    "truncated": "means cut to whole numbers instead of rounded",
    "crop_ignored": "mapped to original pixels without the border crop, so each image's are shifted by its crop",
    "crop_unknown": "mapped to original pixels as if no border had been cropped, by the whole image's size",
    "padding_swapped": "mapped to original pixels with the padding's left and top exchanged",
    "crop_ignored_padding_swapped": "both without the border crop and with the padding exchanged",
    "crop_unknown_padding_swapped": "both as if no border had been cropped and with the padding exchanged",
    "other_frame": "in the pixels of the other frame than the CSV's sizes say",
    "axes_swapped": "with x and y exchanged",
    "row_before": "of the image one row before",
    "row_after": "of the image one row after",
    "shifted": "shifted as a whole, by another amount than its crop",
    "unexplained": "different in a way that has no name",
}
"""Ways to read a published row; an image gets the first that explains it."""

MAPPINGS = (
    "crop_ignored",
    "crop_unknown",
    "padding_swapped",
    "crop_ignored_padding_swapped",
    "crop_unknown_padding_swapped",
)
"""Those of the published mapping to original pixels, which is known to be wrong in some images."""

MAPPED = ("as_said", *MAPPINGS)
"""Ways in which the means of all images may have been mapped."""

KNOWN = ("as_said", "truncated", *MAPPINGS)
"""Those that the published data set may have."""

_NAMES = list(READINGS)


@dataclass(frozen=True)
class Pairs:
    """Images that are on both sides, row by row the same.

    Attributes:
        mean, std: regenerated landmarks, float64 [B, 120, 2], x then y, original pixels.
        published_mean, published_std: those of the CSV in its pixels; std is NaN where it has none.
        crop, pad: of the letterbox, float64 [B, 2], left then top, original pixels.
        scale: of the letterbox, float64 [B], pixels of the 1024 frame per original pixel.
        size: width and height of the image, float64 [B, 2].
    """

    mean: Floats
    std: Floats
    published_mean: Floats
    published_std: Floats
    crop: Floats
    pad: Floats
    scale: Floats
    size: Floats

    def __len__(self) -> int:
        return len(self.scale)

    def take(self, rows: NDArray[np.int64]) -> Pairs:
        return Pairs(*(getattr(self, one.name)[rows] for one in fields(self)))

    def joined(self, others: Pairs) -> Pairs:
        return Pairs(*(np.concatenate([getattr(self, one.name), getattr(others, one.name)]) for one in fields(self)))

    def to_frame(self, points: Floats) -> Floats:
        """Original pixels -> pixels of the 1024 frame, as `Letterbox.to_frame` does for one image."""
        return (points + (self.pad - self.crop)[:, None]) * self.scale[:, None, None]


@dataclass(frozen=True)
class Draws:
    """How many draws the means of either side are of."""

    ours: int
    published: int


@dataclass(frozen=True)
class Reading:
    """Both sides as one way of reading has them, in the pixels of the CSV.

    Attributes:
        mean, std: regenerated, float64 [B, 120, 2].
        published_mean, published_std: likewise.
        rounding: variance of the published means' rounding, float64 [B, 1, 1].
    """

    mean: Floats
    std: Floats
    published_mean: Floats
    published_std: Floats
    rounding: Floats

    @property
    def difference(self) -> Floats:
        """Published less regenerated, float64 [B, 120, 2]."""
        return self.published_mean - self.mean

    def sigma(self, draws: Draws) -> Floats:
        """Standard deviation that the difference is expected to have, float64 [B, 120, 2].

        Two means of N independent draws and the rounding of one of them. Landmarks without a spread count as one draw.
        """
        ours, theirs = self.std**2, self.published_std**2
        # N - 1, since the standard deviations divide by N.
        published = np.where(np.isnan(theirs), ours, theirs / (draws.published - 1))
        return np.sqrt(ours / max(1, draws.ours - 1) + published + self.rounding)

    def misfit(self, draws: Draws) -> Floats:
        """Largest, over organs and axes, of the median node's difference in expected standard deviations, [B].

        An image's latents move all nodes together, so they are no independent tests; the median leaves out the few
        nodes that the lookup's rounding moves.
        """
        size = np.abs(self.difference) / self.sigma(draws)
        return np.max([np.median(size[:, nodes], axis=1) for nodes in LANDMARKS.values()], axis=(0, 2))


def said(pairs: Pairs, frame: Frame) -> Reading:
    """Both sides in the pixels of the CSV, if its landmarks are in that frame."""
    published = pairs.published_mean, pairs.published_std
    scale = pairs.scale[:, None, None]
    if frame == "1024":
        return Reading(pairs.to_frame(pairs.mean), pairs.std * scale, *published, np.full_like(scale, _ROUNDING))
    # Rounded in the 1024 frame, mapped, and rounded again.
    rounding = np.where(scale == 1, 1, 1 / scale**2 + 1) * _ROUNDING
    return Reading(pairs.mean, pairs.std, *published, rounding)


def told_frame(sizes: NDArray[np.int64], pairs: Pairs) -> Frame | None:
    """The frame that a CSV's sizes tell, or None where they fit both.

    Args:
        sizes: width and height of its rows, [B, 2], 0 where a row has none.
        pairs: of the same rows.
    """
    sized = sizes.min(axis=1) > 0
    if (sizes[sized] != FRAME).any():
        return "original"
    if sized.any() and (pairs.size[sized] != FRAME).any():
        return "1024"
    untouched = (pairs.scale == 1).all() and not pairs.crop.any() and not pairs.pad.any()
    return "original" if sized.any() and untouched else None


def fitting_frame(pairs: Pairs, draws: Draws) -> Frame:
    """The frame in which the landmarks are nearer to the regenerated ones."""
    original, frame = (float(np.median(said(pairs, one).misfit(draws))) for one in ("original", "1024"))
    return "original" if original <= frame else "1024"


@dataclass(frozen=True)
class Images:
    """What a comparison keeps of each image, [B].

    Attributes:
        reading: index in `READINGS`.
        misfit: see `Reading.misfit`, as the CSV says.
        distances: mean distance of each organ's landmarks, [B, 3], pixels of the 1024 frame, under its reading if that
            is a known one.
        chance: mean distance to another image's landmarks, likewise; NaN where there is no other.
        shift: median difference on each axis, [B, 2], pixels of the CSV, as the CSV says.
        shifts: likewise under each of `MAPPED`, [B, M, 2]; NaN where it does not explain the image.
        spread: logarithm of the median ratio of standard deviations, ours over published, under its reading likewise;
            NaN without those.
        alignment: how far nodes whose x spreads more than y are the same on both sides, in [-1, 1], likewise.
        scale: of the letterbox.
    """

    reading: NDArray[np.int8]
    misfit: NDArray[np.float32]
    distances: NDArray[np.float32]
    chance: NDArray[np.float32]
    shift: NDArray[np.float32]
    shifts: NDArray[np.float32]
    spread: NDArray[np.float32]
    alignment: NDArray[np.float32]
    scale: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.reading)

    def count(self, reading: str) -> int:
        return int((self.reading == _NAMES.index(reading)).sum())

    def of(self, reading: str) -> NDArray[np.bool_]:
        """Which images have a reading."""
        return np.asarray(self.reading == _NAMES.index(reading))


@dataclass
class Comparison:
    """What the images of one source add up to, a chunk at a time in the order of the CSV.

    Attributes:
        frame: that the CSV says its landmarks are in.
        draws: of either side.
    """

    frame: Frame
    draws: Draws
    _images: list[Images] = field(default_factory=list)
    _differences: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) - 1, np.int64))
    _expected: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) - 1, np.int64))
    largest: float = 0.0
    coordinates: int = 0
    within_rounding: int = 0
    within_expected: int = 0

    def __len__(self) -> int:
        return sum(map(len, self._images))

    def add(self, pairs: Pairs, before: Pairs) -> tuple[Images, Floats, Floats]:
        """Compare the next chunk; `before` are the rows of the CSV that each of it follows.

        Returns:
            What is kept of it, and the regenerated and the published landmarks in the 1024 frame, float64 [B, 120, 2];
            of the published ones is taken back what a known reading explains.
        """
        base = said(pairs, self.frame)
        reading, explained = self._explain(pairs, before, base)
        self._count(pairs, explained)
        ours, published = pairs.to_frame(pairs.mean), base.mean + explained.difference
        if self.frame == "original":
            published = pairs.to_frame(published)
        apart = np.linalg.norm(published - ours, axis=2)
        distances = np.stack([apart[:, LANDMARKS[organ]].mean(axis=1) for organ in ORGANS], axis=1)
        others = np.roll(np.arange(len(pairs)), len(pairs) // 2)
        chance = np.linalg.norm(published - ours[others], axis=2).mean(axis=1)
        if len(pairs) == 1:
            chance[:] = np.nan
        images = Images(
            reading,
            base.misfit(self.draws).astype(np.float32),
            distances.astype(np.float32),
            chance.astype(np.float32),
            np.median(base.difference, axis=1).astype(np.float32),
            self._shifts(pairs, before, base).astype(np.float32),
            _spread(explained).astype(np.float32),
            _alignment(explained).astype(np.float32),
            pairs.scale.astype(np.float32),
        )
        self._images.append(images)
        return images, ours, published

    @property
    def images(self) -> Images:
        """All of them so far."""
        parts = ([getattr(images, one.name) for images in self._images] for one in fields(Images))
        return Images(*(np.concatenate(part) for part in parts))

    def difference_quantile(self, q: float) -> float:
        """Quantile q of the absolute differences of coordinates, pixels of the CSV, to 4%."""
        return min(self.largest, _quantile(self._differences, q))

    def expected_quantile(self, q: float) -> float:
        """Quantile q of the standard deviations that they are expected to have, likewise."""
        return _quantile(self._expected, q)

    def of_neighbour(self, pairs: Pairs, before: Pairs) -> NDArray[np.bool_]:
        """Which images' rows hold the landmarks of the image one row before or after, [B]."""
        readings = (_row_before(pairs, before, self.frame), _row_after(pairs, before, self.frame))
        return np.asarray(np.any([one.misfit(self.draws) <= EXPLAINED for one in readings], axis=0))

    def _shifts(self, pairs: Pairs, before: Pairs, base: Reading) -> Floats:
        """See `Images.shifts`; a mapping that comes to the same as the CSV's is that."""
        shifts = np.empty((len(pairs), len(MAPPED), 2))
        for index, name in enumerate(MAPPED):
            reading = _READERS[name](pairs, before, self.frame) or base
            shifts[:, index] = np.median(reading.difference, axis=1)
            shifts[reading.misfit(self.draws) > EXPLAINED, index] = np.nan
        return shifts

    def _explain(self, pairs: Pairs, before: Pairs, base: Reading) -> tuple[NDArray[np.int8], Reading]:
        """Index in `READINGS` of each image, [B], and that reading of it if it is a known one, else as the CSV says."""
        found = np.full(len(pairs), _NAMES.index("unexplained"), np.int8)
        mean, std = base.mean.copy(), base.std.copy()
        left = np.arange(len(pairs))
        for name, read in _READERS.items():
            reading = read(pairs.take(left), before.take(left), self.frame)
            if reading is None:
                continue
            fits = reading.misfit(self.draws) <= EXPLAINED
            found[left[fits]] = _NAMES.index(name)
            if name in KNOWN:
                mean[left[fits]], std[left[fits]] = reading.mean[fits], reading.std[fits]
            left = left[~fits]
            if not len(left):
                break
        return found, Reading(mean, std, base.published_mean, base.published_std, base.rounding)

    def _count(self, pairs: Pairs, explained: Reading) -> None:
        size, sigma = np.abs(explained.difference), explained.sigma(self.draws)
        # In original pixels, half a pixel of the 1024 frame besides half of one's own.
        half = 0.5 if self.frame == "1024" else np.where(pairs.scale == 1, 0.5, 0.5 / pairs.scale + 0.5)[:, None, None]
        self.coordinates += size.size
        self.within_rounding += int((size <= half).sum())
        self.within_expected += int((size <= EXPECTED * sigma).sum())
        self.largest = max(self.largest, float(size.max()))
        self._differences += np.histogram(size.clip(max=_EDGES[-1]), _EDGES)[0]
        self._expected += np.histogram(sigma.clip(max=_EDGES[-1]), _EDGES)[0]


def spread_ratio_expected(draws: Draws) -> float:
    """Ratio of two standard deviations (ddof = 0) of as many draws from the same distribution, ours over published."""
    return float(np.sqrt((1 - 1 / draws.ours) / (1 - 1 / draws.published)))


def mask_dice(ours: str, published: str) -> float | None:
    """Dice of two masks of the same size from their run-length strings; None if one is no such string.

    Two empty masks agree.
    """
    runs = [_runs(rle) for rle in (ours, published)]
    if runs[0] is None or runs[1] is None:
        return None
    (starts, stops), (other_starts, other_stops) = runs[0], runs[1]
    total = int((stops - starts).sum() + (other_stops - other_starts).sum())
    if not len(starts) or not len(other_starts):
        return float(not total)
    # How many pixels of the other mask lie before a pixel is linear along each of its runs and constant between them.
    knots = np.stack([other_starts, other_stops], axis=1).ravel()
    covered = np.repeat(np.concatenate([[0], np.cumsum(other_stops - other_starts)]), 2)[1:-1]
    common = np.interp(stops, knots, covered) - np.interp(starts, knots, covered)
    return float(2 * common.sum() / total)


def _runs(rle: str) -> tuple[Floats, Floats] | None:
    """First pixels and the ones after the last of a run-length string's runs; None if they are not in order."""
    try:
        numbers = np.array(rle.split(), np.float64)
    except ValueError:
        return None
    if len(numbers) % 2:
        return None
    starts, stops = numbers[0::2], numbers[0::2] + numbers[1::2]
    ordered = (stops > starts).all() and (starts[1:] >= stops[:-1]).all()
    return (starts, stops) if ordered else None


def _spread(reading: Reading) -> Floats:
    """Logarithm of the median ratio of standard deviations of each image, [B]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(reading.std / reading.published_std)
    ratio[~(reading.published_std >= LEAST_STD) | ~np.isfinite(ratio)] = np.nan
    some = np.isfinite(ratio).any(axis=(1, 2))
    result = np.full(len(ratio), np.nan)
    if some.any():
        result[some] = np.nanmedian(ratio[some], axis=(1, 2))
    return result


def _alignment(reading: Reading) -> Floats:
    """Cosine of both sides' logarithms of x's standard deviation over y's, of each image, [B]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ours, published = (np.log(std[..., 0] / std[..., 1]) for std in (reading.std, reading.published_std))
    there = (reading.published_std >= LEAST_STD).all(axis=2) & np.isfinite(ours) & np.isfinite(published)
    ours, published = np.where(there, ours, 0), np.where(there, published, 0)
    length = np.linalg.norm(ours, axis=1) * np.linalg.norm(published, axis=1)
    result = np.full(len(ours), np.nan)
    np.divide((ours * published).sum(axis=1), length, out=result, where=length > 0)
    return result


def _quantile(counts: NDArray[np.int64], q: float) -> float:
    """Quantile q of what lies in the bins of `_EDGES` so many times [bins]."""
    # Not beyond the last bin that holds anything.
    used = np.flatnonzero(counts)[-1] + 1
    total = np.concatenate([[0], np.cumsum(counts[:used])])
    return float(np.interp(q * total[-1], total, _EDGES[: used + 1]))


Reader = Callable[[Pairs, Pairs, Frame], Reading | None]


def _as_said(pairs: Pairs, before: Pairs, frame: Frame) -> Reading | None:
    return said(pairs, frame)


def _truncated(pairs: Pairs, before: Pairs, frame: Frame) -> Reading | None:
    unit = 1 if frame == "1024" else 1 / pairs.scale[:, None, None]
    return _moved(said(pairs, frame), -unit / 2)


def _mapped(crop: Literal["kept", "ignored", "unknown"], swap: bool) -> Reader:
    """Landmarks mapped to original pixels in another way than ours; None where that comes to the same."""

    def read(pairs: Pairs, before: Pairs, frame: Frame) -> Reading | None:
        if frame == "1024" or not (crop == "kept" or pairs.crop.any()):
            return None
        if crop == "unknown":
            side = pairs.size.max(axis=1)
            pad, scale = (side[:, None] - pairs.size) // 2, FRAME / side
        else:
            pad, scale = pairs.pad, pairs.scale
        if swap and not pad.any():
            return None
        offset = pairs.crop * (crop == "kept") - (pad[:, ::-1] if swap else pad)
        base = said(pairs, frame)
        mean = pairs.to_frame(pairs.mean) / scale[:, None, None] + offset[:, None]
        std = pairs.std * (pairs.scale / scale)[:, None, None]
        return Reading(mean, std, base.published_mean, base.published_std, base.rounding)

    return read


def _other_frame(pairs: Pairs, before: Pairs, frame: Frame) -> Reading | None:
    return said(pairs, "original" if frame == "1024" else "1024")


def _axes_swapped(pairs: Pairs, before: Pairs, frame: Frame) -> Reading | None:
    base = said(pairs, frame)
    swapped = base.published_mean[..., ::-1], base.published_std[..., ::-1]
    return Reading(base.mean, base.std, *swapped, base.rounding)


def _row_before(pairs: Pairs, before: Pairs, frame: Frame) -> Reading:
    base, other = said(pairs, frame), said(before, frame)
    return Reading(other.mean, other.std, base.published_mean, base.published_std, other.rounding)


def _row_after(pairs: Pairs, before: Pairs, frame: Frame) -> Reading:
    # The row before this one, which holds what belongs to this one's image.
    base, other = said(pairs, frame), said(before, frame)
    return Reading(base.mean, base.std, other.published_mean, other.published_std, base.rounding)


def _shifted(pairs: Pairs, before: Pairs, frame: Frame) -> Reading | None:
    base = said(pairs, frame)
    return _moved(base, np.median(base.difference, axis=1, keepdims=True))


def _moved(reading: Reading, by: Floats | float) -> Reading:
    """The same with the regenerated means moved."""
    published = reading.published_mean, reading.published_std
    return Reading(reading.mean + by, reading.std, *published, reading.rounding)


# In the order of `READINGS`.
_READERS: dict[str, Reader] = {
    "as_said": _as_said,
    "truncated": _truncated,
    "crop_ignored": _mapped("ignored", swap=False),
    "crop_unknown": _mapped("unknown", swap=False),
    "padding_swapped": _mapped("kept", swap=True),
    "crop_ignored_padding_swapped": _mapped("ignored", swap=True),
    "crop_unknown_padding_swapped": _mapped("unknown", swap=True),
    "other_frame": _other_frame,
    "axes_swapped": _axes_swapped,
    "row_before": _row_before,
    "row_after": _row_after,
    "shifted": _shifted,
}
