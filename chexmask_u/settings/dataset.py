"""Settings of what is done with a release, and with the published rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from chexmask_u.errors import InputError
from chexmask_u.settings import common
from chexmask_u.settings.base import INPUT, NUMBERS, OUTPUT, Settings, setting


def _export_formats() -> dict[str, str]:
    """What each format of an export is, by its name."""
    modules = sorted((Path(__file__).parents[1] / "releases" / "export" / "formats").glob("[!_]*.py"))
    said = {module.stem.replace("_", "-"): common.first_line(module) for module in modules}
    return {name: line[0].lower() + line[1:] for name, line in said.items()}


EXPORT_FORMATS = _export_formats()


@dataclass(frozen=True)
class ValidateSettings(Settings):
    """Check a release: files, checksums, ids, counts and numbers."""

    release: str = common.release()


@dataclass(frozen=True)
class ExportSettings(Settings):
    """Write a release as CheXmask's CSVs or as COCO."""

    release: str = common.release()
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

    release: str = common.release()
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
    samples: int = common.samples("of --images: draws N per image", numbers=False)
    seed: int = setting(0, "of --images: fixes which of them, and the draws", group=NUMBERS)
    device: str = common.device("of --images: where the network runs; auto: CUDA where there is a GPU")
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
