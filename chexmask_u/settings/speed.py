"""Settings of measuring, planning and telling what there is."""

from __future__ import annotations

from dataclasses import dataclass, fields

from chexmask_u.errors import InputError
from chexmask_u.settings import common
from chexmask_u.settings.base import INPUT, MACHINES, Settings, flag, setting


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
    device: str = common.device("where the network runs; auto: on a GPU if there is one")
    images: str | None = setting(
        None, "folder or URL of images (default: drawn ones, on the local disk)", kind="FOLDER", group=INPUT
    )
    output: str | None = setting(None, "local folder to keep the result in, as JSON", kind="FOLDER")
    check: bool = setting(False, "end with exit code 1 if a target is missed")


@dataclass(frozen=True)
class PlanSettings(Settings):
    """Forecast a run from a short probe on your own images and hardware, or from a bench result of a GPU's machine."""

    manifest: str | None = setting(
        None, "manifest Parquet file (local path or URL) to sample", kind="FILE", group=INPUT
    )
    bench: str | None = setting(
        None,
        "JSON file of chexmask-u bench, of a machine with GPUs (local path or URL): what is forecast of these is taken"
        " from it, and --manifest is sampled for reading and masks alone",
        kind="FILE",
        group=INPUT,
    )
    weights: str = common.weights()
    samples: int = common.samples(numbers=False)
    precision: str = common.precision("arithmetic of the encoder, as for generate", numbers=False)
    device: str = common.device()
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
    address: str | None = common.address()

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
class InfoSettings(Settings):
    """Say what a bug report asks for: versions, devices, weights, and the sources with their terms."""

    weights: str = common.weights()
    check: bool = setting(
        False, "predict drawings with the weights: whether the numbers are sane (exit code 1 if not), and how fast"
    )
    device: str = common.device("where --check predicts; auto: on a GPU if there is one")
