"""Forecast a run on machines with GPUs from what `bench` measured on one of them, without one at hand."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from chexmask_u import storage
from chexmask_u.bench import forecast as probing
from chexmask_u.bench import read as reading
from chexmask_u.bench import report
from chexmask_u.bench.forecast import Probe, Steps, forecast
from chexmask_u.errors import InputError
from chexmask_u.manifests.check import inspect
from chexmask_u.runs import cluster
from chexmask_u.settings import GenerateSettings, PlanSettings
from chexmask_u.sources import PUBLISHED

# Seconds for which masks, and a network that is of no interest, are timed here.
_STEP_SECONDS = 0.5

# Rounds of the file that tells how a core there compares with one here.
_REPEATS = 7


@dataclass(frozen=True)
class There(Probe):
    """What a bench result says of a machine with GPUs.

    Attributes:
        reached: speed of a run that "GPUs" or "cores" bound, over what that part alone can do.
    """

    reached: Mapping[str, float] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        return self.reached["GPUs"]

    def reaches(self, part: str) -> float:
        return self.reached[part]


def run(settings: PlanSettings) -> dict[str, Any]:
    """Forecast from the result that `--bench` names and, where a manifest is given, a sample of it read here.

    Prediction, start-up and what the whole pipeline reaches of its parts are the result's. Reading and masks are
    measured here on the manifest's own images, times how a core there compares with one here on the same drawn file;
    without a manifest they are the result's: of each published source the slowest of its files, by the sources' sizes.

    Returns:
        As `forecast.run`, with `bench`: which result, and what of it was used.

    Raises:
        InputError: if there is no such result, or it is not of a machine with GPUs, whole, and of this format.
    """
    assert settings.bench is not None
    bench = BenchResult.read(settings.bench)
    relative = bench.relative(settings.samples, settings.precision)
    steps, speed = _steps_here(settings), None
    if settings.manifest is None:
        steps = bench.with_reading(steps)
    else:
        speed = bench.seconds_of("read", reading.TYPICAL) / reading.measure(_REPEATS, reading.TYPICAL)[0]["seconds"]
        steps = replace(steps, read_seconds=steps.read_seconds * speed, mask_seconds=steps.mask_seconds * speed)
    probe = bench.probe(steps, relative)
    total = None if settings.manifest is None else inspect(storage.normalise(settings.manifest)).rows
    rows = settings.rows or total or sum(source.expected_rows or 0 for source in PUBLISHED.values())
    fleet = settings.cpus or probe.cores, settings.gpus or probe.gpus
    expected = forecast(probe, rows, *fleet, settings.price_per_hour)
    return {
        **probing.facts(probe, expected, total),
        "bench": bench.facts() | {"core_seconds_there_over_here": speed},
    }


class _Fields(dict[str, Any]):
    """An object of a bench result, which names the file where a field is missing."""

    def __init__(self, file: str, fields: Mapping[str, Any]):
        super().__init__(fields)
        self.file = file

    def __missing__(self, field: str) -> NoReturn:
        raise InputError(
            f"--bench {self.file}: does not say {field!r}, from which a run is forecast; take a result of this"
            " version's chexmask-u bench --device cuda"
        )


@dataclass(frozen=True)
class BenchResult:
    """A JSON file of `bench`, of a machine with GPUs; made by `read`, which refuses others."""

    name: str
    content: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> BenchResult:
        """The result in a file (local path or URL).

        Raises:
            InputError: as `run` says.
        """
        try:
            fs, path = storage.resolve(name)
            content = json.loads(fs.cat_file(path), object_hook=partial(_Fields, name))
        except FileNotFoundError as error:
            raise InputError(f"--bench {name}: no such file{storage.nearest(name)}") from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"--bench {name}: is no JSON file of chexmask-u bench ({storage.explain(error)})"
            ) from error
        result = cls(name, content if isinstance(content, dict) else {})
        result.check()
        return result

    def check(self) -> None:
        """Raise InputError if the result cannot be forecast from."""
        device = self.content.get("device")
        if self.content.get("format") != report.FORMAT or not device or not self.content.get("rows"):
            raise InputError(f"--bench {self.name}: is no result of chexmask-u bench in format {report.FORMAT}")
        if device["kind"] != "cuda":
            raise InputError(
                f"--bench {self.name}: is of a machine without a GPU ({device['name']}); take a result of"
                " chexmask-u bench --device cuda, or probe this kind of machine with --manifest alone"
            )
        if self.content["settings"]["quick"] or not self.content["complete"]:
            what = "of --quick" if self.content["settings"]["quick"] else "unfinished"
            raise InputError(f"--bench {self.name}: is {what}; take one of chexmask-u bench --device cuda that ended")
        if not device.get("gpus"):
            raise InputError(f"--bench {self.name}: does not say how many GPUs the machine has (device.gpus)")
        for part, wanted in (("pipeline", report.PREDICTION_BOUND), ("read", reading.TYPICAL), ("mask", "")):
            self._row(part, wanted)

    def facts(self) -> dict[str, Any]:
        """Which result it is: file, date, device, weights."""
        device, weights = self.content["device"], self.content["weights"]
        return {
            "file": self.name,
            "date": self.content["date"],
            "device": device["name"],
            "cores": device["cores"],
            "gpus": device["gpus"],
            "input_size": weights["input_size"],
            "variant": weights["variant"],
        }

    def seconds_of(self, part: str, name: str) -> float:
        return float(self._row(part, name)["seconds"])

    def probe(self, steps: Steps, relative: float = 1.0) -> There:
        """What a run there does.

        Args:
            steps: whose reading and masks cost what they say, of one of that machine's cores.
            relative: time of the network over what it took there, from `relative`.
        """
        device = self.content["device"]
        cores, gpus = int(device["cores"]), int(device["gpus"])
        whole = self._row("pipeline", report.PREDICTION_BOUND)
        predict_seconds = whole["reference_seconds"] * gpus * relative
        crowded, reached_by_cores = self._all_cores(cores)
        there = replace(
            steps,
            read_seconds=steps.read_seconds * crowded,
            predict_seconds=predict_seconds,
            device=device["name"],
        )
        reached = {"GPUs": 1 / whole["ratio"], "cores": reached_by_cores}
        return There(there, cores, gpus, 1, 1 / whole["seconds"], whole["start_seconds"], reached)

    def with_reading(self, steps: Steps) -> Steps:
        """The steps with what the published sources' images take together, as the result has files like them."""
        slowest: dict[str, Mapping[str, Any]] = {}
        for row in self.content["rows"]["read"]:
            other = slowest.get(row["source"])
            if other is None or row["seconds"] > other["seconds"]:
                slowest[row["source"]] = row
        shares = {name: PUBLISHED[name].expected_rows or 0 for name in slowest}

        def mean(column: str) -> float:
            return sum(row[column] * shares[name] for name, row in slowest.items()) / sum(shares.values())

        return replace(
            steps, read_seconds=mean("seconds"), file_bytes=mean("file_bytes"), mask_seconds=self._mask_seconds()
        )

    def _mask_seconds(self) -> float:
        return statistics.fmean(row["seconds"] for row in self.content["rows"]["mask"])

    def relative(self, samples: int, precision: str) -> float:
        """Time of the network with these draws in this precision over that of the pipeline's.

        Raises:
            InputError: if it was not timed with these.
        """
        rows = [row for row in self.content["rows"]["predict"] if row["name"].startswith("predict")]
        most = max(row["batch"] for row in rows)
        seconds = {(row["samples"], row["precision"]): row["seconds"] for row in rows if row["batch"] == most}
        usual = (self.content["samples"], "float32")
        if (samples, precision) not in seconds:
            timed = ", ".join(f"--samples {n} --precision {name}" for n, name in seconds)
            raise InputError(f"--bench {self.name}: the network was timed with {timed}; choose one of these")
        return float(seconds[samples, precision] / seconds[usual])

    def _all_cores(self, cores: int) -> tuple[float, float]:
        """How much longer reading takes a core while all cores read, and which share of that the pipeline reached."""
        named = {row["name"]: row for row in self.content["rows"]["pipeline"]}
        if report.READING_BOUND not in named:
            # Of --images: what one core takes for those alone is not known.
            return 1.0, 1 / named[report.READING_GIVEN]["ratio"]
        bound = named[report.READING_BOUND]
        alone = bound["reference_seconds"] * cores
        return alone / self.seconds_of("read", reading.SLOWEST), (alone + self._mask_seconds()) / cores / bound[
            "seconds"
        ]

    def _row(self, part: str, name: str) -> Mapping[str, Any]:
        """The first row of a part whose name begins so."""
        for row in self.content["rows"].get(part, []):
            if row["name"].startswith(name):
                found: Mapping[str, Any] = row
                return found
        raise InputError(f"--bench {self.name}: has no row {name!r} of {part}, from which a run could be forecast")


def _steps_here(settings: PlanSettings) -> Steps:
    """The steps over a sample of the manifest or over drawings, on this machine; of the network nothing is used."""
    local = GenerateSettings(weights="demo", samples=settings.samples, device="cpu")
    if settings.manifest is not None:
        manifest = storage.normalise(settings.manifest)
        total = probing.checked_rows(manifest, settings.probe)
        rows = probing.sample(manifest, total, settings.probe, settings.seed)
        return probing.measure_steps(rows, local, 1, cluster.CPU_BATCH, _STEP_SECONDS)
    with tempfile.TemporaryDirectory(prefix="chexmask-u-plan-") as folder:
        rows = report.drawn(Path(folder), (reading.HEIGHT, reading.WIDTH))
        return replace(probing.measure_steps(rows, local, 1, cluster.CPU_BATCH, _STEP_SECONDS), fetch_seconds=0.0)
