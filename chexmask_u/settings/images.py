"""Settings of who has images: manifests, runs, releases, single images and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chexmask_u.errors import InputError
from chexmask_u.record import REASONS
from chexmask_u.settings import common
from chexmask_u.settings.base import INPUT, MACHINES, OUTPUT, Settings, setting
from chexmask_u.settings.common import NO_CALIBRATION

# Of --retry: every reason.
ALL = "all"

# Pixels of the 1024 frame: see `use.doubts.unsure`.
UNSURE, UNSURE_RADIUS = 25.0, 80.0


def _manifest_output() -> Any:
    return setting("manifest.parquet", "Parquet file to write (local path or URL)", kind="FILE")


def _any_name() -> Any:
    return setting(
        False,
        "of a folder or pattern, take every file that is not hidden, whatever its name; what is no image fails with"
        " its reason",
        group=INPUT,
    )


@dataclass(frozen=True)
class ManifestFolderSettings(Settings):
    """List the images below a folder or bucket prefix as a manifest."""

    uri: str = setting("", "folder or URL prefix to list", positional=True, required=True, kind="FOLDER")
    output: str = _manifest_output()
    source: str = setting(
        "folder", "name of these images: their dataset config; lower case, digits and dashes", kind="NAME", group=INPUT
    )
    any_name: bool = _any_name()
    overwrite: bool = common.overwrite()


@dataclass(frozen=True)
class ManifestSourceSettings(Settings):
    """List one published source's images, joined with their rows in a CheXmask CSV."""

    source: str = setting("", "name of the source")
    images: str = setting("", "folder or URL prefix of the distribution as downloaded", required=True, kind="FOLDER")
    chexmask: str | None = setting(
        None,
        "CheXmask CSV of the source, with scores and sizes (default: every frontal image that CheXmask took, without "
        "scores)",
        kind="FILE",
        group=INPUT,
    )
    table: str | None = setting(
        None,
        "the source's own table of its images (default: looked for below --images, by its official name)",
        kind="FILE",
        group=INPUT,
    )
    output: str = _manifest_output()
    problems: str | None = setting(
        None, "CSV file of what did not match (default: beside --output)", kind="FILE", group=OUTPUT
    )
    preprocessed: bool = setting(
        False, "the CSV is a Preprocessed one: take its ids and scores, not its 1024 x 1024", group=INPUT
    )
    all_frontal: bool = setting(
        False,
        "without --chexmask, list the frontal views too that the CheXmask data set left out: CheXpert's second ones",
        group=INPUT,
    )
    check: bool = setting(False, "ask the storage for every image, and leave out what is missing or empty", group=INPUT)
    overwrite: bool = common.overwrite()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preprocessed and self.chexmask is None:
            raise InputError("--preprocessed says what --chexmask is, which is not given")
        if self.all_frontal and self.chexmask is not None:
            raise InputError("--all-frontal goes without --chexmask, whose rows say which views are taken")


@dataclass(frozen=True)
class ManifestMergeSettings(Settings):
    """Join manifests into one and check its totals against those of the CheXmask data set."""

    manifests: tuple[str, ...] = setting(
        (), "manifests to join (local paths or URLs)", positional=True, required=True, kind="FILE"
    )
    output: str = _manifest_output()
    accept_rows: tuple[str, ...] = setting(
        (), "SOURCE=N: accept N rows of a source instead of what is expected; may be repeated", kind="SOURCE=N"
    )
    accept_less: bool = setting(False, "accept fewer rows than expected, of any source")
    overwrite: bool = common.overwrite()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.accepted_rows()

    def accepted_rows(self) -> dict[str, int]:
        """Rows to accept instead of those expected, by source."""
        accepted = {}
        for value in self.accept_rows:
            source, equals, rows = value.partition("=")
            if not (equals and source and rows.isdecimal()):
                raise InputError(f"--accept-rows must be SOURCE=N, such as chexpert=187000, not {value!r}")
            accepted[source] = int(rows)
        return accepted


@dataclass(frozen=True)
class GenerateSettings(Settings):
    """Make landmarks, uncertainty and masks of every image of a manifest; the same command goes on with a run."""

    manifest: str | None = setting(
        None,
        "manifest Parquet file (local path or URL); without one, a demo is drawn and run",
        kind="FILE",
        group=INPUT,
    )
    output: str | None = setting(
        None,
        "folder of the run (local path or URL); the same one resumes it (default, of the demo: ./chexmask-u-demo)",
        kind="FOLDER",
    )
    weights: str = common.weights()
    weights_sha256: str | None = common.weights_sha256()
    samples: int = common.samples()
    seed: int = setting(0, "fixes the draws, together with each record's id", numbers=True)
    max_side: int = common.max_side()
    preparation: str = setting(
        "published",
        "of images, by source; lossless: without the JPEG compression that MIMIC-CXR-JPG's passed through as published",
        numbers=True,
        choices=("published", "lossless"),
    )
    precision: str = common.precision(
        "arithmetic of the encoder; the others move landmarks by pixels, and tf32 needs NVIDIA GPUs"
    )
    device: str = common.device()
    batch_size: int | None = common.batch_size(
        None, "images a replica of the network takes at once (default: 64 on a GPU, 16 on a CPU)"
    )
    replicas: int | None = setting(
        None, "replicas of the network (default: one per GPU that is up, or per 8 cores)", least=1, group=MACHINES
    )
    rows_per_file: int = setting(
        256, "records in one Parquet part, or up to 64 more: the work that a kill can undo", least=1, group=OUTPUT
    )
    retry: tuple[str, ...] = setting(
        (), "do images of this run again that failed: REASON[,REASON...] or all; may be repeated", kind="REASON"
    )
    address: str | None = common.address()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.retried_reasons()
        if self.manifest is not None and self.output is None:
            raise InputError("--output is needed with --manifest: the folder or URL where the run is kept")

    def retried_reasons(self) -> set[str]:
        """Reasons to try again for."""
        given = {reason.strip() for value in self.retry for reason in value.split(",")}
        if unknown := sorted(given - {ALL, *REASONS}):
            raise InputError(f"--retry {unknown[0]}: is no reason; there are {', '.join([ALL, *REASONS])}")
        return set(REASONS) if ALL in given else given


@dataclass(frozen=True)
class SegmentSettings(Settings):
    """Contours, masks and measurements of single images, with a picture of each; exit code 1 if some failed."""

    images: tuple[str, ...] = setting(
        (),
        "PNG, JPEG or DICOM files, folders or quoted patterns (local paths or URLs)",
        positional=True,
        required=True,
        kind="IMAGE",
    )
    output: str = setting(
        "", "folder for pictures, masks, measurements.csv and .json (local path or URL)", required=True, kind="FOLDER"
    )
    weights: str = common.weights()
    weights_sha256: str | None = common.weights_sha256()
    samples: int = common.samples()
    seed: int = setting(0, "fixes the draws, together with each record's id", numbers=True)
    source: str = setting(
        "folder",
        "name of these images, as of manifest folder; a published one is prepared as that was",
        numbers=True,
        kind="NAME",
        group=INPUT,
    )
    any_name: bool = _any_name()
    max_side: int = common.max_side()
    calibration: str | None = setting(
        None,
        "calibration.json of the weights (path or URL), which adds radii and ood_score;"
        f" '{NO_CALIBRATION}' for none (default: the one that lies beside the weights on disk, if one does)",
        kind="FILE",
        group=INPUT,
    )
    unsure: float | None = setting(
        None,
        "mean radius of a region, in pixels of the 1024 frame, above which a warning names it; without a calibration,"
        f" mean std (default: {UNSURE_RADIUS:g}, and {UNSURE:g} of std)",
        numbers=True,
        kind="PIXELS",
        group=OUTPUT,
    )
    label_map: bool = setting(
        False, "write a label map too: 0 outside, 1 right lung, 2 left lung, 3 heart", group=OUTPUT
    )
    preview: bool = setting(
        False, "write preview.html, one page of all images, and open it where there is a display", group=OUTPUT
    )
    overwrite: bool = setting(
        False, "replace what an earlier call made in --output of images that are not among these", group=OUTPUT
    )
    device: str = common.device("where the network runs; auto: on a GPU if there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unsure is not None and not self.unsure > 0:
            raise InputError(f"--unsure must be more than 0, not {self.unsure}")


@dataclass(frozen=True)
class AppSettings(Settings):
    """Serve a page that segments an image and shows how unsure the network is; a demonstration, which keeps nothing."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in", kind="ADDRESS")
    port: int = setting(7860, "port to listen on", least=1, most=65535, kind="PORT")
    weights: str = common.weights()
    weights_sha256: str | None = common.weights_sha256()
    calibration: str | None = setting(
        None,
        "calibration.json of the weights (path or URL), by whose radii landmarks are coloured;"
        f" '{NO_CALIBRATION}' for none (default: the one that lies beside the weights on disk, if one does)",
        kind="FILE",
        group=INPUT,
    )
    max_side: int = common.max_side()
    device: str = common.device("where the network runs; auto: on a GPU if there is one")
    space: str | None = setting(
        None,
        "local folder to write a Hugging Face Space to, that serves the page, instead of serving it here",
        kind="FOLDER",
        group=OUTPUT,
    )


@dataclass(frozen=True)
class ReleaseSettings(Settings):
    """Turn a complete run into one immutable, validated dataset version."""

    run: str = setting("", "folder of the run (local path or URL)", positional=True, required=True, kind="RUN")
    output: str = setting(
        "",
        "folder that holds the releases (local path or URL); the version becomes a folder in it",
        required=True,
        kind="FOLDER",
    )
    version: str | None = setting(
        None,
        "version vX.Y.Z (default: the one that follows the newest in --output, v1.0.0 where there is none)",
        kind="vX.Y.Z",
        group=OUTPUT,
    )
    exclude: tuple[str, ...] = setting(
        (), "source of the run that is left out of the release; may be repeated", kind="SOURCE", group=INPUT
    )
    allow_failed: int | None = setting(
        None, "go on only if at most so many images failed (default: any number)", least=0, group=INPUT
    )
    calibration: str | None = setting(
        None,
        "calibration.json of the weights (path or URL), which adds radii and ood_score to the landmarks;"
        f" '{NO_CALIBRATION}' for none (default: the one that lies beside the weights on disk, if one does)",
        kind="FILE",
        group=INPUT,
    )
    rows_per_shard: int = setting(25_000, "records in one Parquet file and row group", least=1, group=OUTPUT)
    address: str | None = common.address()
