"""One frozen dataclass per verb: the source of its flags, its validation and what the run report says of it."""

from __future__ import annotations

import re
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from chexmask_u.anatomy import N_LANDMARKS
from chexmask_u.errors import InputError
from chexmask_u.record import REASONS

# Of --calibration: none at all.
NO_CALIBRATION = "none"

# Of --retry: every reason.
ALL = "all"

WEIGHTS_HELP = (
    "'demo' (bundled), a .safetensors, .bin, .pt or .pth file or the folder that holds it,"
    " or hf://ORG/REPO[/FOLDER-OR-FILE][@REVISION]"
)
# Pixels of the 1024 frame: see `use.doubts.unsure`.
UNSURE, UNSURE_RADIUS = 25.0, 80.0

# How the first line of an experiment's module begins.
_EXPERIMENT = "Experiment: "


def _first_line(module: Path) -> str:
    """What a module says of itself; it is not imported, since that would import much."""
    with module.open(encoding="utf-8") as lines:
        return next((line.strip() for line in lines if line.strip()), module.stem).strip('"').rstrip(".")


def _export_formats() -> dict[str, str]:
    """What each format of an export is, by its name."""
    modules = sorted((Path(__file__).parent / "releases" / "export" / "formats").glob("[!_]*.py"))
    said = {module.stem.replace("_", "-"): _first_line(module) for module in modules}
    return {name: line[0].lower() + line[1:] for name, line in said.items()}


EXPORT_FORMATS = _export_formats()

INPUT, OUTPUT, NUMBERS, MACHINES, OTHER = "input", "output", "what numbers depend on", "machines and speed", "options"
NETWORK, OPTIMISER, AUGMENTATION = "network and loss", "optimiser", "augmentation"
GROUPS = (INPUT, OUTPUT, NUMBERS, NETWORK, OPTIMISER, AUGMENTATION, MACHINES, OTHER)
"""What `--help` and the documentation put flags under, in this order."""


def _experiments() -> dict[str, str]:
    """What each experiment does, by its name."""
    said = {module.stem: _first_line(module) for module in sorted((Path(__file__).parent / "experiments").glob("*.py"))}
    return {name: line.removeprefix(_EXPERIMENT) for name, line in said.items() if line.startswith(_EXPERIMENT)}


EXPERIMENTS = _experiments()


def setting(
    default: Any,
    help: str,
    *,
    numbers: bool = False,
    choices: tuple[str, ...] | None = None,
    positional: bool = False,
    required: bool = False,
    least: float | None = None,
    most: float | None = None,
    kind: str = "",
    group: str = "",
) -> Any:
    """A setting, which a verb's command line and its Python class take and refuse alike.

    Args:
        default: its value where none is given.
        help: what it is, for users.
        numbers: whether results depend on it, so that a resumed run may not change it.
        choices: the only values that it may have.
        positional: whether it is given by its place and not by a flag.
        required: whether it must be given.
        least, most: the range that a number must lie in.
        kind: what its value is, in one word for users, such as FILE ("" for N of whole numbers, X of others, and else
            the setting's own name).
        group: what it stands under in `--help`, one of `GROUPS` ("" for what follows from the rest; see `group_of`).
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "numbers": numbers,
            "choices": choices,
            "positional": positional,
            "required": required,
            "least": least,
            "most": most,
            "kind": kind,
            "group": group,
        },
    )


def group_of(one: Field[Any]) -> str:
    """What a setting stands under in `--help`."""
    if one.metadata["group"]:
        return str(one.metadata["group"])
    if one.name == "output":
        return OUTPUT
    if one.metadata["positional"] or one.metadata["required"]:
        return INPUT
    return NUMBERS if one.metadata["numbers"] else OTHER


def _weights(default: str | None = "demo", help: str = WEIGHTS_HELP) -> Any:
    return setting(default, help, kind="WEIGHTS", group=INPUT)


def _weights_sha256() -> Any:
    return setting(None, "digest that the weight file must have", kind="SHA256", group=INPUT)


def _device(help: str = "where the network runs; auto: on GPUs that are up") -> Any:
    return setting("auto", help, choices=("auto", "cpu", "cuda"), group=MACHINES)


def _precision(
    help: str,
    choices: tuple[str, ...] = ("float32", "tf32", "bfloat16"),
    *,
    numbers: bool = True,
    group: str = NUMBERS,
) -> Any:
    return setting("float32", help, choices=choices, numbers=numbers, group=group)


def _samples(help: str = "draws N per image", *, least: int = 1, numbers: bool = True) -> Any:
    return setting(50, help, least=least, numbers=numbers, group=NUMBERS)


def _batch_size(default: int | None, help: str = "images the network takes at once") -> Any:
    return setting(default, help, least=1, group=MACHINES)


def _max_side(*, numbers: bool = True) -> Any:
    return setting(
        10_000,
        "longest side in pixels of an image that is decoded",
        numbers=numbers,
        least=32,
        kind="PIXELS",
        group=INPUT,
    )


def _address() -> Any:
    return setting(
        None,
        "Ray cluster to use (default: a running one, else a local one is started)",
        kind="HOST:PORT",
        group=MACHINES,
    )


def _release() -> Any:
    return setting("", "folder of one version (local path or URL)", positional=True, required=True, kind="RELEASE")


def _manifest_output() -> Any:
    return setting("manifest.parquet", "Parquet file to write (local path or URL)", kind="FILE")


def _overwrite() -> Any:
    return setting(False, "replace a manifest with other rows that is at --output", group=OUTPUT)


@dataclass(frozen=True)
class Settings:
    """What all verbs share: settings know what they are called, which values they take, and which fix the numbers.

    Raises:
        InputError: naming the first setting that is missing or cannot be.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            self._check(one)

    def _check(self, one: Field[Any]) -> None:
        value, said = getattr(self, one.name), one.metadata
        name = one.name if said["positional"] else flag(one.name)
        if said["required"] and value in ("", (), None):
            raise InputError(f"{name} is needed: {said['help']}")
        if value is None:
            return
        if said["choices"] and value not in said["choices"]:
            raise InputError(f"{name} must be one of {', '.join(said['choices'])}, not {value!r}")
        low, high = said["least"], said["most"]
        # Not a comparison that NaN would pass.
        if not ((low is None or value >= low) and (high is None or value <= high)):
            bounds = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
            raise InputError(f"{name} must be {bounds}, not {value}")

    def numbers(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["numbers"]}

    def asdict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Self:
        given = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        # argparse collects repeated values in lists.
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def flag(name: str) -> str:
    """A setting's flag on the command line."""
    return f"--{name.replace('_', '-')}"


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
    weights: str = _weights()
    weights_sha256: str | None = _weights_sha256()
    samples: int = _samples()
    seed: int = setting(0, "fixes the draws, together with each record's id", numbers=True)
    max_side: int = _max_side()
    preparation: str = setting(
        "published",
        "of images, by source; lossless: without the JPEG compression that MIMIC-CXR-JPG's passed through as published",
        numbers=True,
        choices=("published", "lossless"),
    )
    precision: str = _precision(
        "arithmetic of the encoder; the others move landmarks by pixels, and tf32 needs NVIDIA GPUs"
    )
    device: str = _device()
    batch_size: int | None = _batch_size(
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
    address: str | None = _address()

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
    weights: str = _weights()
    weights_sha256: str | None = _weights_sha256()
    samples: int = _samples()
    seed: int = setting(0, "fixes the draws, together with each record's id", numbers=True)
    source: str = setting(
        "folder",
        "name of these images, as of manifest folder; a published one is prepared as that was",
        numbers=True,
        kind="NAME",
        group=INPUT,
    )
    max_side: int = _max_side()
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
    device: str = _device("where the network runs; auto: on a GPU if there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unsure is not None and not self.unsure > 0:
            raise InputError(f"--unsure must be more than 0, not {self.unsure}")


@dataclass(frozen=True)
class AppSettings(Settings):
    """Serve a page that segments an image and shows how unsure the network is; a demonstration, which keeps nothing."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in", kind="ADDRESS")
    port: int = setting(7860, "port to listen on", least=1, most=65535, kind="PORT")
    weights: str = _weights()
    weights_sha256: str | None = _weights_sha256()
    calibration: str | None = setting(
        None,
        "calibration.json of the weights (path or URL), by whose radii landmarks are coloured;"
        f" '{NO_CALIBRATION}' for none (default: the one that lies beside the weights on disk, if one does)",
        kind="FILE",
        group=INPUT,
    )
    max_side: int = _max_side()
    device: str = _device("where the network runs; auto: on a GPU if there is one")
    space: str | None = setting(
        None,
        "local folder to write a Hugging Face Space to, that serves the page, instead of serving it here",
        kind="FOLDER",
        group=OUTPUT,
    )


@dataclass(frozen=True)
class ManifestFolderSettings(Settings):
    """List the images below a folder or bucket prefix as a manifest."""

    uri: str = setting("", "folder or URL prefix to list", positional=True, required=True, kind="FOLDER")
    output: str = _manifest_output()
    source: str = setting(
        "folder", "name of these images: their dataset config; lower case, digits and dashes", kind="NAME", group=INPUT
    )
    overwrite: bool = _overwrite()


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
    overwrite: bool = _overwrite()

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
    overwrite: bool = _overwrite()

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
class BenchSettings(Settings):
    """Measure every part beside the published algorithm and beside what the hardware allows."""

    quick: bool = setting(False, "a small network and few repeats: shows that it works, not how fast it is")
    weights: str | None = setting(
        None,
        "as for generate (default: those of the package, stretched to 1024 x 1024; their numbers mean nothing)",
        kind="WEIGHTS",
        group=INPUT,
    )
    device: str = _device("where the network runs; auto: on a GPU if there is one")
    images: str | None = setting(
        None, "folder or URL of images (default: drawn ones, on the local disk)", kind="FOLDER", group=INPUT
    )
    output: str | None = setting(None, "local folder to keep the result in, as JSON", kind="FOLDER")
    check: bool = setting(False, "end with exit code 1 if a target is missed")


@dataclass(frozen=True)
class InfoSettings(Settings):
    """Say what a bug report asks for: versions, devices, weights, and the sources with their terms."""

    weights: str = _weights()
    check: bool = setting(
        False, "predict drawings with the weights: whether the numbers are sane (exit code 1 if not), and how fast"
    )
    device: str = _device("where --check predicts; auto: on a GPU if there is one")


@dataclass(frozen=True)
class PlanSettings(Settings):
    """Forecast a run from a short probe on your own images and hardware, or from a bench result of a GPU's machine."""

    manifest: str | None = setting(None, "manifest Parquet file (local path or URL) to sample", kind="FILE")
    bench: str | None = setting(
        None,
        "JSON file of chexmask-u bench, of a machine with GPUs (local path or URL): what is forecast of these is taken"
        " from it, and --manifest is sampled for reading and masks alone",
        kind="FILE",
        group=INPUT,
    )
    weights: str = _weights()
    samples: int = _samples(numbers=False)
    precision: str = _precision("arithmetic of the encoder, as for generate", numbers=False)
    device: str = _device()
    probe: int = setting(200, "images to sample", least=1, group=INPUT)
    seed: int = setting(0, "fixes the sample", group=INPUT)
    rows: int | None = setting(
        None, "images to forecast (default: the manifest's; all of CheXmask are 657566)", least=1, group=MACHINES
    )
    cpus: int | None = setting(
        None, "cores of all machines together (default: those that the probe saw)", least=1, group=MACHINES
    )
    gpus: int | None = setting(
        None, "GPUs of all machines together (default: those that the probe saw)", least=1, group=MACHINES
    )
    price_per_hour: float | None = setting(
        None, "price of all machines together for an hour", least=0, kind="PRICE", group=MACHINES
    )
    scratch: str | None = setting(
        None,
        "folder or URL, seen by every machine, for the probe's own run (default: a temporary local folder)",
        kind="FOLDER",
        group=MACHINES,
    )
    address: str | None = _address()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.manifest is None and self.bench is None:
            raise InputError("--manifest is needed: manifest Parquet file (local path or URL) to sample; or --bench")
        if self.bench is not None:
            given = [flag(name) for name in ("weights", "device", "scratch", "address") if self._is_given(name)]
            if given:
                raise InputError(f"{given[0]} goes without --bench, whose network and machine are those of its file")

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != next(one.default for one in fields(self) if one.name == name))


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
    address: str | None = _address()


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Write a release as CheXmask's CSVs or as COCO."""

    release: str = _release()
    output: str = setting(
        "",
        "folder for the files (local path or URL); the same one goes on after an interruption",
        required=True,
        kind="FOLDER",
    )
    format: str = setting(
        "",
        "; ".join(f"{name}: {what}" for name, what in EXPORT_FORMATS.items()),
        choices=tuple(EXPORT_FORMATS),
        required=True,
        group=OUTPUT,
    )


@dataclass(frozen=True)
class PublishSettings(Settings):
    """Publish a release on the Hugging Face Hub: one commit and the version's tag, under each source's terms."""

    release: str = _release()
    repo: str = setting(
        "", "dataset repository ORG/NAME; it is made if there is none", required=True, kind="ORG/NAME", group=OUTPUT
    )
    private: bool = setting(False, "make a new repository private", group=OUTPUT)
    gated: str | None = setting(
        None,
        "let users of the repository accept its terms first; auto: they need no answer, manual: you grant each request",
        choices=("auto", "manual"),
        group=OUTPUT,
    )
    accept_terms: tuple[str, ...] = setting(
        (),
        "SOURCE=open or SOURCE=gated: how data of your own may be published, as you answer for; may be repeated",
        kind="SOURCE=POLICY",
    )
    dry_run: bool = setting(False, "send nothing, and show what would be sent")

    def __post_init__(self) -> None:
        super().__post_init__()
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

    before: str = setting(
        "",
        "folder or URL of one version, or ORG/NAME@vX.Y.Z on the Hugging Face Hub",
        positional=True,
        required=True,
        kind="RELEASE",
    )
    after: str = setting(
        "", "the version to compare it with, given likewise", positional=True, required=True, kind="RELEASE"
    )
    output: str | None = setting(
        None,
        "folder (local path or URL) for diff.json, diff.png and CHANGELOG.md (default: none is written)",
        kind="FOLDER",
    )
    movers: int = setting(12, "how many of the records that moved most are listed and drawn", least=1, group=OUTPUT)


@dataclass(frozen=True)
class VerifySettings(Settings):
    """Say whether what was regenerated is the published dataset: means, spreads and masks beside its CSVs."""

    published: tuple[str, ...] = setting(
        (),
        "published CSV (local path or URL), of OriginalResolution or Preprocessed; or SOURCE=CSV, where its id column"
        " does not tell the source; may be repeated, once for each source",
        required=True,
        kind="FILE",
    )
    run: str | None = setting(
        None, "folder of the run to compare (local path or URL); it need not be complete", kind="RUN", group=INPUT
    )
    release: str | None = setting(
        None, "folder of one version to compare instead (local path or URL)", kind="RELEASE", group=INPUT
    )
    images: str | None = setting(
        None,
        "folder or URL prefix of the images instead: a sample of them is predicted first, in this process",
        kind="FOLDER",
        group=INPUT,
    )
    weights: str | None = setting(None, "of --images: as for generate", kind="WEIGHTS", group=INPUT)
    probe: int = setting(200, "of --images: how many images of each source to predict", least=1, group=INPUT)
    samples: int = _samples("of --images: draws N per image", numbers=False)
    seed: int = setting(0, "of --images: fixes which of them, and the draws", group=NUMBERS)
    device: str = _device("of --images: where the network runs; auto: CUDA where there is a GPU")
    published_samples: int = setting(50, "draws N per image that the published numbers are of", least=2, group=INPUT)
    output: str | None = setting(
        None,
        "folder (local path or URL) for verify.json, movers.csv and movers.png (default: none is written)",
        kind="FOLDER",
    )
    movers: int = setting(12, "how many of the images that differ most are listed and drawn", least=1, group=OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(given is not None for given in (self.run, self.release, self.images)) != 1:
            raise InputError("give one of --run, --release and --images: what is to be compared")
        if self.images is not None and self.weights is None:
            raise InputError("--images needs --weights: which ones predict them, for instance hf://...")
        if self.images is None and self.weights is not None:
            raise InputError("--weights goes with --images: a run or a release has been made with its own")


@dataclass(frozen=True)
class ValidateSettings(Settings):
    """Check a release: files, checksums, ids, counts and numbers."""

    release: str = _release()


@dataclass(frozen=True)
class AnnotatedSettings(Settings):
    """Which annotated images to take, and what to do with those that cannot be used."""

    data: tuple[str, ...] = setting(
        (),
        "annotated images: FOLDER with images/ and landmarks or masks; or jsrt=, montgomery=, shenzhen= or padchest= "
        "and the folder of that dataset as downloaded; may be repeated",
        kind="FOLDER",
        group=INPUT,
    )
    landmarks: tuple[str, ...] = setting(
        (),
        "DATASET=PATH: where a dataset's landmarks lie (default: landmarks.npz, landmarks.csv, landmarks/ or masks/ in "
        "its folder); may be repeated",
        kind="DATASET=PATH",
        group=INPUT,
    )
    landmarks_in: str = setting(
        "auto",
        "pixels that landmarks are in: the image file's own, or those of the 1024 x 1024 frame that it is prepared to; "
        "auto: the file's for a FOLDER, the frame's for the four datasets",
        choices=("auto", "original", "frame"),
        numbers=True,
        group=INPUT,
    )
    drawings: int = setting(0, "drawn radiographs to add", numbers=True, least=0, group=INPUT)
    on_bad: str = setting(
        "refuse",
        "images or annotations that cannot be used; refuse: stop and name them, skip: leave them out",
        choices=("refuse", "skip"),
        group=INPUT,
    )
    split: str | None = setting(
        None,
        "CSV with columns name and part (train or validation): who is held out (without it, train holds out "
        "--validation of them by a hash of their names, and evaluate scores all)",
        kind="FILE",
        group=INPUT,
    )
    max_side: int = _max_side(numbers=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_given_data:
            raise InputError("--data is needed: a folder of annotated images (or --drawings N alone)")

    @property
    def is_given_data(self) -> bool:
        return bool(self.data or self.drawings)


@dataclass(frozen=True)
class TrainSettings(AnnotatedSettings):
    """Train HybridGNet on annotated radiographs; defaults are the paper's, wherever it gives a value."""

    output: str = setting(
        "", "folder of the run (local path or URL); the same one resumes it", required=True, kind="FOLDER"
    )
    variant: str = setting(
        "skip",
        "network: with or without image-to-graph skip connections; dropout: with them, dropout in the encoder, and no "
        "variational layer; unet (with dropout) and phiseg: baselines that give masks and no landmarks",
        choices=("skip", "noskip", "dropout", "unet", "phiseg"),
        numbers=True,
        group=NETWORK,
    )
    input_size: int = setting(
        1024, "side in pixels of the network's input; a multiple of 32", numbers=True, kind="PIXELS", group=NETWORK
    )
    initial_weights: str | None = setting(
        None,
        "weights to begin with, as --weights of generate, of the same variant and input size (default: random ones)",
        kind="WEIGHTS",
        group=NETWORK,
    )
    freeze_convolutions: bool = setting(
        False,
        "keep the encoder's convolutions as --initial-weights has them, and train its linear layers and the decoder: "
        "cheap enough for a CPU",
        numbers=True,
        group=NETWORK,
    )
    epochs: int = setting(
        1000, "epochs in all; a finished run goes on if there are to be more", least=1, group=OPTIMISER
    )
    batches: int = setting(100, "batches in an epoch", numbers=True, least=1, group=OPTIMISER)
    batch_size: int = setting(4, "images in a batch, over all workers", numbers=True, least=1, group=OPTIMISER)
    learning_rate: float = setting(
        1e-4, "Adam's learning rate at the start", numbers=True, least=0, most=10, group=OPTIMISER
    )
    weight_decay: float = setting(1e-5, "Adam's weight decay", numbers=True, least=0, most=10, group=OPTIMISER)
    schedule: str = setting(
        "step",
        "how the learning rate falls; step: by --decay every --decay-epochs; cosine: to zero over --decay-epochs, "
        "along half a cosine",
        choices=("step", "cosine"),
        numbers=True,
        group=OPTIMISER,
    )
    decay: float = setting(
        0.9, "factor of the learning rate at each of its steps", numbers=True, least=0, most=1, group=OPTIMISER
    )
    decay_epochs: int = setting(
        50,
        "epochs between two steps of the learning rate, or until the cosine's end",
        numbers=True,
        least=1,
        group=OPTIMISER,
    )
    clip: float | None = setting(
        None, "largest norm of the gradient (default: no limit)", numbers=True, least=0, most=1e9, group=OPTIMISER
    )
    objective: str = setting(
        "mse",
        "what landmarks and skip positions are trained to; mse: the paper's squared error of one draw; energy: the "
        "energy score of --draws of them, which is least where their spread is that of the error. It is a length "
        "where mse is its square: set --kl-last near 1e-4",
        choices=("mse", "energy"),
        numbers=True,
        group=NETWORK,
    )
    draws: int = setting(
        4, "draws of an image that --objective energy compares; mse takes one", numbers=True, group=NETWORK
    )
    kl_first: float = setting(
        1e-5,
        "weight of the KL divergence (mean over latents) in the first epoch",
        numbers=True,
        least=0,
        most=1000,
        group=NETWORK,
    )
    kl_last: float = setting(
        1e-2,
        "weight of the KL divergence once it has grown (phiseg: 1)",
        numbers=True,
        least=0,
        most=1000,
        group=NETWORK,
    )
    kl_epochs: int = setting(200, "epochs over which that weight grows linearly", numbers=True, least=1, group=NETWORK)
    rotation: float = setting(
        3.0,
        "largest rotation in degrees",
        numbers=True,
        least=0,
        most=180,
        kind="DEGREES",
        group=AUGMENTATION,
    )
    scale: float = setting(
        0.2, "largest change of size, as a fraction", numbers=True, least=0, most=0.9, group=AUGMENTATION
    )
    contrast: float = setting(
        0.4,
        "grey ** g with g from 1 - this to 1 + this",
        numbers=True,
        least=0,
        most=0.95,
        group=AUGMENTATION,
    )
    shift: float = setting(
        0.0,
        "largest shift, as a fraction of the side",
        numbers=True,
        least=0,
        most=0.5,
        group=AUGMENTATION,
    )
    degrade: float = setting(
        0.0,
        "chance of each of a clipped grey range, blur, noise and covered parts",
        numbers=True,
        least=0,
        most=1,
        group=AUGMENTATION,
    )
    drawings_share: float = setting(
        0.5,
        "chance of a drawing in a batch of images with hearts; where no image has one, half the batches are drawings",
        numbers=True,
        least=0,
        most=1,
        group=INPUT,
    )
    validation: float = setting(
        0.1,
        "share of the images that is held out, by a hash of their names",
        numbers=True,
        least=0,
        most=0.9,
        group=INPUT,
    )
    seed: int = setting(
        0, "fixes first weights, batches, augmentation and draws", numbers=True, least=0, group=OPTIMISER
    )
    precision: str = _precision("arithmetic of the encoder's convolutions", ("float32", "bfloat16"), group=OPTIMISER)
    half: bool = setting(False, "save the weights as float16", group=OUTPUT)
    every: int = setting(
        10,
        "epochs between two checkpoints, each with a validation: the most work a kill can undo",
        least=1,
        group=OUTPUT,
    )
    device: str = _device()
    workers: int | None = setting(
        None, "training processes (default: one per GPU that is up, else one)", least=1, group=MACHINES
    )
    threads: int | None = setting(
        None, "CPU threads of each worker (default: the machine's cores, shared out)", least=1, group=MACHINES
    )
    address: str | None = _address()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_size < 64 or self.input_size % 32:
            raise InputError(f"--input-size must be a multiple of 32 from 64 on, not {self.input_size}")
        if self.batch_size % (self.workers or 1):
            raise InputError(f"--batch-size {self.batch_size} cannot be shared by --workers {self.workers}")
        if self.variant == "phiseg" and self.input_size % 64:
            raise InputError(f"--input-size must be a multiple of 64 with --variant phiseg, not {self.input_size}")
        if self.freeze_convolutions and (self.initial_weights is None or not self._is_variational()):
            raise InputError("--freeze-convolutions: needs --initial-weights, and --variant skip or noskip")
        if self.objective == "energy" and self.draws < 2:
            raise InputError(f"--draws must be at least 2 with --objective energy, not {self.draws}")
        if self.objective == "energy" and not self._is_variational():
            raise InputError(
                "--objective energy: needs --variant skip or noskip; a draw of dropout takes an encoding of its own, "
                "and masks are no points"
            )
        if self.schedule == "cosine" and self.epochs > self.decay_epochs:
            raise InputError(
                f"--schedule cosine: the learning rate is zero after --decay-epochs {self.decay_epochs}, "
                f"before --epochs {self.epochs} are over; set both alike"
            )

    def _is_variational(self) -> bool:
        """Whether the variant decodes many landmarks of one encoding."""
        return self.variant in ("skip", "noskip")

    def draws_per_image(self) -> int:
        """Draws of an image in a batch."""
        return self.draws if self.objective == "energy" else 1


@dataclass(frozen=True)
class EvaluateSettings(AnnotatedSettings):
    """Score weights on annotated radiographs: errors, overlap, and whether the uncertainty means anything."""

    weights: str = _weights()
    drawings: int = setting(
        0,
        "drawn radiographs to add: others than those a training with the same --seed was shown",
        numbers=True,
        least=0,
        group=INPUT,
    )
    part: str = setting(
        "validation",
        "which images of the --split to score",
        choices=("validation", "train", "all"),
        numbers=True,
        group=INPUT,
    )
    samples: int = _samples(least=2)
    seed: int = setting(
        0, "fixes the draws, together with each image's folder and name, and the drawings", numbers=True
    )
    batch_size: int = _batch_size(8)
    device: str = _device("where the network runs; auto: CUDA where there is a GPU")
    calibration: str | None = setting(
        None,
        "calibration of the weights, as calibration.json or 'demo', whose radii are to be judged; on the images that it"
        " was made of they do too well",
        kind="FILE",
        group=INPUT,
    )
    shifts: bool = setting(
        False,
        "judge the uncertainty also on the images with black squares, noise, a rotation by 10 to 25 degrees and another"
        " gamma; takes three times as long",
    )
    leave_out: tuple[str, ...] = setting(
        (),
        "region of a contour, such as left_lung.heart_border, that masks of --data draw by another convention and on"
        " which the uncertainty is not judged there; may be repeated",
        kind="REGION",
        group=INPUT,
    )
    output: str | None = setting(
        None, "folder for scores.json, images.csv and a figure (default: print only)", kind="FOLDER"
    )

    def __post_init__(self) -> None:
        super().__post_init__()


@dataclass(frozen=True)
class CalibrateSettings(AnnotatedSettings):
    """Measure how far landmarks are off, and make of it radii in pixels for any coverage and a score of odd images."""

    output: str = setting("", "calibration.json to write (local path or URL)", required=True, kind="FILE")
    weights: str = _weights()
    start: str | None = setting(
        None,
        "calibration of the same weights made elsewhere, as calibration.json or 'demo', to be rescaled on --data:"
        " all of the images count then, and masks are enough",
        kind="FILE",
        group=INPUT,
    )
    leave_out: tuple[str, ...] = setting(
        (),
        "region of a contour, such as left_lung.heart_border, that masks of --data draw by another convention and that"
        " is not measured on them; may be repeated",
        kind="REGION",
        group=INPUT,
    )
    augmentations: int = setting(
        0,
        "variants of each image, turned, scaled and exposed a little anew, to report what radii would gain from the"
        " spread over them; no radius is made of it, since neither predictions nor records have it",
        numbers=True,
        least=0,
    )
    known: tuple[str, ...] = setting(
        (),
        "folder of frontal chest radiographs without annotations that ood_score is to know, beside those of --data; may"
        " be repeated",
        kind="FOLDER",
        group=INPUT,
    )
    drawings: int = setting(
        0,
        "drawn radiographs to add, others than a training was shown with the same --seed",
        numbers=True,
        least=0,
        group=INPUT,
    )
    samples: int = _samples(least=2)
    seed: int = setting(
        0, "fixes the draws, together with each image's folder and name, and the drawings", numbers=True
    )
    batch_size: int = _batch_size(8)
    device: str = _device("where the network runs; auto: CUDA where there is a GPU")


@dataclass(frozen=True)
class ExperimentSettings(AnnotatedSettings):
    """Check what the paper claims of the uncertainty, on any weights and images."""

    experiment: str = setting("", "which one")
    output: str = setting(
        "",
        "folder for results.json, table.csv and the figure (local path or URL); the same one goes on",
        required=True,
        kind="FOLDER",
    )
    images: tuple[str, ...] = setting(
        (), "images without annotations: files, folders or quoted patterns; may be repeated", kind="IMAGE", group=INPUT
    )
    part: str = setting(
        "validation", "which images of the --split to take", choices=("validation", "train", "all"), numbers=True
    )
    limit: int | None = setting(
        None, "take so many of the images at most, chosen by a hash of their names", numbers=True, least=1
    )
    weights: tuple[str, ...] = setting(
        (), f"{WEIGHTS_HELP}; may be repeated, to compare (default: demo)", kind="WEIGHTS", group=INPUT
    )
    calibration: str | None = setting(
        None,
        f"calibration.json of one of the weights (path or URL), or '{NO_CALIBRATION}' (default: that which lies beside"
        " the weights, if one does)",
        kind="FILE",
        group=INPUT,
    )
    size: tuple[int, ...] = setting(
        (),
        "occlusion: side of the squares in pixels of the 1024 frame; may be repeated (default: 100, 200 and 300)",
        numbers=True,
    )
    node: tuple[int, ...] = setting(
        (),
        "occlusion: landmark, 0 to 119, around which a square is laid; may be repeated (default: of each image one of"
        " each organ, chosen by the image's name)",
        numbers=True,
    )
    corruption: tuple[str, ...] = setting(
        (),
        "noise: noise, blur, contrast, gamma, rotation, cropping or blending; may be repeated (default: noise, blur,"
        " contrast and blending)",
        numbers=True,
    )
    kind: tuple[str, ...] = setting(
        (),
        "pixel: clean, squares, noise, rotation or gamma, which images are made; may be repeated (default: all)",
        numbers=True,
    )
    count: tuple[int, ...] = setting(
        (), "samples: draws N; may be repeated (default: 10, 25, 50, 100 and 200)", numbers=True
    )
    timed: int = setting(2, "samples and pixel: how many of the images are predicted once more to time it", least=1)
    run: str | None = setting(None, "error, ood, rca: take the records of this run of `generate` (local path or URL)")
    release: str | None = setting(None, "error, ood, rca: take the records of one version (local path or URL)")
    published: tuple[str, ...] = setting(
        (), "error, rca: take the rows of published CSVs with Landmarks (Std) (local paths or URLs); may be repeated"
    )
    annotator: tuple[str, ...] = setting(
        (),
        "error: another person's landmarks: DATASET=PATH for --data, as --landmarks takes them; for records one or two"
        " sets of CSVs with an id and Landmarks, of the 1024 frame: NAME=CSV, a name a person; may be repeated",
    )
    out_of: tuple[str, ...] = setting(
        (),
        "ood: images that are no frontal chest radiographs, files or folders, or with --run and --release a run or"
        " release of such; may be repeated (default: of images, altered copies and drawings; of records, those with a"
        " Dice RCA (Mean) below --dice)",
    )
    labels: str | None = setting(
        None, "ood: CSV with columns name and label (in or out) that says which of the images are which"
    )
    dice: float = setting(0.7, "ood: Dice RCA (Mean) below which a record is out", numbers=True, least=0, most=1)
    samples: int = _samples(least=2)
    seed: int = setting(0, "fixes draws, noise, places and resampling", numbers=True)
    batch_size: int = setting(8, "images the network takes at once, and what a kill can undo", least=1)
    device: str = _device("where the network runs; auto: CUDA where there is a GPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        for side in self.size:
            if not 16 <= side <= 512:
                raise InputError(f"--size must be from 16 to 512, not {side}")
        if (self.run is not None) + (self.release is not None) + bool(self.published) > 1:
            raise InputError("give one of --run, --release and --published: whose records are to be looked at")
        for count in self.count:
            if not 2 <= count <= 10_000:
                raise InputError(f"--count must be from 2 to 10000, not {count}")
        for node in self.node:
            if not 0 <= node < N_LANDMARKS:
                raise InputError(f"--node must be from 0 to {N_LANDMARKS - 1}, not {node}")

    @property
    def is_given_data(self) -> bool:
        return bool(super().is_given_data or self.images or self.has_records)

    @property
    def has_records(self) -> bool:
        """Whether records of a run, a release or published CSVs are to be looked at."""
        return bool(self.run or self.release or self.published)

    def all_weights(self) -> tuple[str, ...]:
        return self.weights or ("demo",)
