"""Settings of what is learnt from and judged on annotated images."""

from __future__ import annotations

from dataclasses import dataclass

from chexmask_u.errors import InputError
from chexmask_u.settings import common
from chexmask_u.settings.base import (
    AUGMENTATION,
    INPUT,
    MACHINES,
    NETWORK,
    NUMBERS,
    OPTIMISER,
    OUTPUT,
    Settings,
    setting,
)


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
    max_side: int = common.max_side(numbers=False)

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
    precision: str = common.precision(
        "arithmetic of the encoder's convolutions", ("float32", "bfloat16"), group=OPTIMISER
    )
    half: bool = setting(False, "save the weights as float16", group=OUTPUT)
    every: int = setting(
        10,
        "epochs between two checkpoints, each with a validation: the most work a kill can undo",
        least=1,
        group=OUTPUT,
    )
    device: str = common.device()
    workers: int | None = setting(
        None, "training processes (default: one per GPU that is up, else one)", least=1, group=MACHINES
    )
    threads: int | None = setting(
        None, "CPU threads of each worker (default: the machine's cores, shared out)", least=1, group=MACHINES
    )
    address: str | None = common.address()

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

    weights: str = common.weights()
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
    samples: int = common.samples(least=2)
    seed: int = setting(
        0, "fixes the draws, together with each image's folder and name, and the drawings", numbers=True
    )
    batch_size: int = common.batch_size(8)
    device: str = common.device("where the network runs; auto: CUDA where there is a GPU")
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
        group=NUMBERS,
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
    weights: str = common.weights()
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
    samples: int = common.samples(least=2)
    seed: int = setting(
        0, "fixes the draws, together with each image's folder and name, and the drawings", numbers=True
    )
    batch_size: int = common.batch_size(8)
    device: str = common.device("where the network runs; auto: CUDA where there is a GPU")
