"""Settings of the paper's experiments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chexmask_u.anatomy import N_LANDMARKS
from chexmask_u.errors import InputError
from chexmask_u.settings import common
from chexmask_u.settings.base import INPUT, setting
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
    samples: int = common.samples(least=2)
    seed: int = setting(0, "fixes draws, noise, places and resampling", numbers=True)
    batch_size: int = setting(8, "images the network takes at once, and what a kill can undo", least=1)
    device: str = common.device("where the network runs; auto: CUDA where there is a GPU")

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
