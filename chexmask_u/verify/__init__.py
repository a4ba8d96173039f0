"""Is it the published dataset? Regenerated records beside the rows of published CSVs, source by source."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexmask_u import storage
from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.manifests import published
from chexmask_u.releases.diff.compare import QUANTILES, Mover
from chexmask_u.result import BAD_INPUT, DONE, INCOMPLETE, Result
from chexmask_u.settings import VerifySettings
from chexmask_u.steps.mask import organ_rle
from chexmask_u.verify import report
from chexmask_u.verify.compare import (
    READINGS,
    Comparison,
    Draws,
    Floats,
    Frame,
    Images,
    fitting_frame,
    mask_dice,
    told_frame,
)
from chexmask_u.verify.joined import Chunk, Missing, join, share_of
from chexmask_u.verify.records import Records, Regenerated, is_lossless, open_regenerated
from chexmask_u.verify.report import FarImage, text
from chexmask_u.verify.verdict import LEAST_IMAGES, Context, judge, offset, spread

__all__ = ["text", "verify"]

# Masks of so many images of a source are compared, chosen by their ids: drawing them takes longer than all else.
MASK_IMAGES = 2000

_NAMED = re.compile(r"(?P<source>[a-z0-9][a-z0-9-]*)=(?P<csv>.+)")


def verify(settings: VerifySettings) -> dict[str, Any]:
    """Compare what was regenerated with the published CSVs, one source after the other.

    Of a source, its regenerated landmarks are held in memory, and of the CSV, which may have tens of GB, a few hundred
    rows. Where a CSV has a row whose image has no record, or the other way round, that is counted and is no difference:
    a run of 200 images answers for these.

    Returns:
        What verify.json holds: "verdict" is "same", "different" (one source is), or "unusable" (one source could not
        be compared, and none is different).

    Raises:
        InputError: if nothing can be compared, or a CSV cannot be read or is of another source.
    """
    output = None if settings.output is None else storage.normalise(settings.output)
    if output is not None:
        Folder(output).check_own("verification", [report.REPORT])
    csvs = _csvs(settings)
    regenerated = open_regenerated(settings)
    for source, csv in csvs.items():
        _check_source(source, csv, regenerated)
    sources: dict[str, Any] = {}
    far: list[FarImage] = []
    for source, csv in csvs.items():
        try:
            sources[source], images = _verify_source(source, csv, regenerated, settings)
            far = _farthest([*far, *images], settings.movers)
        except InputError as error:
            if len(csvs) == 1:
                raise
            sources[source] = {"published": csv, "verdict": "unusable", "sentence": str(error)}
    verdicts = [source["verdict"] for source in sources.values()]
    worst = next((verdict for verdict in ("different", "unusable") if verdict in verdicts), "same")
    result = {"verdict": worst, "of": regenerated.facts, "sources": sources, "movers": report.movers(far)}
    if output is not None:
        report.write(output, result, far)
    return result


def _csvs(settings: VerifySettings) -> dict[str, str]:
    """The CSV of each source."""
    found: dict[str, str] = {}
    for value in settings.published:
        named = _NAMED.fullmatch(value)
        csv = named["csv"] if named else value
        source = named["source"] if named else published.source_of(csv)
        if source is None:
            raise InputError(
                f"--published {csv}: its columns do not tell its source, or it is no CheXmask CSV; expected the header"
                " as published, or say SOURCE=CSV"
            )
        if source in found:
            raise InputError(f"--published {csv}: is a second CSV of {source}; give one for each source")
        found[source] = csv
    return found


def _check_source(source: str, csv: str, regenerated: Regenerated) -> None:
    if regenerated.sources is not None and source not in regenerated.sources:
        facts = regenerated.facts
        raise InputError(
            f"--published {csv}: is of {source}, and {facts['kind']} {facts['where']} has no record of it, but of"
            f" {', '.join(regenerated.sources)}; give the CSV of one of these (or SOURCE=CSV, if it is)"
        )


def _verify_source(
    source: str, csv: str, regenerated: Regenerated, settings: VerifySettings
) -> tuple[dict[str, Any], list[FarImage]]:
    """What the report says of one source, and the images that differ most."""
    records = regenerated.read(source, csv)
    facts = regenerated.facts
    draws = Draws(facts["numbers"]["samples"], settings.published_samples)
    missing, comparison, found = Missing(), None, _Found(source, records, settings.movers)
    for chunk in join(csv, source, records, missing):
        if comparison is None:
            frame = told_frame(chunk.sizes, chunk.pairs) or fitting_frame(chunk.pairs, draws)
            comparison = Comparison(frame, draws)
        if (kept := found.comparable(chunk, comparison)) is not None:
            found.add(kept, comparison)
    count = 0 if comparison is None else len(comparison)
    if comparison is None or count < LEAST_IMAGES:
        raise InputError(_too_few(csv, records, missing, found.other_size, count, facts))
    context = Context(
        source,
        demonstration=facts["weights"]["source"] == "demo",
        skip=facts["weights"]["variant"] == "skip",
        lossless=is_lossless(facts),
    )
    verdict = judge(comparison, context, found.dice_as_said())
    images, spreads, moved = comparison.images, spread(comparison), offset(comparison)
    return {
        "published": csv,
        "verdict": verdict.verdict,
        "sentence": verdict.sentence,
        "reasons": verdict.reasons,
        "frame": comparison.frame,
        "images": count,
        "readings": {name: images.count(name) for name in READINGS if images.count(name)},
        "missing": asdict(missing) | {"other_size": found.other_size, "size_swapped": found.size_swapped},
        "difference": {name: comparison.difference_quantile(q) for name, q in QUANTILES.items()},
        "expected": {name: comparison.expected_quantile(q) for name, q in QUANTILES.items()},
        "within_expected": comparison.within_expected / comparison.coordinates,
        "within_rounding": comparison.within_rounding / comparison.coordinates,
        "offset": None if moved is None or not moved.seen else (moved.x, moved.y),
        "spread": None if spreads is None else asdict(spreads),
        "dice": report.dice({organ: [value for value, _ in found.dice[organ]] for organ in ORGANS}),
    }, found.far


class _Found:
    """What is kept of one source beside the comparison: masks' overlaps, sizes that differ, the farthest images."""

    def __init__(self, source: str, records: Records, most: int) -> None:
        self.source = source
        self.records = records
        self.most = most
        # With whether the landmarks of the image are as the CSV says.
        self.dice: dict[str, list[tuple[float, bool]]] = {organ: [] for organ in ORGANS}
        self.other_size = self.size_swapped = 0
        self.far: list[FarImage] = []

    def comparable(self, chunk: Chunk, comparison: Comparison) -> Chunk | None:
        """The chunk without images that are of another size than the CSV says, in whose pixels nothing compares.

        Those whose landmarks a neighbouring row has stay: sizes were shifted with them.
        """
        if comparison.frame == "1024":
            return chunk
        own, sizes = chunk.pairs.size, chunk.sizes
        alike = (own == sizes).all(axis=1) | (sizes.min(axis=1) == 0)
        # CSVs of the 1024 frame that say otherwise are judged by their landmarks.
        swapped = ~alike & (own == sizes[:, ::-1]).all(axis=1)
        self.size_swapped += int(swapped.sum())
        kept = alike | swapped
        others = np.flatnonzero(~kept)
        kept[others] = comparison.of_neighbour(chunk.pairs.take(others), chunk.before.take(others))
        self.other_size += int((~kept).sum())
        kept = np.flatnonzero(kept)
        return chunk.take(kept) if len(kept) else None

    def add(self, chunk: Chunk, comparison: Comparison) -> None:
        images, ours, theirs = comparison.add(chunk.pairs, chunk.before)
        self._add_dice(chunk, comparison.frame, images.of("as_said"))
        largest = images.distances.max(axis=1)
        chosen = np.argsort(-largest, kind="stable")[: self.most]
        moved = [self._far(chunk, images, int(row), ours[row], theirs[row]) for row in chosen if largest[row] > 0]
        self.far = _farthest([*self.far, *moved], self.most)

    def _far(self, chunk: Chunk, images: Images, row: int, ours: Floats, theirs: Floats) -> FarImage:
        """An image by its row in the chunk, and its landmarks [120, 2] on either side, pixels of the 1024 frame."""
        organ = int(images.distances[row].argmax())
        pixels = float(images.distances[row, organ])
        mover = Mover(chunk.ids[row], self.source, ORGANS[organ], pixels, theirs, ours)
        return FarImage(mover, list(READINGS)[images.reading[row]], self.records.uri.get(int(chunk.rows[row])))

    def dice_as_said(self) -> dict[str, float]:
        """Median of each organ over the images whose landmarks are as the CSV says, where there are enough."""
        values = {organ: [value for value, as_said in found if as_said] for organ, found in self.dice.items()}
        return {organ: float(np.median(found)) for organ, found in values.items() if len(found) >= LEAST_IMAGES}

    def _add_dice(self, chunk: Chunk, frame: Frame, as_said: NDArray[np.bool_]) -> None:
        share = MASK_IMAGES / max(1, len(self.records.row))
        for row, image_id in enumerate(chunk.ids):
            if share_of(image_id) >= share:
                continue
            pairs = chunk.pairs.take(np.array([row]))
            points = pairs.mean[0].astype(np.float32) if frame == "original" else pairs.to_frame(pairs.mean)[0]
            width, height = (FRAME, FRAME) if frame == "1024" else pairs.size[0].astype(int).tolist()
            if chunk.sizes[row].all() and tuple(chunk.sizes[row]) != (width, height):
                continue
            for organ, published_mask in chunk.masks[row].items():
                if published_mask is None:
                    continue
                found = mask_dice(organ_rle(points, organ, height, width), published_mask)
                if found is not None:
                    self.dice[organ].append((found, bool(as_said[row])))


def _farthest(images: list[FarImage], most: int) -> list[FarImage]:
    return sorted(images, key=lambda image: (-image.mover.pixels, image.mover.source, image.mover.record_id))[:most]


def _too_few(csv: str, records: Records, missing: Missing, other_size: int, count: int, facts: dict[str, Any]) -> str:
    where = f"{facts['kind']} {facts['where']}"
    if not missing.published:
        return f"{csv}: holds no row"
    if not records.row:
        return f"{where}: has no record that did not fail, so there is nothing to compare with {csv}"
    if missing.without_row == len(records.row):
        theirs = next(iter(missing.examples.get("without_record", [])), "")
        return (
            f"none of the {missing.published:,} rows of {csv} (such as {theirs!r}) is of an image of {where} (such as"
            f" {next(iter(records.row))!r}); check that both are of the same images"
        )
    if other_size:
        return (
            f"{csv}: of {other_size:,} images the size is not the one that Height and Width say; compare the"
            " distribution in full size, or the Preprocessed CSV, or see whether rows of the CSV are shifted"
        )
    return f"{csv}: {count} images have a row and a record; a comparison takes at least {LEAST_IMAGES}"


def verb(settings: VerifySettings) -> Result:
    """`chexmask-u verify`."""
    report = verify(settings)
    codes = {"same": DONE, "different": INCOMPLETE, "unusable": BAD_INPUT}
    return Result(report, text(report), codes[report["verdict"]])
