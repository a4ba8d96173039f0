"""Settings of the paper's experiments."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from chexmask_u.anatomy import N_LANDMARKS
from chexmask_u.errors import InputError
from chexmask_u.settings import common
from chexmask_u.settings.base import INPUT, MACHINES, flag, setting
from chexmask_u.settings.common import NO_CALIBRATION, WEIGHTS_HELP
from chexmask_u.settings.training import AnnotatedSettings

# How the first line of an experiment's module begins.
_EXPERIMENT = "Experiment: "


def _experiments() -> dict[str, str]:
    """What each experiment does, by its name."""
    said = {
        module.stem: common.first_line(module)
        for module in sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))
    }
    return {name: line.removeprefix(_EXPERIMENT) for name, line in said.items() if line.startswith(_EXPERIMENT)}


EXPERIMENTS = _experiments()

ALL_EXPERIMENTS = "all"
"""The experiment that is all of them."""

RECORDS_NEEDED = "rca takes records with Dice RCA scores: give --release, --run or --published"


def _only(experiments: str, default: Any, help: str, **said: Any) -> Any:
    """A setting of some experiments alone, and of the one that is all of them."""
    return setting(default, f"{experiments}: {help}", only=(*experiments.split(", "), ALL_EXPERIMENTS), **said)


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
    size: tuple[int, ...] = _only(
        "occlusion",
        (),
        "side of the squares in pixels of the 1024 frame; may be repeated (default: 100, 200 and 300)",
        numbers=True,
    )
    node: tuple[int, ...] = _only(
        "occlusion",
        (),
        "landmark, 0 to 119, around which a square is laid; may be repeated (default: of each image one of"
        " each organ, chosen by the image's name)",
        numbers=True,
    )
    corruption: tuple[str, ...] = _only(
        "noise",
        (),
        "noise, blur, contrast, gamma, rotation, cropping or blending; may be repeated (default: noise, blur,"
        " contrast and blending)",
        numbers=True,
    )
    kind: tuple[str, ...] = _only(
        "pixel",
        (),
        "clean, squares, noise, rotation or gamma, which images are made; may be repeated (default: all)",
        numbers=True,
    )
    count: tuple[int, ...] = _only(
        "samples", (), "draws N; may be repeated (default: 10, 25, 50, 100 and 200)", numbers=True
    )
    timed: int = _only(
        "samples, pixel",
        2,
        "how many of the images are predicted once more to time it",
        least=1,
        group=MACHINES,
    )
    run: str | None = _only(
        "error, ood, rca",
        None,
        "take the records of this run of generate (local path or URL)",
        group=INPUT,
    )
    release: str | None = _only(
        "error, ood, rca",
        None,
        "take the records of one version (local path or URL)",
        group=INPUT,
    )
    published: tuple[str, ...] = _only(
        "error, rca",
        (),
        "take the rows of published CSVs with Landmarks (Std) (local paths or URLs); may be repeated",
        group=INPUT,
    )
    annotator: tuple[str, ...] = _only(
        "error",
        (),
        "another person's landmarks: DATASET=PATH for --data, as --landmarks takes them; for records one or two"
        " sets of CSVs with an id and Landmarks, of the 1024 frame: NAME=CSV, a name a person; may be repeated",
        group=INPUT,
    )
    out_of: tuple[str, ...] = _only(
        "ood",
        (),
        "images that are no frontal chest radiographs (--images and --data are those that are), files or folders, whose"
        " names tell their kinds apart in the results; or with --run and --release a run or release of such; may be"
        " repeated (default: of images, altered copies and drawings; of records, those with a Dice RCA (Mean) below"
        " --dice)",
        kind="IMAGE",
        group=INPUT,
    )
    labels: str | None = _only(
        "ood",
        None,
        "CSV with columns name and label (in or out) that says which of --images and --data are which, where they are"
        " mixed",
        kind="FILE",
        group=INPUT,
    )
    dice: float = _only(
        "ood",
        0.7,
        "Dice RCA (Mean) below which a record is out",
        numbers=True,
        least=0,
        most=1,
    )
    samples: int = common.samples(least=2)
    seed: int = setting(0, "fixes draws, noise, places and resampling", numbers=True)
    batch_size: int = common.batch_size(8, "images the network takes at once, and what a kill can undo")
    device: str = common.device("where the network runs; auto: CUDA where there is a GPU")

    def __post_init__(self) -> None:
        for one in fields(self):
            takers = one.metadata["only"]
            if takers and self.experiment not in takers and getattr(self, one.name) != one.default:
                raise InputError(f"{flag(one.name)}: {self.experiment} does not take it, but {', '.join(takers)} do")
        if self.experiment == "rca" and not self.has_records:
            raise InputError(RECORDS_NEEDED)
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
