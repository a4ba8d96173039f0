"""What was regenerated, one source at a time: the records of a run or a release, or a sample that is predicted here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from tqdm import tqdm

from chexmask_u import record, sources, storage
from chexmask_u.anatomy import N_LANDMARKS
from chexmask_u.columns import to_landmarks
from chexmask_u.errors import InputError
from chexmask_u.manifests import chexmask_csv
from chexmask_u.manifests.listing import files_below
from chexmask_u.model.device import choose
from chexmask_u.model.predict import predict
from chexmask_u.record import ReadError
from chexmask_u.releases.release import Release
from chexmask_u.runs.identity import UNTOLD_PREPARATION
from chexmask_u.runs.run import Run
from chexmask_u.settings import VerifySettings
from chexmask_u.steps.read import read_image
from chexmask_u.use import pairing
from chexmask_u.weight_files import load_model, say_if_demonstration

Result = TypeVar("Result")

# Without masks, so a few MB.
_BATCH_ROWS = 1024

# Images that are predicted at once.
_PREDICTED = 8


@dataclass
class Records:
    """Regenerated records of one source: 2 kB each, so half a GB of the largest one.

    Attributes:
        row: by image id, as the CSV's rows are named.
        mean, std: float32 [n, 120, 2], x then y, original pixels.
        crop, pad: of the letterbox, int32 [n, 2], left then top.
        scale: of the letterbox, float64 [n].
        size: width and height, int32 [n, 2].
        uri: where each image is, if that is known.
        failed: ids of images that gave no record.
    """

    row: dict[str, int]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    crop: NDArray[np.int32]
    pad: NDArray[np.int32]
    scale: NDArray[np.float64]
    size: NDArray[np.int32]
    uri: dict[int, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    @classmethod
    def empty(cls, count: int) -> Records:
        """Room for so many."""
        points = (count, N_LANDMARKS, 2)
        return cls(
            {},
            np.zeros(points, np.float32),
            np.zeros(points, np.float32),
            np.zeros((count, 2), np.int32),
            np.zeros((count, 2), np.int32),
            np.zeros(count),
            np.zeros((count, 2), np.int32),
        )

    def add(self, source: str, rows: pa.Table) -> None:
        """Add rows of `record.RECORD` or of a landmark config, of images that did not fail."""
        first, last = len(self.row), len(self.row) + len(rows)
        if not len(rows):
            return
        for name in ("mean", "std"):
            getattr(self, name)[first:last] = np.stack([*_points(rows[f"landmarks_{name}"])])
        boxes = {name: rows["letterbox"].combine_chunks().field(name) for name in record.LETTERBOX.names}
        for name in ("crop", "pad"):
            getattr(self, name)[first:last] = np.stack([boxes[f"{name}_left"], boxes[f"{name}_top"]], axis=1)
        self.scale[first:last] = boxes["scale"].to_numpy()
        self.size[first:last] = np.stack([rows["width"].to_numpy(), rows["height"].to_numpy()], axis=1)
        for index, image_id in enumerate(rows["image_id"].to_pylist(), first):
            self.row[_as_published(source, image_id)] = index
        if "uri" in rows.column_names:
            self.uri.update(enumerate(rows["uri"].to_pylist(), first))


class Regenerated(Protocol):
    """Where records come from.

    Attributes:
        facts: what the report says of them: kind, where, weights, numbers, preparation, and whether they are all.
        sources: records and failures of each source, where that is known beforehand.
    """

    facts: dict[str, Any]
    sources: dict[str, int] | None

    def read(self, source: str, csv: str) -> Records:
        """The records of one source; `csv` is what they will be compared with."""
        ...


def open_regenerated(settings: VerifySettings) -> Regenerated:
    """The run, release or images of the settings.

    Raises:
        InputError: if there is none, or it holds no record; CheckpointError if the weights cannot be loaded.
    """
    if settings.run is not None:
        return OfRun(Run(storage.normalise(settings.run)))
    if settings.release is not None:
        return OfRelease(storage.normalise(settings.release))
    return OfImages(settings)


def is_lossless(facts: Mapping[str, Any]) -> bool:
    """Whether images were prepared without the lossy compression that a source's published ones passed through."""
    return bool(facts["numbers"].get("preparation", UNTOLD_PREPARATION) == "lossless")


class OfRun:
    """The committed records of a run, which need not be complete: each is final, and looking early is the point."""

    def __init__(self, run: Run) -> None:
        self.run = run
        frozen = run.read_json("run.json")
        if frozen is None:
            raise InputError(
                f"{run.url}: holds no run (no run.json); give the folder that `generate --output` wrote{run.nearest()}"
            )
        done = run.committed_rows()
        if not done:
            raise InputError(f"{run.url}: has no record yet; let `generate` make some")
        table = self._guarded(lambda: run.dataset().to_table(columns=["source"]))
        self.sources: dict[str, int] | None = _value_counts(table["source"])
        self.facts = {
            "kind": "run",
            "where": run.url,
            "weights": frozen["weights"],
            "numbers": frozen["numbers"],
            "preparation": frozen.get("preparation"),
            "records": done,
            "complete": done == frozen["manifest"]["rows"],
            "manifest_rows": frozen["manifest"]["rows"],
        }

    def read(self, source: str, csv: str) -> Records:
        dataset = self.run.dataset()
        of_source = pc.field("source") == source
        ok, columns = of_source & (pc.field("status") == record.OK), _columns("uri")
        records = Records.empty(self._guarded(lambda: dataset.count_rows(filter=ok)))
        # What is read ahead would be all columns of several parts.
        little = pads.ParquetFragmentScanOptions(pre_buffer=False, page_checksum_verification=True)
        scan = {"batch_size": _BATCH_ROWS, "batch_readahead": 1, "fragment_readahead": 1}

        def fill() -> None:
            scanner = dataset.scanner(columns=columns, filter=ok, fragment_scan_options=little, **scan)
            for batch in _shown(scanner.to_batches(), len(records.scale), source):
                records.add(source, pa.Table.from_batches([batch]))
            failed = dataset.to_table(columns=["image_id"], filter=of_source & (pc.field("status") == record.FAILED))
            records.failed = {_as_published(source, name) for name in failed["image_id"].to_pylist()}

        self._guarded(fill)
        return records

    def _guarded(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except (OSError, pa.ArrowInvalid) as error:
            problem = self.run.damaged_part() or f"{self.run.url}: cannot be read ({storage.explain(error)})"
            raise InputError(problem) from error


class OfRelease:
    """The records of a release."""

    def __init__(self, folder: str) -> None:
        self.release = Release.open(folder)
        content = self.release.content
        self.sources: dict[str, int] | None = {
            source: counts["ok"] + counts["failed"] for source, counts in self.release.counts.items()
        }
        self.facts = {
            "kind": "release",
            "where": folder,
            "version": self.release.version,
            "weights": content["weights"],
            "numbers": content["numbers"],
            "preparation": content.get("preparation"),
            "records": self.release.records,
            "complete": True,
        }

    def read(self, source: str, csv: str) -> Records:
        records = Records.empty(self.release.counts[source]["ok"])
        for table in _shown(self.release.rows(source, "landmarks"), len(records.scale), source):
            if len(records.row) + len(table) > len(records.scale):
                raise InputError(f"{self.release.url}: holds more records of {source} than its release.json says")
            records.add(source, table.select(_columns()))
        for table in self.release.rows(None, "failures"):
            failed = table.filter(pc.equal(table["source"], source))
            records.failed.update(_as_published(source, name) for name in failed["image_id"].to_pylist())
        return records


class OfImages:
    """A sample of the images that the CSV has, predicted in this process."""

    def __init__(self, settings: VerifySettings) -> None:
        self.settings = settings
        self.root = storage.normalise(settings.images or "")
        self.model = load_model(settings.weights or "", device=choose(settings.device))
        say_if_demonstration(settings.weights or "")
        self.files = files_below(self.root).paths
        self.sources: dict[str, int] | None = None
        self.facts = {
            "kind": "images",
            "where": self.root,
            "weights": {
                "source": settings.weights,
                "sha256": self.model.sha256,
                "variant": self.model.variant,
                "input_size": self.model.input_size,
            },
            # Images are read as their source's published ones were.
            "numbers": {"samples": settings.samples, "seed": settings.seed, "preparation": "published"},
            "preparation": None,
            "complete": True,
        }

    def read(self, source: str, csv: str) -> Records:
        chosen = self._sample(source, csv)
        records, problem = Records.empty(len(chosen)), ""
        for first in _shown(range(0, len(chosen), _PREDICTED), len(chosen), source):
            rows = []
            for image_id, path in chosen[first : first + _PREDICTED]:
                uri = storage.join(self.root, path)
                try:
                    image = read_image(uri, source=source)
                except ReadError as error:
                    records.failed.add(image_id)
                    problem = str(error)
                else:
                    rows.append((image_id, uri, image))
            if not rows:
                continue
            prepared = np.stack([image.image for _, _, image in rows])
            names = [f"{source}/{image_id}" for image_id, _, _ in rows]
            predicted = predict(self.model, prepared, names, self.settings.samples, self.settings.seed)
            for index, (image_id, uri, image) in enumerate(rows):
                row, box = len(records.row), image.letterbox
                records.row[image_id], records.uri[row] = row, uri
                records.mean[row] = box.to_original(predicted.landmarks_mean[index])
                records.std[row] = box.spread_to_original(predicted.landmarks_std[index])
                records.crop[row], records.pad[row] = (box.crop_left, box.crop_top), (box.pad_left, box.pad_top)
                records.scale[row], records.size[row] = box.scale, (image.width, image.height)
        if not records.row:
            raise InputError(f"none of {len(chosen)} sampled images can be read, for instance {problem}")
        return records

    def _sample(self, source: str, csv: str) -> list[tuple[str, str]]:
        """Ids and paths of images that are on both sides: pairs of neighbouring rows, so that shifted ones are seen."""
        paths = {}
        for path in self.files:
            if (image_id := pairing.id_of(source, path)) is not None:
                paths[image_id] = path
        known = sources.get(source)
        if not paths:
            raise InputError(
                f"{self.settings.images}: holds no image of {known.title}; expected {known.layout or 'image files'}"
            )
        columns = {known.id_column: pa.string()}
        both: dict[str, str] = {}
        example = ""
        for batch in chexmask_csv.stream_rows(known, csv, columns):
            ids = chexmask_csv.image_ids(known, batch[known.id_column])
            example = example or next(filter(None, ids), "")
            both.update((image_id, paths[image_id]) for image_id in ids if image_id in paths)
        if not both:
            raise InputError(
                f"{csv}: none of its rows (such as {example!r}) has an image below {self.settings.images} (such as"
                f" {next(iter(paths))!r}); check that both are of {known.title}"
            )
        rows = list(both.items())
        twos = [rows[start : start + 2] for start in range(0, len(rows), 2)]
        count = min(len(twos), -(-self.settings.probe // 2))
        chosen = np.sort(np.random.default_rng(self.settings.seed).choice(len(twos), count, replace=False))
        return [row for index in chosen for row in twos[index]]


def _as_published(source: str, image_id: str) -> str:
    """The id that published rows have; a user may have listed a source's folder, whose ids are paths."""
    return sources.get(source).image_id(image_id) or image_id


def _points(column: pa.ChunkedArray) -> Iterator[NDArray[np.float32]]:
    """Landmarks of records that did not fail, which all have them."""
    return (points for points in to_landmarks(column) if points is not None)


def _columns(*more: str) -> list[str]:
    return ["image_id", "height", "width", "letterbox", "landmarks_mean", "landmarks_std", *more]


def _shown(steps: Any, count: int, source: str) -> Any:
    """A bar on a terminal only; a whole source takes minutes."""
    return tqdm(steps, desc=f"{source}, records", unit="batch", disable=None) if count > _BATCH_ROWS else steps


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(column.to_pylist()).items()))
