"""One run on storage: its frozen settings, its Parquet parts, what is done, and its report."""

from __future__ import annotations

import platform
import uuid
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from chexmask_u import record, sources, storage
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.manifests.check import ManifestFacts
from chexmask_u.record import ReadError
from chexmask_u.runs import report
from chexmask_u.settings import GenerateSettings
from chexmask_u.steps.read import read_image
from chexmask_u.version import __version__

# How Ray marks a checkpoint whose part is still being written.
_PENDING = ".pending.parquet"

# Says who is writing the run: see `lock`.
LOCK = "run.lock"

# Requests for file footers at the same time, which are all latency on an object store.
_FOOTER_READERS = 32

# Parts that are rewritten at the same time; each is a few MB in memory.
_REWRITERS = 8

# Of every part.
COMPRESSION = "zstd"

# Parts carry a checksum per page, so that a flipped bit is an error and no other landmark.
_VERIFIED = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)

# Of a run whose run.json does not tell.
_UNTOLD_PREPARATION: sources.Preparation = "lossless"

# Libraries whose version can move a number.
VERSIONED = ("torch", "numpy", "opencv-python-headless", "pyarrow", "ray", "pillow")


@dataclass(frozen=True)
class Run(Folder):
    """The folder of a run."""

    @property
    def records(self) -> str:
        """Parquet parts, `record.RECORD`."""
        return self.path("records")

    @property
    def checkpoint(self) -> str:
        """Ray Data's checkpoint: the ids whose records are committed."""
        return self.path("checkpoint")

    def committed_rows(self) -> int:
        """How many records are committed, counted from file footers."""
        fs, path = storage.arrow_filesystem(self.checkpoint)
        files = [file for file in _parquet_files(fs, path) if not file.endswith(_PENDING)]
        return int(pads.dataset(files, filesystem=fs, format="parquet").count_rows()) if files else 0

    def dataset(self, files: Collection[str] | None = None) -> pads.Dataset:
        """The committed records, to be scanned; parts that a killed writer left behind are passed over.

        Args:
            files: those of them that are wanted, as a dataset of this run names them; None for all.
        """
        fs, _ = storage.arrow_filesystem(self.records)
        if files is None:
            files = [file for part in self._parts().values() for file in part]
        return pads.dataset(sorted(files), schema=record.RECORD, filesystem=fs, format=_VERIFIED)

    def damaged_part(self) -> str | None:
        """The first part that cannot be decoded to its end, and why; None if all can, or if the storage fails."""
        fs, _ = storage.arrow_filesystem(self.records)
        for file in self.dataset().files:
            try:
                content = _content(fs, file)
            except OSError:
                return None
            try:
                pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
            except (OSError, pa.ArrowInvalid) as error:
                return (
                    f"{file}: a part of the run's records is damaged ({storage.explain(error)}); delete it, and the"
                    " same `generate` command makes its records again"
                )
        return None

    def lost_parts(self) -> dict[str, list[str]]:
        """Checkpoints whose part is gone, damaged or short, each with the files that are left of the part.

        A disk or a person can lose a file that was committed; its checkpoint alone would still count it as done.

        Raises:
            InputError: if the storage fails; a part is lost only where the storage answers and the part is not whole.
        """
        checkpoint_fs, _ = storage.arrow_filesystem(self.checkpoint)
        records_fs, _ = storage.arrow_filesystem(self.records)

        def is_whole(part: tuple[str, list[str]]) -> bool:
            checkpoint, files = part
            return 0 < _rows(checkpoint_fs, checkpoint) == sum(_rows(records_fs, file) for file in files)

        parts = self._parts()
        try:
            with ThreadPoolExecutor(_FOOTER_READERS) as pool:
                whole = list(pool.map(is_whole, parts.items()))
        except OSError as error:
            raise InputError(f"{self.url}: cannot be read ({storage.explain(error)}); try again later") from error
        return {part[0]: part[1] for part, fine in zip(parts.items(), whole, strict=True) if not fine}

    def redo_lost_parts(self) -> int:
        """Delete what is left of lost parts, and their checkpoints, so that their images are done again."""
        checkpoint_fs, checkpoint_path = storage.arrow_filesystem(self.checkpoint)
        checkpoints = set(_parquet_files(checkpoint_fs, checkpoint_path))
        for file in checkpoints:
            # Object stores rename by a copy and a deletion. Killed between the two, a part is both committed and not,
            # and Ray would delete its records; they are whole, or the part is a lost one.
            if file.endswith(_PENDING) and file.removesuffix(_PENDING) + ".parquet" in checkpoints:
                checkpoint_fs.delete_file(file)
        lost = self.lost_parts()
        self._delete(lost)
        return len(lost)

    def redo_doubled_parts(self) -> int:
        """Delete parts, with their checkpoints, that hold a record which another part holds too; returns how many.

        A machine that a network has cut off can go on writing for a driver that is gone, while the next driver's own
        machines do the same images. What a deleted part alone held is done again.
        """
        checkpoint_fs, _ = storage.arrow_filesystem(self.checkpoint)
        parts = self._parts()
        checkpoints = sorted(parts)
        seen: set[str] = set()
        doubled = []
        with ThreadPoolExecutor(_FOOTER_READERS) as pool:
            read = partial(pq.read_table, filesystem=checkpoint_fs, columns=["record_id"])
            for checkpoint, table in zip(checkpoints, pool.map(read, checkpoints), strict=True):
                ids = table["record_id"].to_pylist()
                if seen.isdisjoint(ids):
                    seen.update(ids)
                else:
                    doubled.append(checkpoint)
        self._delete({checkpoint: parts[checkpoint] for checkpoint in doubled})
        return len(doubled)

    def _delete(self, parts: Mapping[str, list[str]]) -> None:
        """Delete parts: files first, since without the checkpoint nobody would look for what is left of them."""
        checkpoint_fs, _ = storage.arrow_filesystem(self.checkpoint)
        records_fs, _ = storage.arrow_filesystem(self.records)
        for checkpoint, files in parts.items():
            for file in files:
                records_fs.delete_file(file)
            checkpoint_fs.delete_file(checkpoint)

    def retry(self, reasons: Collection[str]) -> int:
        """Take out of the run the rows that failed for these reasons, so that they are done again.

        A part with such rows is replaced by one without, under a new name, by Ray's own two steps: a part counts only
        while its checkpoint is not pending, and Ray deletes pending parts. The old one is made pending before the new
        one is committed; so a kill in between leaves rows to be done again, and never one that is there twice or gone.

        Returns:
            How many rows.

        Raises:
            InputError: if the storage fails; what was done so far stays done.
        """
        wanted = pa.array(sorted(reasons), pa.string())
        parts = self._parts()
        try:
            with ThreadPoolExecutor(_REWRITERS) as pool:
                return sum(pool.map(partial(self._without, wanted), parts.keys(), parts.values()))
        except OSError as error:
            raise InputError(
                self.damaged_part() or f"{self.url}: cannot be rewritten ({storage.explain(error)}); try again later"
            ) from error

    def _without(self, reasons: pa.Array, checkpoint: str, files: list[str]) -> int:
        """Replace a part by one without the rows of these reasons; returns how many there were."""
        checkpoint_fs, checkpoint_path = storage.arrow_filesystem(self.checkpoint)
        records_fs, records_path = storage.arrow_filesystem(self.records)
        # Damage would get a checksum of its own with the rows that are kept.
        part = pads.dataset(files, schema=record.RECORD, filesystem=records_fs, format=_VERIFIED)
        taken = pc.field("reason").isin(reasons)
        count = int(part.count_rows(filter=taken))
        if not count:
            return 0
        kept = part.to_table(filter=~taken)
        name = uuid.uuid4().hex
        new = storage.join(checkpoint_path, name)
        old = checkpoint.removesuffix(".parquet")
        if len(kept):
            pq.write_table(kept.select(["record_id"]), new + _PENDING, filesystem=checkpoint_fs)
            target = storage.join(records_path, f"{name}.parquet")
            pq.write_table(kept, target, filesystem=records_fs, compression=COMPRESSION, write_page_checksum=True)
        checkpoint_fs.move(checkpoint, old + _PENDING)
        if len(kept):
            checkpoint_fs.move(new + _PENDING, new + ".parquet")
        for file in files:
            records_fs.delete_file(file)
        checkpoint_fs.delete_file(old + _PENDING)
        return count

    def _parts(self) -> dict[str, list[str]]:
        """Files of records by the checkpoint that commits them: Ray gives them its name and a suffix."""
        fs, path = storage.arrow_filesystem(self.checkpoint)
        # An empty one, of a machine that lost its power, is a lost part.
        checkpoints = [file for file in _parquet_files(fs, path, empty=True) if not file.endswith(_PENDING)]
        by_name = {PurePosixPath(file).stem: file for file in checkpoints}
        names = sorted(by_name)
        parts: dict[str, list[str]] = {file: [] for file in checkpoints}
        fs, path = storage.arrow_filesystem(self.records)
        for file in _parquet_files(fs, path):
            name = PurePosixPath(file).name
            position = bisect_right(names, name)
            if position and name.startswith(names[position - 1]):
                parts[by_name[names[position - 1]]].append(file)
        return parts


def check_same(run: Run, settings: GenerateSettings, weights: dict[str, Any], manifest_sha256: str | None) -> bool:
    """Check that the run which the folder holds, if any, has the same weights, numbers and manifest.

    Args:
        run: the folder.
        settings: of the run that is to start or go on.
        weights: what run.json is to say of them.
        manifest_sha256: digest of the manifest, or None while it is not known.

    Returns:
        Whether the folder holds a run.

    Raises:
        InputError: naming each difference; or if the folder holds something else than a run.
    """
    stored = run.read_json("run.json")
    if stored is None:
        run.check_own("run", [], ignored=(LOCK,))
        return False
    manifest = stored.get("manifest", {})
    names = manifest.get("sources", {})
    numbers = comparable_numbers(stored.get("numbers", {}), names)
    before = _identity(stored.get("schema_version"), stored.get("weights", {}), numbers, manifest)
    numbers = comparable_numbers(settings.numbers(), names)
    now = _identity(record.SCHEMA_VERSION, weights, numbers, {"sha256": manifest_sha256})
    differing = {name: value for name, value in now.items() if value is not None and value != before.get(name)}
    if differing:
        differences = "; ".join(f"{name} was {before.get(name)}, now {value}" for name, value in differing.items())
        remedy = "choose another --output"
        if list(differing) == ["--preparation"]:
            remedy = f"--preparation {before['--preparation']} goes on with it, or {remedy}"
        raise InputError(f"{run.url}: holds a run with other settings ({differences}); {remedy}")
    return True


def comparable_numbers(numbers: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The settings of run.json's or release.json's `numbers` that numbers of these sources' images depend on.

    `preparation` is one only where an image of theirs differs by it.
    """
    if any(sources.get(name).jpeg_quality is not None for name in names):
        return {"preparation": _UNTOLD_PREPARATION} | dict(numbers)
    return {name: value for name, value in numbers.items() if name != "preparation"}


def told_preparation(frozen: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """What a run's run.json says of how images of these sources became the network's, a sentence each."""
    told = frozen.get("preparation", {})
    untold = sources.describe_preparation(names, _UNTOLD_PREPARATION)
    return {name: told.get(name, sentence) for name, sentence in untold.items()}


def _identity(
    schema_version: str | None, weights: dict[str, Any], numbers: dict[str, Any], manifest: dict[str, Any]
) -> dict[str, Any]:
    """What may not change between the attempts of one run, by the name that a user knows it by."""
    return {
        "schema": schema_version,
        "weights sha256": weights.get("sha256"),
        "manifest sha256": manifest.get("sha256"),
        **{f"--{name.replace('_', '-')}": value for name, value in numbers.items()},
    }


def freeze(run: Run, settings: GenerateSettings, manifest: ManifestFacts, weights: dict[str, Any]) -> None:
    """Write run.json, unless the folder holds the same run already.

    Raises:
        InputError: as `check_same` does.
    """
    if check_same(run, settings, weights, manifest.sha256):
        return
    frozen = {
        "schema_version": record.SCHEMA_VERSION,
        "settings": settings.asdict(),
        "numbers": settings.numbers(),
        "preparation": sources.describe_preparation(manifest.sources, settings.numbers()["preparation"]),
        "manifest": manifest.asdict(),
        "weights": weights,
        "versions": versions(),
    }
    # Nothing reads its URLs again, and people show it to others.
    run.write_json("run.json", frozen)


def versions() -> dict[str, str]:
    """Versions of this code and of what its numbers depend on."""
    return {"chexmask_u": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in VERSIONED
    }


def write_report(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Summarise the run's records and write report.json and report.html; `facts` are added to the summary.

    It scans every record and reads the contact sheet's images again, so a worker does it and not the driver.
    """
    dataset = run.dataset()
    try:
        summary = report.summarise(dataset)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            run.damaged_part() or f"{run.url}: cannot be read ({storage.explain(error)}); try again later"
        ) from error
    frozen = run.read_json("run.json") or {}
    summary |= {"preparation": told_preparation(frozen, summary["sources"])} | facts
    as_read = {
        "max_side": frozen["settings"]["max_side"],
        "preparation": frozen["numbers"].get("preparation", _UNTOLD_PREPARATION),
    }
    pictures = []
    ranks = {chosen["record_id"]: chosen["rank"] for chosen in summary["contact_sheet"]}
    for row in report.chosen_rows(dataset, list(ranks)).to_pylist():
        try:
            image = read_image(row["uri"], source=row["source"], **as_read).image
        except ReadError:
            # It was there when its record was made; a report is not worth failing for.
            continue
        pictures.append(report.to_picture(row, image, ranks[row["record_id"]]))
    run.write("report.html", report.render_html(summary, frozen, pictures))
    # Last: it is what says that a run is complete.
    run.write_json("report.json", summary)
    return summary


def _parquet_files(fs: pafs.FileSystem, path: str, *, empty: bool = False) -> list[str]:
    """Parquet files below a folder, sorted; those that hold nothing only if they are asked for."""
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    found = [info for info in fs.get_file_info(selector) if info.is_file and info.path.endswith(".parquet")]
    return sorted(info.path for info in found if info.size or empty)


def _content(fs: pafs.FileSystem, file: str) -> pa.Buffer:
    """A file in memory: damage and a failing storage can raise the same, and of this only the storage can fail."""
    with fs.open_input_file(file) as stream:
        return stream.read_buffer()


def _rows(fs: pafs.FileSystem, file: str) -> int:
    """Rows that a Parquet file's footer says it has; one whose footer cannot be parsed has lost them all.

    Raises:
        OSError: if the storage fails, which says nothing of the file.
    """
    damaged = (OSError, pa.ArrowInvalid)
    try:
        with fs.open_input_file(file) as stream:
            return int(pq.read_metadata(stream).num_rows)
    except damaged:
        content = _content(fs, file)
    try:
        return int(pq.read_metadata(pa.BufferReader(content)).num_rows)
    except damaged:
        return 0
