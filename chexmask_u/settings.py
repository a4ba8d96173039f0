"""One frozen dataclass per verb: the source of its flags, its validation and what the run report says of it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from chexmask_u.errors import InputError
from chexmask_u.record import REASONS

# Of --retry: every reason.
ALL = "all"

# Pixels of the 1024 frame: see `use.doubts.unsure`.
UNSURE = 5.0

EXPORT_FORMATS = ("chexmask-csv", "coco")


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
                raise InputError(f"--{name.replace('_', '-')} must be at least {minimum}, not {value}")


@dataclass(frozen=True)
class GenerateSettings(Settings):
    """Make landmarks, uncertainty and masks of every image of a manifest; the same command goes on with a run."""

    manifest: str | None = setting(
        None, "manifest Parquet file (local path or URL); without one, a demo is drawn and run"
    )
    output: str | None = setting(
        None, "folder of the run (local path or URL); the same one resumes it (default, of the demo: ./chexmask-u-demo)"
    )
    weights: str = setting("demo", "'demo' (bundled), a .safetensors or .pt file, or hf://ORG/REPO/FOLDER[@REVISION]")
    weights_sha256: str | None = setting(None, "digest that the weight file must have")
    samples: int = setting(50, "draws N per image", numbers=True)
    seed: int = setting(0, "fixes the draws, together with each record's id", numbers=True)
    max_side: int = setting(10_000, "longest side in pixels of an image that is decoded", numbers=True)
    preparation: str = setting(
        "published",
        "of images, by source; lossless: without the JPEG compression that MIMIC-CXR-JPG's passed through as published",
        numbers=True,
        choices=("published", "lossless"),
    )
    precision: str = setting(
        "float32",
        "arithmetic of the encoder; the others move landmarks by pixels, and tf32 needs NVIDIA GPUs",
        numbers=True,
        choices=("float32", "tf32", "bfloat16"),
    )
    device: str = setting("auto", "where the network runs; auto: on GPUs that are up", choices=("auto", "cpu", "cuda"))
    batch_size: int = setting(16, "images a replica of the network takes at once")
    replicas: int | None = setting(None, "replicas of the network (default: one per GPU that is up, or per 8 cores)")
    rows_per_file: int = setting(256, "records in one Parquet part, or up to 32 more: the work that a kill can undo")
    retry: tuple[str, ...] = setting(
        (), "do images of this run again that failed: REASON[,REASON...] or all; may be repeated"
    )
    address: str | None = setting(None, "Ray cluster to use (default: a running one, else a local one is started)")

    def __post_init__(self) -> None:
        self._at_least(samples=1, max_side=32, batch_size=1, replicas=1, rows_per_file=1)
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

    images: tuple[str, ...] = setting((), "PNG, JPEG or DICOM files, folders or quoted patterns (local paths or URLs)")
    output: str = setting("", "folder for pictures, masks, measurements.csv and .json (local path or URL)")
    weights: str = setting("demo", "'demo' (bundled), a .safetensors or .pt file, or hf://ORG/REPO/FOLDER[@REVISION]")
    weights_sha256: str | None = setting(None, "digest that the weight file must have")
    samples: int = setting(50, "draws N per image", numbers=True)
    seed: int = setting(0, "fixes the draws, together with each record's id", numbers=True)
    source: str = setting(
        "folder", "name of these images, as of manifest folder; a published one is prepared as that was", numbers=True
    )
    max_side: int = setting(10_000, "longest side in pixels of an image that is decoded", numbers=True)
    unsure: float = setting(
        UNSURE, "mean std of a region, in pixels of the 1024 frame, above which a warning names it", numbers=True
    )
    label_map: bool = setting(False, "write a label map too: 0 outside, 1 right lung, 2 left lung, 3 heart")
    preview: bool = setting(False, "write preview.html, one page of all images, and open it where there is a display")
    device: str = setting(
        "auto", "where the network runs; auto: on a GPU if there is one", choices=("auto", "cpu", "cuda")
    )

    def __post_init__(self) -> None:
        self._at_least(samples=1, max_side=32)
        # Not `<= 0`, which would let NaN pass.
        if not self.unsure > 0:
            raise InputError(f"--unsure must be more than 0, not {self.unsure}")
        if not self.output:
            raise InputError("--output is needed: the folder or URL for pictures, masks and measurements")


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
        None,
        "CheXmask CSV of the source, with scores and sizes (default: every frontal image that CheXmask took, without "
        "scores)",
    )
    table: str | None = setting(
        None, "the source's own table of its images (default: looked for below --images, by its official name)"
    )
    output: str = setting("manifest.parquet", "Parquet file to write (local path or URL)")
    problems: str | None = setting(None, "CSV file of what did not match (default: beside --output)")
    preprocessed: bool = setting(False, "the CSV is a Preprocessed one: take its ids and scores, not its 1024 x 1024")
    all_frontal: bool = setting(
        False,
        "without --chexmask, list the frontal views too that the CheXmask data set left out: CheXpert's second ones",
    )
    check: bool = setting(False, "ask the storage for every image, and leave out what is missing or empty")

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("--images is needed: the folder or URL prefix of the distribution")
        if self.preprocessed and self.chexmask is None:
            raise InputError("--preprocessed says what --chexmask is, which is not given")
        if self.all_frontal and self.chexmask is not None:
            raise InputError("--all-frontal goes without --chexmask, whose rows say which views are taken")


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
                raise InputError(f"--accept-rows must be SOURCE=N, such as chexpert=187000, not {value!r}")
            accepted[source] = int(rows)
        return accepted


@dataclass(frozen=True)
class BenchSettings(Settings):
    """Measure every part beside the published algorithm and beside what the hardware allows."""

    quick: bool = setting(False, "a small network and few repeats: shows that it works, not how fast it is")
    weights: str | None = setting(
        None, "as for generate (default: those of the package, stretched to 1024 x 1024; their numbers mean nothing)"
    )
    device: str = setting(
        "auto", "where the network runs; auto: on a GPU if there is one", choices=("auto", "cpu", "cuda")
    )
    images: str | None = setting(None, "folder or URL of images (default: drawn ones, on the local disk)")
    output: str | None = setting(None, "local folder to keep the result in, as JSON")
    check: bool = setting(False, "end with exit code 1 if a target is missed")


@dataclass(frozen=True)
class InfoSettings(Settings):
    """Say what a bug report asks for: versions, devices, weights, and the sources with their terms."""

    weights: str = setting("demo", "'demo' (bundled), a .safetensors or .pt file, or hf://ORG/REPO/FOLDER[@REVISION]")
    check: bool = setting(
        False, "predict drawings with the weights: whether the numbers are sane (exit code 1 if not), and how fast"
    )
    device: str = setting(
        "auto", "where --check predicts; auto: on a GPU if there is one", choices=("auto", "cpu", "cuda")
    )


@dataclass(frozen=True)
class PlanSettings(Settings):
    """Forecast a run from a short probe on your own images and hardware."""

    manifest: str = setting("", "manifest Parquet file (local path or URL) to sample")
    weights: str = setting("demo", "'demo' (bundled), a .safetensors or .pt file, or hf://ORG/REPO/FOLDER[@REVISION]")
    samples: int = setting(50, "draws N per image")
    precision: str = setting(
        "float32", "arithmetic of the encoder, as for generate", choices=("float32", "tf32", "bfloat16")
    )
    device: str = setting("auto", "where the network runs; auto: on GPUs that are up", choices=("auto", "cpu", "cuda"))
    probe: int = setting(200, "images to sample")
    seed: int = setting(0, "fixes the sample")
    rows: int | None = setting(None, "images to forecast (default: the manifest's; all of CheXmask are 657566)")
    cpus: int | None = setting(None, "cores of all machines together (default: those that the probe saw)")
    gpus: int | None = setting(None, "GPUs of all machines together (default: those that the probe saw)")
    price_per_hour: float | None = setting(None, "price of all machines together for an hour")
    scratch: str | None = setting(
        None, "folder or URL, seen by every machine, for the probe's own run (default: a temporary local folder)"
    )
    address: str | None = setting(None, "Ray cluster to use (default: a running one, else a local one is started)")

    def __post_init__(self) -> None:
        self._at_least(samples=1, probe=1, rows=1, cpus=1, gpus=1)
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise InputError(f"--price-per-hour must not be negative, not {self.price_per_hour}")


@dataclass(frozen=True)
class ReleaseSettings(Settings):
    """Turn a complete run into one immutable, validated dataset version."""

    run: str = setting("", "folder of the run (local path or URL)")
    output: str = setting("", "folder that holds the releases (local path or URL); the version becomes a folder in it")
    version: str | None = setting(
        None, "version vX.Y.Z (default: the one that follows the newest in --output, v1.0.0 where there is none)"
    )
    exclude: tuple[str, ...] = setting((), "source of the run that is left out of the release; may be repeated")
    allow_failed: int | None = setting(None, "go on only if at most so many images failed (default: any number)")
    rows_per_shard: int = setting(25_000, "records in one Parquet file and row group")
    address: str | None = setting(None, "Ray cluster to use (default: a running one, else a local one is started)")

    def __post_init__(self) -> None:
        self._at_least(allow_failed=0, rows_per_shard=1)


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Write a release as CheXmask's CSVs or as COCO."""

    release: str = setting("", "folder of one version (local path or URL)")
    output: str = setting("", "folder for the files (local path or URL); the same one goes on after an interruption")
    format: str = setting(
        "chexmask-csv",
        "chexmask-csv: the published CSVs, OriginalResolution and Preprocessed; coco: polygons and keypoints",
        choices=EXPORT_FORMATS,
    )

    def __post_init__(self) -> None:
        if self.format not in EXPORT_FORMATS:
            raise InputError(f"--format must be one of {', '.join(EXPORT_FORMATS)}, not {self.format!r}")
        if not (self.release and self.output):
            raise InputError("--output and the release are needed: folders or URLs")


@dataclass(frozen=True)
class PublishSettings(Settings):
    """Publish a release on the Hugging Face Hub: one commit and the version's tag, under each source's terms."""

    release: str = setting("", "folder of one version (local path or URL)")
    repo: str = setting("", "dataset repository ORG/NAME; it is made if there is none")
    private: bool = setting(False, "make a new repository private")
    gated: str | None = setting(
        None,
        "let users of the repository accept its terms first; auto: they need no answer, manual: you grant each request",
        choices=("auto", "manual"),
    )
    accept_terms: tuple[str, ...] = setting(
        (), "SOURCE=open or SOURCE=gated: how data of your own may be published, as you answer for; may be repeated"
    )
    dry_run: bool = setting(False, "send nothing, and show what would be sent")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo, re.ASCII):
            raise InputError(f"--repo must be ORG/NAME, in letters, digits, '-', '_' and '.', not {self.repo!r}")
        self.accepted_terms()

    def accepted_terms(self) -> dict[str, str]:
        """The policy that the user sets for sources, by source."""
        accepted = {}
        for value in self.accept_terms:
            source, _, policy = value.partition("=")
            if not source or policy not in ("open", "gated"):
                raise InputError(f"--accept-terms must be SOURCE=open or SOURCE=gated, not {value!r}")
            accepted[source] = policy
        return accepted


@dataclass(frozen=True)
class DiffSettings(Settings):
    """Say what changed from one release to another: records, pixels, failures; and draft the changelog's entry."""

    before: str = setting("", "folder or URL of one version, or ORG/NAME@vX.Y.Z on the Hugging Face Hub")
    after: str = setting("", "the version to compare it with, given likewise")
    output: str | None = setting(
        None, "folder (local path or URL) for diff.json, diff.png and CHANGELOG.md (default: none is written)"
    )
    movers: int = setting(12, "how many of the records that moved most are listed and drawn")

    def __post_init__(self) -> None:
        self._at_least(movers=1)


@dataclass(frozen=True)
class ValidateSettings(Settings):
    """Check a release: files, checksums, ids, counts and numbers."""

    release: str = setting("", "folder of one version (local path or URL)")


@dataclass(frozen=True)
class AnnotatedSettings(Settings):
    """Which annotated images to take, and what to do with those that cannot be used."""

    data: tuple[str, ...] = setting(
        (),
        "annotated images: FOLDER with images/ and landmarks or masks; or jsrt=, montgomery=, shenzhen= or padchest= "
        "and the folder of that dataset as downloaded; may be repeated",
    )
    landmarks: tuple[str, ...] = setting(
        (),
        "DATASET=PATH: where a dataset's landmarks lie (default: landmarks.npz, landmarks.csv, landmarks/ or masks/ in "
        "its folder); may be repeated",
    )
    landmarks_in: str = setting(
        "auto",
        "pixels that landmarks are in: the image file's own, or those of the 1024 x 1024 frame that it is prepared to; "
        "auto: the file's for a FOLDER, the frame's for the four datasets",
        choices=("auto", "original", "frame"),
        numbers=True,
    )
    drawings: int = setting(0, "drawn radiographs to add", numbers=True)
    on_bad: str = setting(
        "refuse",
        "images or annotations that cannot be used; refuse: stop and name them, skip: leave them out",
        choices=("refuse", "skip"),
    )
    split: str | None = setting(
        None,
        "CSV with columns name and part (train or validation): who is held out (without it, train holds out "
        "--validation of them by a hash of their names, and evaluate scores all)",
    )
    max_side: int = setting(10_000, "longest side in pixels of an image that is decoded")

    def __post_init__(self) -> None:
        self._at_least(drawings=0, max_side=32)
        if not self.data and not self.drawings:
            raise InputError("--data is needed: a folder of annotated images (or --drawings N alone)")


@dataclass(frozen=True)
class TrainSettings(AnnotatedSettings):
    """Train HybridGNet on annotated radiographs; defaults are the paper's, wherever it gives a value."""

    output: str = setting("", "folder of the run (local path or URL); the same one resumes it")
    variant: str = setting(
        "skip",
        "network: with or without image-to-graph skip connections; dropout: with them, dropout in the encoder, and no "
        "variational layer",
        choices=("skip", "noskip", "dropout"),
        numbers=True,
    )
    input_size: int = setting(1024, "side in pixels of the network's input; a multiple of 32", numbers=True)
    initial_weights: str | None = setting(
        None,
        "weights to begin with, as --weights of generate, of the same variant and input size (default: random ones)",
    )
    epochs: int = setting(1000, "epochs in all; a finished run goes on if there are to be more")
    batches: int = setting(100, "batches in an epoch", numbers=True)
    batch_size: int = setting(4, "images in a batch, over all workers", numbers=True)
    learning_rate: float = setting(1e-4, "Adam's learning rate at the start", numbers=True)
    weight_decay: float = setting(1e-5, "Adam's weight decay", numbers=True)
    schedule: str = setting(
        "step",
        "how the learning rate falls; step: by --decay every --decay-epochs; cosine: to zero over --decay-epochs, "
        "along half a cosine",
        choices=("step", "cosine"),
        numbers=True,
    )
    decay: float = setting(0.9, "factor of the learning rate at each of its steps", numbers=True)
    decay_epochs: int = setting(
        50, "epochs between two steps of the learning rate, or until the cosine's end", numbers=True
    )
    clip: float | None = setting(None, "largest norm of the gradient (default: no limit)", numbers=True)
    kl_first: float = setting(1e-5, "weight of the KL divergence (mean over latents) in the first epoch", numbers=True)
    kl_last: float = setting(1e-2, "weight of the KL divergence once it has grown", numbers=True)
    kl_epochs: int = setting(200, "epochs over which that weight grows linearly", numbers=True)
    rotation: float = setting(3.0, "augmentation: largest rotation in degrees", numbers=True)
    scale: float = setting(0.2, "augmentation: largest change of size, as a fraction", numbers=True)
    contrast: float = setting(0.4, "augmentation: grey ** g with g from 1 - this to 1 + this", numbers=True)
    shift: float = setting(0.0, "augmentation: largest shift, as a fraction of the side", numbers=True)
    degrade: float = setting(
        0.0, "augmentation: chance of each of a clipped grey range, blur, noise and covered parts", numbers=True
    )
    drawings_share: float = setting(
        0.5,
        "chance of a drawing in a batch of images with hearts; where no image has one, half the batches are drawings",
        numbers=True,
    )
    validation: float = setting(0.1, "share of the images that is held out, by a hash of their names", numbers=True)
    seed: int = setting(0, "fixes first weights, batches, augmentation and draws", numbers=True)
    precision: str = setting(
        "float32", "arithmetic of the encoder's convolutions", choices=("float32", "bfloat16"), numbers=True
    )
    half: bool = setting(False, "save the weights as float16")
    every: int = setting(10, "epochs between two checkpoints, each with a validation: the most work a kill can undo")
    device: str = setting("auto", "where the network runs; auto: on GPUs that are up", choices=("auto", "cpu", "cuda"))
    workers: int | None = setting(None, "training processes (default: one per GPU that is up, else one)")
    threads: int | None = setting(None, "CPU threads of each worker (default: the machine's cores, shared out)")
    address: str | None = setting(None, "Ray cluster to use (default: a running one, else a local one is started)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(
            epochs=1, batches=1, batch_size=1, decay_epochs=1, kl_epochs=1, every=1, workers=1, threads=1, seed=0
        )
        self._within(decay=(0, 1), scale=(0, 0.9), contrast=(0, 0.95), shift=(0, 0.5), rotation=(0, 180))
        self._within(degrade=(0, 1), drawings_share=(0, 1), validation=(0, 0.9))
        self._within(learning_rate=(0, 10), weight_decay=(0, 10), kl_first=(0, 1e3), kl_last=(0, 1e3), clip=(0, 1e9))
        if not self.output:
            raise InputError("--output is needed: the folder or URL where the run is kept")
        if self.input_size < 64 or self.input_size % 32:
            raise InputError(f"--input-size must be a multiple of 32 from 64 on, not {self.input_size}")
        if self.batch_size % (self.workers or 1):
            raise InputError(f"--batch-size {self.batch_size} cannot be shared by --workers {self.workers}")
        if self.schedule == "cosine" and self.epochs > self.decay_epochs:
            raise InputError(
                f"--schedule cosine: the learning rate is zero after --decay-epochs {self.decay_epochs}, "
                f"before --epochs {self.epochs} are over; set both alike"
            )

    def _within(self, **ranges: tuple[float, float]) -> None:
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            # Not a chained comparison, which would let NaN pass.
            if value is not None and not low <= value <= high:
                raise InputError(f"--{name.replace('_', '-')} must be from {low:g} to {high:g}, not {value}")


@dataclass(frozen=True)
class EvaluateSettings(AnnotatedSettings):
    """Score weights on annotated radiographs: errors, overlap, and whether the uncertainty means anything."""

    weights: str = setting("demo", "'demo' (bundled), a .safetensors or .pt file, or hf://ORG/REPO/FOLDER[@REVISION]")
    drawings: int = setting(
        0, "drawn radiographs to add: others than those a training with the same --seed was shown", numbers=True
    )
    part: str = setting(
        "validation", "which images of the --split to score", choices=("validation", "train", "all"), numbers=True
    )
    samples: int = setting(50, "draws N per image", numbers=True)
    seed: int = setting(
        0, "fixes the draws, together with each image's folder and name, and the drawings", numbers=True
    )
    batch_size: int = setting(8, "images the network takes at once")
    device: str = setting(
        "auto", "where the network runs; auto: CUDA where there is a GPU", choices=("auto", "cpu", "cuda")
    )
    output: str | None = setting(None, "folder for scores.json, images.csv and a figure (default: print only)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(samples=2, batch_size=1)
