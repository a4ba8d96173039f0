"""The folder of one run: its Parquet parts, the checkpoints that commit them, and what they hold."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from chexmask_u import record, storage
from chexmask_u.folder import Folder

# How Ray marks a checkpoint whose part is still being written.
PENDING = ".pending.parquet"

# Name of the run in the folder of a `generate` without a manifest, which holds its images, run and release.
IN_DEMO = "run"

# Compression of every Parquet part.
COMPRESSION = "zstd"

# Parts carry a checksum per page, so that a flipped bit is an error and no other landmark.
VERIFIED = pads.ParquetFileFormat(
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)


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

    def nearest(self) -> str:
        """The end of a sentence about a folder that holds no run: which one may be meant, if any."""
        below = Run(self.path(IN_DEMO))
        if below.read("run.json") is not None:
            return f"; did you mean {below.url!r}?"
        return storage.nearest(self.url)

    def committed_rows(self) -> int:
        """How many records are committed, counted from file footers."""
        fs, path = storage.arrow_filesystem(self.checkpoint)
        files = [file for file in parquet_files(fs, path) if not file.endswith(PENDING)]
        return int(pads.dataset(files, filesystem=fs, format="parquet").count_rows()) if files else 0

    def failed_rows(self) -> int:
        """How many of the committed records are of images that failed."""
        return int(self.dataset().count_rows(filter=pc.field("status") == record.FAILED))

    def dataset(self, files: Collection[str] | None = None) -> pads.Dataset:
        """The committed records, to be scanned; parts that a killed writer left behind are passed over.

        Args:
            files: those of them that are wanted, as a dataset of this run names them; None for all.
        """
        fs, _ = storage.arrow_filesystem(self.records)
        if files is None:
            files = [file for part in self.parts().values() for file in part]
        return pads.dataset(sorted(files), schema=record.RECORD, filesystem=fs, format=VERIFIED)

    def damaged_part(self) -> str | None:
        """The first part that cannot be decoded to its end, and why; None if all can, or if the storage fails."""
        fs, _ = storage.arrow_filesystem(self.records)
        for file in self.dataset().files:
            try:
                content = content_of(fs, file)
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

    def parts(self) -> dict[str, list[str]]:
        """Files of records by the checkpoint that commits them: Ray gives them its name and a suffix."""
        fs, path = storage.arrow_filesystem(self.checkpoint)
        # An empty one, of a machine that lost its power, is a lost part.
        checkpoints = [file for file in parquet_files(fs, path, empty=True) if not file.endswith(PENDING)]
        by_name = {PurePosixPath(file).stem: file for file in checkpoints}
        names = sorted(by_name)
        parts: dict[str, list[str]] = {file: [] for file in checkpoints}
        fs, path = storage.arrow_filesystem(self.records)
        for file in parquet_files(fs, path):
            name = PurePosixPath(file).name
            position = bisect_right(names, name)
            if position and name.startswith(names[position - 1]):
                parts[by_name[names[position - 1]]].append(file)
        return parts


def parquet_files(fs: pafs.FileSystem, path: str, *, empty: bool = False) -> list[str]:
    """Parquet files below a folder, sorted; those that hold nothing only if they are asked for."""
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    found = [info for info in fs.get_file_info(selector) if info.is_file and info.path.endswith(".parquet")]
    return sorted(info.path for info in found if info.size or empty)


def content_of(fs: pafs.FileSystem, file: str) -> pa.Buffer:
    """A file in memory: damage and a failing storage can raise the same, and of this only the storage can fail."""
    with fs.open_input_file(file) as stream:
        return stream.read_buffer()
