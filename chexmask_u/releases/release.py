"""A release on storage, or one that is to be: what its release.json says, and its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from chexmask_u import record, storage
from chexmask_u.errors import InputError
from chexmask_u.folder import Folder
from chexmask_u.releases import versions

MARKER = "release.json"

# Names the attempt that writes the folder; it goes once the marker is there.
ATTEMPT = "release.unfinished"

# Masks of so many rows are some 100 MB.
READ_ROWS = 1_000

_REMEDY = "copy the release anew, or make it again from its run"


def config(source: str | None, kind: str) -> str:
    """Name of the config that holds one kind of a source's rows; the failures of all sources share one."""
    if kind == "failures" or source is None:
        return "failures"
    return source if kind == "landmarks" else f"{source}-{kind}"


@dataclass(frozen=True, kw_only=True)
class File:
    """One Parquet file of a release, as release.json describes it.

    Attributes:
        path: below the release.
        config, kind: the config that it is of, and a key of `record.RELEASED`.
        rows: how many it holds.
        outside: records with a mean landmark outside their image; of landmarks only, as is `uncertainty`.
        uncertainty: records by the bin of `BIN_EDGES` that their uncertainty lies in.
        odd: records with an `ood_score` beyond `record.ODD_SCORE`; of landmarks of a calibrated release only.
        arrow_bytes: size of its rows in memory, as `datasets` counts it; None where a release does not tell.
        bytes, sha256: of the file.
    """

    path: str
    config: str
    kind: str
    rows: int
    outside: int | None = None
    uncertainty: Mapping[str, int] | None = None
    odd: int | None = None
    arrow_bytes: int | None = None
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        return cls(**{field.name: entry[field.name] for field in fields(cls) if field.name in entry})

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Release(Folder):
    """One version of the dataset.

    Attributes:
        url: of its folder: a local path, or a URL on any storage, the Hugging Face Hub's included.
        content: what its release.json holds, or is to hold.
    """

    content: Mapping[str, Any]

    @classmethod
    def open(cls, url: str) -> Self:
        """The release that lies in a folder.

        Raises:
            InputError: if there is none, or its release.json is damaged.
        """
        folder = Folder(url)
        content = folder.read_json(MARKER)
        if content is None:
            if found := [name for name in folder.names() if versions.is_version(name)]:
                raise InputError(f"{url}: holds the versions {', '.join(found)}; name one of them")
            raise InputError(
                f"{url}: is no release (no {MARKER}), or one that was never finished; `chexmask-u release` makes one"
                f"{storage.nearest(url)}"
            )
        opened = cls(url, content)
        try:
            opened.paths, opened.counts, opened.content["failures"], opened.manifest_rows, opened.schema("landmarks")
            versions.parse(opened.version)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder.path(MARKER)}: is damaged ({storage.explain(error)}); {_REMEDY}") from error
        return opened

    @property
    def version(self) -> str:
        return str(self.content["version"])

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many images of each source are "ok" and "failed"."""
        return dict(self.content["counts"])

    @property
    def manifest_rows(self) -> int:
        """Rows of the manifest that its run is of."""
        return int(self.content["manifest"]["rows"])

    def schema(self, kind: str) -> pa.Schema:
        """Columns of one kind of its configs, a key of `record.RELEASED`."""
        return record.released(kind, self.content["schema_version"], calibrated=self.calibration is not None)

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """What is said of the calibration that radii are of; None where there are none."""
        return self.content.get("calibration")

    @property
    def sources(self) -> list[str]:
        """Sources with records; of one whose images all failed there are none."""
        return [source for source, counts in self.counts.items() if counts["ok"]]

    @property
    def records(self) -> int:
        """How many records it holds."""
        return sum(counts["ok"] for counts in self.counts.values())

    @cached_property
    def files(self) -> tuple[File, ...]:
        """Its Parquet files."""
        return tuple(File.from_json(entry) for entry in self.content["files"])

    @property
    def configs(self) -> dict[str, list[File]]:
        """Files of each config, in the order of their ids."""
        configs: dict[str, list[File]] = {}
        for file in self.files:
            configs.setdefault(file.config, []).append(file)
        return configs

    @property
    def digests(self) -> dict[str, tuple[int, str]]:
        """Size and sha256 of every file by its path, pages first; but for release.json."""
        pages = {name: (page["bytes"], page["sha256"]) for name, page in self.content["pages"].items()}
        return pages | {file.path: (file.bytes, file.sha256) for file in self.files}

    @property
    def paths(self) -> list[str]:
        """Paths of all its files, but for release.json."""
        return list(self.digests)

    def rows(
        self, source: str | None, kind: str, *, at_once: int = READ_ROWS, any_schema: bool = False
    ) -> Iterator[pa.Table]:
        """Rows of one kind and source in the order of their ids, a few at a time; checked against pages' checksums.

        Args:
            source: of the rows; None for failures, which all sources share.
            kind: a key of `record.RELEASED`.
            at_once: rows in one table, or fewer.
            any_schema: whether columns may be others than the release's own.

        Raises:
            InputError: if a file is missing, damaged, or has other columns.
        """
        for file in self.configs.get(config(source, kind), []):
            yield from self.rows_of(file, at_once=at_once, any_schema=any_schema)

    def rows_of(self, file: File, *, at_once: int = READ_ROWS, any_schema: bool = False) -> Iterator[pa.Table]:
        """Rows of one file, as `rows` gives them."""
        url = self.path(file.path)
        fs, path = storage.arrow_filesystem(url)
        with storage.explained(url), fs.open_input_file(path) as stream:
            parquet = pq.ParquetFile(stream, page_checksum_verification=True)
            if not any_schema and not parquet.schema_arrow.equals(self.schema(file.kind)):
                raise InputError(f"{url}: its columns are not those of schema {self.content['schema_version']}")
            for batch in parquet.iter_batches(batch_size=at_once):
                yield pa.Table.from_batches([batch])

    def check_bytes(self) -> None:
        """Check that every file which release.json lists is there, byte for byte.

        Raises:
            InputError: naming the first that is not, and the remedy.
        """
        for name, (size, sha256) in self.digests.items():
            url = self.path(name)
            digest, found = hashlib.sha256(), 0
            fs, path = storage.filesystem(url)
            with storage.explained(url, missing=f"is missing; {_REMEDY}", typed=False), fs.open(path, "rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
                    found += len(chunk)
            if found != size:
                raise InputError(f"{url}: has {found} bytes, not {size}; it was truncated or edited: {_REMEDY}")
            if digest.hexdigest() != sha256:
                raise InputError(f"{url}: its sha256 is not that of {MARKER}; it was edited: {_REMEDY}")

    def made(self, *, before: bool) -> dict[str, Any]:
        """What `release` answers, ready for JSON.

        Args:
            before: whether it was there already.
        """
        return {**self.content, "folder": self.url, "made_before": before}
