"""One frozen dataclass per verb: the source of its flags, its validation and what the run report says of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


class SettingsError(ValueError):
    """A setting that cannot be; the message is one line that names the flag."""


def setting(default: Any, help: str, *, numbers: bool = False, choices: tuple[str, ...] | None = None) -> Any:
    """A field with its help text; `numbers` marks what the results depend on, which a resumed run may not change."""
    return field(default=default, metadata={"help": help, "numbers": numbers, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What all verbs share: settings know what they are called, and which of them fix the numbers."""

    def numbers(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("numbers")}

    def asdict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Self:
        given = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        # argparse collects repeated values in lists.
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

    def _at_least(self, **minima: int) -> None:
        for name, minimum in minima.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise SettingsError(f"--{name.replace('_', '-')} must be at least {minimum}, not {value}")


@dataclass(frozen=True)
class GenerateSettings(Settings):
    """Regenerate landmarks, uncertainty and masks for every image of a manifest."""

    manifest: str | None = setting(
        None, "manifest Parquet file (local path or URL); without one, a demo is drawn and run"
    )
    output: str | None = setting(None, "folder of the run (local path or URL); the same one resumes it")
    weights: str = setting("demo", "'demo' (bundled), a .safetensors or .pt file, or hf://ORG/REPO/FOLDER[@REVISION]")
    weights_sha256: str | None = setting(None, "digest that the weight file must have")
    samples: int = setting(50, "draws N per image", numbers=True)
    seed: int = setting(0, "fixes the draws, together with each record's id", numbers=True)
    max_side: int = setting(10_000, "longest side in pixels of an image that is decoded", numbers=True)
    device: str = setting("auto", "where the network runs; auto: on GPUs that are up", choices=("auto", "cpu", "cuda"))
    batch_size: int = setting(16, "images a replica of the network takes at once")
    replicas: int | None = setting(None, "replicas of the network (default: one per GPU that is up, or per 8 cores)")
    rows_per_file: int = setting(256, "records in one Parquet part: the most work that a kill can undo, per writer")
    address: str | None = setting(None, "Ray cluster to use (default: a running one, else a local one is started)")

    def __post_init__(self) -> None:
        self._at_least(samples=1, max_side=32, batch_size=1, replicas=1, rows_per_file=1)
        if self.manifest is not None and self.output is None:
            raise SettingsError("--output is needed with --manifest: the folder or URL where the run is kept")


@dataclass(frozen=True)
class ManifestFolderSettings(Settings):
    """List the images below a folder or bucket prefix as a manifest."""

    uri: str = setting("", "folder or URL prefix to list")
    output: str = setting("manifest.parquet", "Parquet file to write (local path or URL)")
    source: str = setting("folder", "name of these images: their dataset config; lower case, digits and dashes")


@dataclass(frozen=True)
class ManifestSourceSettings(Settings):
    """List one published source's images, joined with their rows in a CheXmask CSV."""

    source: str = setting("", "name of the source")
    images: str = setting("", "folder or URL prefix of the distribution as downloaded")
    chexmask: str | None = setting(
        None, "CheXmask CSV of the source, with scores and sizes (default: every frontal image, without scores)"
    )
    table: str | None = setting(
        None, "the source's own table of its images (default: looked for below --images, by its official name)"
    )
    output: str = setting("manifest.parquet", "Parquet file to write (local path or URL)")
    problems: str | None = setting(None, "CSV file of what did not match (default: beside --output)")
    preprocessed: bool = setting(False, "the CSV is a Preprocessed one: take its ids and scores, not its 1024 x 1024")
    check: bool = setting(False, "ask the storage for every image, and leave out what is missing or empty")

    def __post_init__(self) -> None:
        if not self.images:
            raise SettingsError("--images is needed: the folder or URL prefix of the distribution")
        if self.preprocessed and self.chexmask is None:
            raise SettingsError("--preprocessed says what --chexmask is, which is not given")


@dataclass(frozen=True)
class ManifestMergeSettings(Settings):
    """Join manifests into one and check its totals against those of the CheXmask data set."""

    manifests: tuple[str, ...] = setting((), "manifests to join (local paths or URLs)")
    output: str = setting("manifest.parquet", "Parquet file to write (local path or URL)")
    accept_rows: tuple[str, ...] = setting(
        (), "SOURCE=N: accept N rows of a source instead of what is expected; may be repeated"
    )
    accept_less: bool = setting(False, "accept fewer rows than expected, of any source")

    def __post_init__(self) -> None:
        self.accepted_rows()

    def accepted_rows(self) -> dict[str, int]:
        """Rows to accept instead of those expected, by source."""
        accepted = {}
        for value in self.accept_rows:
            source, equals, rows = value.partition("=")
            if not (equals and source and rows.isdecimal()):
                raise SettingsError(f"--accept-rows must be SOURCE=N, such as chexpert=187000, not {value!r}")
            accepted[source] = int(rows)
        return accepted


@dataclass(frozen=True)
class ReleaseSettings(Settings):
    """Turn a complete run into one immutable, validated dataset version."""

    run: str = setting("", "folder of the run")
    output: str = setting("", "folder that holds the releases; the version becomes a folder in it")
    version: str = setting("v1.0.0", "version vX.Y.Z")
    allow_failed: int | None = setting(None, "go on only if at most so many images failed (default: any number)")
    rows_per_shard: int = setting(25_000, "records in one Parquet file and row group")
    address: str | None = setting(None, "Ray cluster to use (default: a running one, else a local one is started)")

    def __post_init__(self) -> None:
        self._at_least(allow_failed=0, rows_per_shard=1)


@dataclass(frozen=True)
class ValidateSettings(Settings):
    """Check a release: files, checksums, ids, counts and numbers."""

    release: str = setting("", "folder of one version")
