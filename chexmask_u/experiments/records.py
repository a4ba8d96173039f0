"""Records that were made before, of a run, a release or published CSVs: their uncertainty without predicting again."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chexmask_u import record, sources, storage
from chexmask_u.anatomy import FRAME, N_LANDMARKS
from chexmask_u.columns import to_landmarks, to_nodes
from chexmask_u.errors import InputError
from chexmask_u.images.letterbox import Letterbox
from chexmask_u.manifests.published import read_published, source_of
from chexmask_u.releases.release import Release
from chexmask_u.runs.run import Run
from chexmask_u.settings import ExperimentSettings
from chexmask_u.verify.records import OfRelease, OfRun

_NUMBERS = ("image_id", "source", "uncertainty", "latent_uncertainty", "dice_rca_mean")


@dataclass(frozen=True)
class Records:
    """n records, in pixels of the 1024 frame.

    Attributes:
        ids: of the images, as published.
        sources: of each.
        uncertainty: mean node std [n].
        sigma: mean latent sigma [n]; NaN where it was not published.
        dice: Dice RCA (Mean) [n]; NaN where there is none.
        latent_std: sigma [n, 64], or empty [n, 0] unless asked for.
        landmarks, std: [n, 120, 2], or empty [n, 0, 2] unless asked for.
        across: spread of the draws across the contour, in which rare ones count less, [n, 120] likewise; NaN where
            it is not known.
        ood_score: [n]; NaN where a release was made without a calibration.
    """

    ids: list[str]
    sources: list[str]
    uncertainty: NDArray[np.float64]
    sigma: NDArray[np.float64]
    dice: NDArray[np.float64]
    latent_std: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    std: NDArray[np.float64]
    across: NDArray[np.float64]
    ood_score: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


def facts(settings: ExperimentSettings) -> dict[str, Any]:
    """Where the records come from, how many there are, and a digest that tells them from others.

    Raises:
        InputError: if there are none.
    """
    if settings.published:
        names = [storage.redact(url) for url in settings.published]
        rows = sum(len(batch) for url in settings.published for batch in read_published(url))
        digest = hashlib.sha256("\n".join(settings.published).encode()).hexdigest()
        return {"kind": "published", "where": names, "n": rows, "weights": None, "sha256": digest}
    made: OfRun | OfRelease
    if settings.run is not None:
        made = OfRun(Run(storage.normalise(settings.run)))
    else:
        made = OfRelease(storage.normalise(settings.release or ""))
    told = made.facts
    words = f"{told['where']}\n{told['records']}\n{told['weights'].get('sha256')}"
    return {
        "kind": told["kind"],
        "where": storage.redact(told["where"]),
        "n": told["records"],
        "weights": told["weights"],
        "numbers": told["numbers"],
        "sha256": hashlib.sha256(words.encode()).hexdigest(),
    }


def read(
    settings: ExperimentSettings,
    *,
    wanted: Collection[str] | None = None,
    points: bool = False,
    latents: bool = False,
) -> Records:
    """The records that did not fail.

    Args:
        settings: which ones.
        wanted: ids of the images whose records are needed; None for all.
        points: whether landmarks and their std are needed.
        latents: whether every latent's sigma is needed.

    Raises:
        InputError: if they cannot be read, or a published CSV has no std.
    """
    tables: Iterator[pa.Table]
    if settings.published:
        tables = (
            table for url in settings.published for table in _published(url, None if wanted is None else set(wanted))
        )
    elif settings.run is not None:
        tables = _of_run(Run(storage.normalise(settings.run)), points, latents)
    else:
        tables = _of_release(Release.open(storage.normalise(settings.release or "")))
    return collect(tables, wanted=wanted, points=points, latents=latents)


def read_at(url: str, *, latents: bool) -> Records | None:
    """The records of a folder that holds a run or a release; None where it holds neither."""
    folder = storage.normalise(url)
    if Run(folder).read_json("run.json") is not None:
        return collect(_of_run(Run(folder), False, latents), wanted=None, points=False, latents=latents)
    if Run(folder).read_json("release.json") is not None:
        return collect(_of_release(Release.open(folder)), wanted=None, points=False, latents=latents)
    return None


def _of_run(run: Run, points: bool, latents: bool) -> Iterator[pa.Table]:
    columns = [*_NUMBERS, *(_POINTS if points else ()), *(("latent_std",) if latents else ())]
    try:
        scanner = run.dataset().scanner(columns=columns, filter=pc.field("status") == record.OK)
        yield from (pa.Table.from_batches([batch]) for batch in scanner.to_batches())
    except (OSError, pa.ArrowInvalid) as error:
        problem = run.damaged_part() or f"{run.url}: cannot be read ({storage.explain(error)})"
        raise InputError(problem) from error


def _of_release(release: Release) -> Iterator[pa.Table]:
    for source in release.sources:
        yield from release.rows(source, "landmarks")


_POINTS = ("landmarks_mean", "landmarks_std", "landmarks_across", "letterbox")


def _published(url: str, wanted: set[str] | None) -> Iterator[pa.Table]:
    """Rows of a published CSV as records: sizes stand in for the letterbox, which was not published."""
    source = source_of(url) or "published"
    take: Callable[[list[str]], list[bool]] | None = None
    if wanted is not None:
        take = lambda ids: [one in wanted for one in ids]  # noqa: E731
    for batch in read_published(url, wanted=take):
        if batch["landmarks_std"].null_count == len(batch) and len(batch):
            raise InputError(f"{url}: has no column Landmarks (Std); give a CSV of CheXmask-U, which has one")
        rows = [row for row in batch.to_pylist() if row["landmarks_std"] and row["height"] and row["width"]]
        boxes = [_letterbox(row["height"], row["width"]) for row in rows]
        spreads = [box.spread_to_frame(np.asarray(row["landmarks_std"])) for row, box in zip(rows, boxes, strict=True)]
        yield pa.table(
            {
                "image_id": [row["image_id"] for row in rows],
                "source": [source] * len(rows),
                "uncertainty": pa.array([float(spread.mean()) for spread in spreads], pa.float64()),
                "latent_uncertainty": pa.nulls(len(rows), pa.float64()),
                "dice_rca_mean": pa.array([row["dice_rca_mean"] for row in rows], pa.float64()),
                "landmarks_mean": pa.array([row["landmarks_mean"] for row in rows], record.LANDMARK_ARRAY),
                "landmarks_std": pa.array([row["landmarks_std"] for row in rows], record.LANDMARK_ARRAY),
                "landmarks_across": pa.nulls(len(rows), record.NODE_ARRAY),
                "letterbox": pa.array([box.to_row() for box in boxes], record.LETTERBOX),
            }
        )


def _letterbox(height: int, width: int) -> Letterbox:
    side = max(height, width)
    return Letterbox(0, 0, width, height, (side - width) // 2, (side - height) // 2, FRAME / side)


def collect(tables: Iterator[pa.Table], *, wanted: Collection[str] | None, points: bool, latents: bool) -> Records:
    """Tables of records as arrays; see `read`."""
    ids: list[str] = []
    names: list[str] = []
    numbers: list[NDArray[np.float64]] = []
    sigmas: list[NDArray[np.float64]] = []
    landmarks: list[NDArray[np.float64]] = []
    for table in tables:
        given = [sources.get(source).image_id(one) or one for source, one in _pairs(table)]
        if wanted is not None:
            keep = [one in wanted for one in given]
            table, given = table.filter(pa.array(keep, pa.bool_())), [one for one in given if one in wanted]
        if not len(table):
            continue
        ids += given
        names += table["source"].to_pylist()
        numbers.append(np.stack([_floats(table, column) for column in (*_NUMBERS[2:], "ood_score")], axis=1))
        if latents:
            flat = table["latent_std"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            sigmas.append(flat.reshape(len(table), -1).astype(np.float64))
        if points:
            landmarks.append(_in_frame(table))
    of_numbers = np.concatenate(numbers) if numbers else np.zeros((0, 4))
    count = len(ids)
    packed = np.concatenate(landmarks) if landmarks else np.zeros((count, 0, 5))
    return Records(
        ids,
        names,
        of_numbers[:, 0],
        of_numbers[:, 1],
        of_numbers[:, 2],
        np.concatenate(sigmas) if sigmas else np.zeros((count, 0)),
        packed[..., 0:2],
        packed[..., 2:4],
        packed[..., 4],
        of_numbers[:, 3],
    )


def _pairs(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["source"].to_pylist(), table["image_id"].to_pylist(), strict=True)


def _floats(table: pa.Table, column: str) -> NDArray[np.float64]:
    """One column as float64 [n], NaN where it is null or not there."""
    if column not in table.column_names:
        return np.full(len(table), np.nan)
    return np.asarray(table[column].cast(pa.float64()).fill_null(np.nan).to_numpy(), np.float64)


def _in_frame(table: pa.Table) -> NDArray[np.float64]:
    """Mean, std and spread across the contour of each landmark, [n, 120, 5], in the 1024 frame."""
    found = np.full((len(table), N_LANDMARKS, 5), np.nan)
    means, spreads = to_landmarks(table["landmarks_mean"]), to_landmarks(table["landmarks_std"])
    known = "landmarks_across" in table.column_names
    across = to_nodes(table["landmarks_across"]) if known else [None] * len(table)
    boxes = map(Letterbox.from_row, table["letterbox"].to_pylist())
    for row, (mean, std, spread, box) in enumerate(zip(means, spreads, across, boxes, strict=True)):
        if mean is None or std is None:
            continue
        found[row, :, 0:2], found[row, :, 2:4] = box.to_frame(mean), box.spread_to_frame(std)
        if spread is not None:
            found[row, :, 4] = box.spread_to_frame(spread)
    return found


def annotators(given: Sequence[str]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Landmarks [120, 2] of the 1024 frame by person and image, of CSVs with an id column and Landmarks.

    Raises:
        InputError: if a file cannot be used, or people annotated no image in common.
    """
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for value in given:
        name, equals, url = value.partition("=")
        if not equals:
            raise InputError(f"--annotator must be NAME=CSV, not {value!r}")
        found.setdefault(name, {}).update(_annotated(url))
    if not found:
        raise InputError("--annotator is needed: what the records are compared with")
    common = set.intersection(*(set(of) for of in found.values()))
    for name, of in found.items():
        if alone := sorted(set(of) - common):
            raise InputError(
                f"--annotator {name}: {len(alone)} images, such as {alone[0]}, were not annotated by the others; give"
                " people who annotated the same images"
            )
    return found


def _annotated(url: str) -> dict[str, NDArray[np.float64]]:
    fs, path = storage.resolve(url)
    with storage.explained(url):
        text = fs.cat_file(path).decode("utf-8-sig")
    # A mask's runs are long.
    csv.field_size_limit(2**24)
    rows = list(csv.DictReader(io.StringIO(text)))
    key = next((name for name in ("ImageID", "name", "image_id") if rows and name in rows[0]), None)
    if key is None or "Landmarks" not in rows[0]:
        raise InputError(f"{url}: is no CSV with columns ImageID and Landmarks")
    found = {}
    for row in rows:
        values = row["Landmarks"].split(",")
        try:
            points = np.array(values, np.float64).reshape(N_LANDMARKS, 2)
        except ValueError as error:
            raise InputError(
                f"{url}: {row[key]} has {len(values)} values in Landmarks, not {2 * N_LANDMARKS} numbers"
            ) from error
        if not np.isfinite(points).all():
            raise InputError(f"{url}: {row[key]} has landmarks that are no finite numbers")
        found[row[key]] = points
    return found
