"""Measure every part in one go and tell it: a table, JSON, and which targets are met."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chexmask_u import pipeline, record, weight_files
from chexmask_u.anatomy import FRAME
from chexmask_u.bench import mask as masks
from chexmask_u.bench import pipeline as whole
from chexmask_u.bench import predict as network
from chexmask_u.bench import read as reading
from chexmask_u.bench import replica
from chexmask_u.bench import train as training
from chexmask_u.bench.apart import apart
from chexmask_u.bench.limits import Machine, augment_work, limit, mask_work, read_work
from chexmask_u.bench.reference import PUBLISHED_VARIANTS, PublishedCode, published_code
from chexmask_u.bench.timing import Row
from chexmask_u.errors import InputError
from chexmask_u.images.letterbox import prepare
from chexmask_u.images.preparation import read_bytes
from chexmask_u.manifests.folder import list_folder
from chexmask_u.model.device import choose
from chexmask_u.result import DONE, INCOMPLETE, Result
from chexmask_u.runs import cluster
from chexmask_u.runs.identity import library_versions
from chexmask_u.settings import BenchSettings, GenerateSettings, ManifestFolderSettings
from chexmask_u.sources.synthetic import draw
from chexmask_u.steps.read import read

# Format of the JSON file; results of another one stay beside the table.
FORMAT = 1

SAMPLES = 50

# Examples in the batch of a training step.
TRAINED_BATCH = 16

# Images of --images that are used; the runs repeat them.
LISTED_IMAGES = 256

# The network's steps take no core where it runs on a GPU. Here all share the cores, so that of the two kinds of files
# only the slower one keeps them busy with decoding alone; the other is not judged.
PREDICTION_BOUND, READING_BOUND = "pipeline, bounded by prediction", "pipeline, bounded by reading (PNG, 16 bit)"
READING_MOSTLY = "pipeline, mostly reading (JPEG)"
_CODE_WORDS = {"encode": "to encode", "decode": "to decode", "whole": "whole"}
# Nobody knows what bounds a run over --images.
READING_GIVEN = "pipeline, mostly reading (--images)"


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        input_size: of the network, in pixels.
        sizes: batches and draws of the network alone.
        repeats, pairs: rounds of the parts, and pairs of runs of the pipeline.
        flow_seconds: for which a run of the pipeline flows.
        small, large: height and width of drawn images whose reading is cheap, and is not.
    """

    input_size: int
    sizes: network.Sizes
    repeats: int
    pairs: int
    flow_seconds: float
    small: tuple[int, int]
    large: tuple[int, int]


# What the project set itself to reach, by kind of device; ratios.
TARGETS: dict[str, dict[str, float]] = {
    "cpu": {"speed": 4.0, "draws": 2.5},
    "cuda": {"speed over the code": 60.0, "draws": 1.3, "encoder": 2.0},
}
PREDICTION_FRACTION, READING_FRACTION = 0.90, 0.85
HOST_SECONDS = 0.3e-3


def run(settings: BenchSettings) -> dict[str, Any]:
    """Measure everything on this machine.

    Returns:
        What the JSON file holds; see `render` for its meaning.

    Raises:
        InputError: if there is no GPU where one is asked for, no image can be read, the published algorithm has no such
            variant of the network, or other input is bad.
    """
    kind = choose(settings.device)
    scale = _scale(settings.quick, kind)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="chexmask-u-bench-") as temporary:
        folder = Path(temporary)
        listed = None if settings.images is None else _listed(settings.images, folder)
        weights = settings.weights
        if weights is None:
            weights = str(folder / "stretched.safetensors")
            network.stretched(scale.input_size, Path(weights))
        found = weight_files.find(weights)
        model = weight_files.load_model(found)
        # Every process and run after this takes the very same file.
        weights = found.uri
        if model.variant not in PUBLISHED_VARIANTS:
            raise InputError(
                f"--weights {found.source}: are of the variant {model.variant}, which the published algorithm, that it"
                f" is compared with, does not have; take those of the variant {' or '.join(PUBLISHED_VARIANTS)}"
            )
        name = torch.cuda.get_device_name() if kind == "cuda" else _processor()
        code = published_code(kind, name, os.cpu_count())
        if (model.input_size, model.variant) != (FRAME, "skip"):
            code = None
        rows: dict[str, list[Row]] = {}
        rows["predict"], machine = _network(weights, kind, scale, code)
        facts: dict[str, Any] = {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": {"version": library_versions()["chexmask_u"], "sha256": _code_sha256()},
            "versions": library_versions(),
            "device": {
                "kind": kind,
                "name": name,
                "gpus": torch.cuda.device_count() if kind == "cuda" else 0,
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
            "settings": settings.asdict(),
            "scale": asdict(scale),
            "samples": SAMPLES,
            "weights": {
                "source": settings.weights
                or f"demo, stretched to {model.input_size}: made for timing, numbers mean nothing",
                "commit": found.commit,
                "input_size": model.input_size,
                "variant": model.variant,
            },
            "machine": asdict(machine),
            "published_code": None if code is None else asdict(code),
        }
        rest: dict[str, Callable[[], list[Row]]] = {
            "read": lambda: _reading(scale.repeats, machine),
            "mask": lambda: _masks(scale.repeats, machine),
            "train": lambda: _training(kind, scale, machine),
            "replica": lambda: _replica(scale),
            "pipeline": lambda: _pipeline(weights, kind, scale, listed, folder),
        }
        for part, measure in rest.items():
            # What is measured is kept, should a later part fail or take longer than the machine is there.
            _result(settings, facts, load_before, rows | {later: [] for later in rest if later not in rows})
            rows[part] = measure()
    return _result(settings, facts, load_before, rows)


def _result(
    settings: BenchSettings, facts: dict[str, Any], load_before: tuple[float, ...], rows: Mapping[str, list[Row]]
) -> dict[str, Any]:
    """What is known once these rows are measured, kept where the settings say."""
    complete = all(rows.values())
    result = facts | {"load_average": {"before": load_before, "after": os.getloadavg()}, "rows": rows}
    # A quick run is not judged.
    result["targets"] = [] if settings.quick else targets(facts["device"]["kind"], rows, facts["published_code"])
    result["complete"] = complete
    result["passed"] = complete and all(target["passed"] for target in result["targets"])
    if settings.output is not None:
        keep(result, Path(settings.output))
    return result


def targets(kind: str, rows: Mapping[str, list[Row]], code: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Each target with the value that was reached: name, value, threshold, whether more is better, passed.

    Args:
        kind: "cpu" or "cuda".
        rows: by part.
        code: what the published code itself took on this device, as a dict, if it is known.
    """
    wholes = [row for row in rows["predict"] if row["name"].startswith("predict")]
    plain = [row for row in wholes if row["precision"] == "float32"]
    usual = [row for row in plain if row["samples"] == SAMPLES]
    most = max(row["batch"] for row in plain)
    by_draws = {row["samples"]: row["seconds"] for row in plain if row["batch"] == most}
    wanted = TARGETS[kind]
    found = [_target("time of N = 200 over N = 10", by_draws[200] / by_draws[10], wanted["draws"], more=False)]
    if "speed" in wanted:
        speed = max(1 / row["ratio"] for row in usual)
        found.append(_target(f"speed over the published algorithm, N = {SAMPLES}", speed, wanted["speed"]))
    if "speed over the code" in wanted and code is not None:
        speed = code["whole"] / min(row["seconds"] for row in usual)
        found.append(_target(f"speed over the published code, N = {SAMPLES}", speed, wanted["speed over the code"]))
    if "encoder" in wanted:
        encoder = next(
            row for row in rows["predict"] if row["name"].startswith("encoder") and row["precision"] == "float32"
        )
        found.append(
            _target("time of the encoder over its limit", encoder["times_limit"], wanted["encoder"], more=False)
        )
    found += [
        _target(f"{row['name']}: host work, ms", 1e3 * row["host_seconds"], 1e3 * HOST_SECONDS, more=False)
        for row in rows["replica"]
    ]
    fractions = {PREDICTION_BOUND: PREDICTION_FRACTION, READING_BOUND: READING_FRACTION}
    for row in rows["pipeline"]:
        if row["name"] in fractions:
            fraction = fractions[row["name"]]
            found.append(_target(f"{row['name']}: speed over that step alone", 1 / row["ratio"], fraction))
        held = max(row["object_store_peak_mib"]) / row["object_store_limit_mib"]
        found.append(_target(f"{row['name']}: object store over its bound", held, 1.0, more=False))
    return found


def render(result: Mapping[str, Any]) -> str:
    """The result as a table for a person.

    Times are of one image, and medians over rounds in which everything has its turn. "faster" compares with the
    published algorithm, for as many draws as that was timed with, or with what the published code itself took on such a
    device, where that is known and less. "limit" is the time over the least that the part's bytes and FLOP take at the
    rates of this machine (see `limits`). Reading, masks and augmentation are of one core, beside the bare library calls
    or decoding; a GPU's training step is beside a plain one. "host" is the processor time of a replica's process.
    """
    device, machine, weights, rows = result["device"], result["machine"], result["weights"], result["rows"]
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in machine["flop_per_second"].items())
    load = result["load_average"]
    code = result.get("published_code")
    lines = [
        f"{result['date']}  {device['name']}, {device['cores']} cores, load {load['before'][0]:.1f} before,"
        f" {load['after'][0]:.1f} after" + ("  (quick: nothing is judged)" if result["settings"]["quick"] else ""),
        f"Weights: {weights['source']} (input {weights['input_size']}, {weights['variant']})",
        f"Machine: copies {machine['bytes_per_second'] / 1e9:,.1f} GB/s read and written; products {rates}",
        "",
        f"{'network':<44} {'ms':>9} {'images/s':>9} {'faster':>7} {'limit':>7}",
    ]
    lines += [
        f"{row['name']:<44} {_ms(row)} {1 / row['seconds']:>9.1f} {_faster(row, result['samples'])}"
        f" {row['times_limit']:>6.1f}x"
        for row in rows["predict"]
    ]
    if code is not None:
        times = ", ".join(f"{1e3 * code[part]:.1f} ms {words}" for part, words in _CODE_WORDS.items())
        lines.append(f"(the published code itself on such a device, measured once: {times};")
        lines.append(' "faster" compares with the faster of it and the published algorithm as it is written here)')
    for part, beside in (("read", "bare calls"), ("mask", "decoding"), ("train", "bare calls")):
        # What was measured before there was such a part.
        if part not in rows:
            continue
        lines += ["", f"{part + ', one core':<44} {'ms':>9} {'images/s':>9} {'of ' + beside:>14} {'limit':>7}"]
        lines += [
            f"{row['name']:<44} {_ms(row)} {1 / row['seconds']:>9.1f} {row['ratio']:>13.2f}x {_times_limit(row)}"
            for row in rows[part]
        ]
    if rows.get("replica"):
        head = "replica, its device replaced by a wait"
        lines += ["", f"{head:<44} {'ms':>9} {'images/s':>9} {'of the wait':>11} {'host ms':>8}"]
        lines += [
            f"{row['name']:<44} {_ms(row)} {1 / row['seconds']:>9.1f} {1 / row['ratio']:>11.0%}"
            f" {1e3 * row['host_seconds']:>8.2f}"
            for row in rows["replica"]
        ]
    lines += [
        "",
        f"{'whole, once it flows':<44} {'ms':>9} {'images/s':>9} {'of alone':>9} {'start s':>8} {'store MiB':>10}",
    ]
    lines += [
        f"{row['name']:<44} {_ms(row)} {1 / row['seconds']:>9.1f} {1 / row['ratio']:>9.0%} {row['start_seconds']:>8.1f}"
        f" {max(row['object_store_peak_mib']):>5.0f}/{row['object_store_limit_mib']:.0f}"
        for row in rows["pipeline"]
    ]
    missing = [part for part, measured in rows.items() if not measured]
    if missing:
        lines += ["", f"unfinished: {', '.join(missing)} not measured"]
    if result["targets"]:
        lines += ["", "targets"]
        lines += [
            f"  {'met   ' if target['passed'] else 'MISSED'} {target['name']}: {target['value']:.2f}"
            f" ({'at least' if target['more'] else 'at most'} {target['threshold']:g})"
            for target in result["targets"]
        ]
    return "\n".join(lines)


def keep(result: Mapping[str, Any], folder: Path) -> Path:
    """Write a result as JSON, and a README.md of all results in the folder; returns the JSON file."""
    device = result["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{device['name']} {device['cores']} cores".lower()).strip("-")
    quick = "-quick" if result["settings"]["quick"] else ""
    path = folder / f"{result['date'][:10]}-{slug}{quick}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
        results = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
        tables = "\n\n".join(f"```\n{render(one)}\n```" for one in results if one.get("format") == FORMAT)
        (folder / "README.md").write_text(
            f"# Results of `chexmask-u bench`\n\nWritten by it from the JSON files.\n\n{tables}\n"
        )
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written ({error.strerror})") from error
    return path


def _scale(quick: bool, kind: str) -> Scale:
    if quick:
        sizes = network.Sizes((1, 2), (5, SAMPLES), network.precisions(kind))
        return Scale(64, sizes, repeats=1, pairs=1, flow_seconds=1.0, small=(256, 256), large=(400, 500))
    sizes = network.Sizes((1, 4, 16) if kind == "cpu" else (1, 16, 64), (10, SAMPLES, 200), network.precisions(kind))
    large = (reading.HEIGHT, reading.WIDTH)
    return Scale(1024, sizes, repeats=7, pairs=3, flow_seconds=20.0, small=(FRAME, FRAME), large=large)


def _network(weights: str, kind: str, scale: Scale, code: PublishedCode | None = None) -> tuple[list[Row], Machine]:
    images = np.stack([draw(index).image for index in range(4)])
    with apart(weights, kind, images[0], SAMPLES) as published:
        timed = network.cases(weights, kind, published, images, SAMPLES, scale.sizes)
        measured = network.measure(timed, kind, scale.repeats, code)
    # The pipeline's own replica needs the memory.
    del timed
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()
    return measured


def _reading(repeats: int, machine: Machine) -> list[Row]:
    rows = reading.measure(repeats)
    for row, file in zip(rows, reading.source_files(), strict=True):
        image = read_bytes(file.data, source=file.source, max_side=GenerateSettings().max_side)
        _add_limit(row, limit(read_work(len(file.data), image.height * image.width), machine, "float32"))
    return rows


def _masks(repeats: int, machine: Machine) -> list[Row]:
    rows = masks.measure(repeats)
    _, letterbox = prepare(np.zeros((reading.HEIGHT, reading.WIDTH), np.uint8))
    least = limit(mask_work(letterbox.to_original(draw(0, side=FRAME).landmarks)), machine, "float32")
    for row in rows:
        _add_limit(row, least)
    return rows


def _training(kind: str, scale: Scale, machine: Machine) -> list[Row]:
    rows = training.measure(scale.repeats)
    # A step's own limit is not known.
    for row in rows:
        _add_limit(row, limit(augment_work(row["side"]), machine, "float32"))
    if kind == "cuda":
        rows += training.steps(torch.device(kind), scale.input_size, TRAINED_BATCH, scale.repeats)
    return rows


def _replica(scale: Scale) -> list[Row]:
    with cluster.connected(None):
        return replica.measure(scale.flow_seconds, scale.pairs)


def _add_limit(row: Row, least: float) -> None:
    row |= {"limit_seconds": least, "times_limit": row["seconds"] / least}


def _pipeline(weights: str, kind: str, scale: Scale, listed: pa.Table | None, folder: Path) -> list[Row]:
    """The whole pipeline where prediction bounds it, and where reading does: a tiny network that draws once."""
    tiny = folder / "tiny.safetensors"
    network.stretched(64, tiny)
    predicting = GenerateSettings(weights=weights, device=kind)
    decoding = GenerateSettings(weights=str(tiny), samples=1, device=kind)
    small = drawn(folder / "small", scale.small) if listed is None else listed
    with cluster.connected(None):
        share = cluster.layout(kind)
        cores = min(share.cores, os.cpu_count() or 1)
        some = whole.repeated(small, 4 * share.batch)

        def measure(name: str, settings: GenerateSettings, rows: pa.Table, bottleneck: Callable[[], float]) -> Row:
            return whole.measure(
                name,
                settings,
                rows,
                str(folder / "runs"),
                flow_seconds=scale.flow_seconds,
                cores=cores,
                repeats=scale.pairs,
                bottleneck=bottleneck,
            )

        def measure_reading(name: str, rows: pa.Table) -> Row:
            many = whole.repeated(rows, 2 * pipeline.rows_per_block(share.batch))
            return measure(name, decoding, rows, lambda: whole.read_seconds(many, decoding.max_side, cores))

        return [
            measure(PREDICTION_BOUND, predicting, small, lambda: whole.predict_seconds(predicting, some)),
            *(measure_reading(name, rows) for name, rows in reading_workloads(listed, scale.large, folder).items()),
        ]


def reading_workloads(listed: pa.Table | None, size: tuple[int, int], folder: Path) -> dict[str, pa.Table]:
    """Manifest rows to time reading with, by the name of the result's row.

    Those given are one workload. Else files are drawn into the folder: those that reading takes longest for are like
    PadChest's, and the others like CheXpert's and MIMIC-CXR-JPG's.

    Args:
        listed: manifest rows of --images, or None.
        size: height and width of what is drawn.
        folder: local, for what is drawn.
    """
    if listed is not None:
        return {READING_GIVEN: listed}
    return {
        READING_BOUND: drawn(folder / "deep", size, deep=True),
        READING_MOSTLY: drawn(folder / "large", size),
    }


def _listed(images: str, folder: Path) -> pa.Table:
    """Manifest rows of the images below a folder or URL, evenly chosen."""
    listed = str(folder / "listed.parquet")
    list_folder(ManifestFolderSettings(uri=images, output=listed))
    rows = pq.read_table(listed)
    rows = rows.take(np.unique(np.linspace(0, len(rows) - 1, LISTED_IMAGES).astype(int)))
    first = read(rows.slice(0, pipeline.ROWS_PER_BLOCK))
    if record.OK not in first["status"].to_pylist():
        reason, message = first["reason"][0], first["error"][0]
        raise InputError(f"--images {images}: none of {len(first)} images can be read (the first: {reason}, {message})")
    return rows


def drawn(folder: Path, size: tuple[int, int], *, deep: bool = False) -> pa.Table:
    """Manifest rows of drawn radiographs: 8-bit JPEG files, or PNG files of 16 bits, 12 of them used."""
    (folder / "images").mkdir(parents=True)
    for index in range(8):
        grey = draw(index, side=max(size)).image[: size[0], : size[1]]
        name, image = (f"{index}.png", reading.twelve_bit(grey)) if deep else (f"{index}.jpg", grey)
        cv2.imwrite(str(folder / "images" / name), image)
    listed = str(folder / "manifest.parquet")
    list_folder(ManifestFolderSettings(uri=str(folder / "images"), output=listed))
    return pq.read_table(listed)


def _target(name: str, value: float, threshold: float, *, more: bool = True) -> dict[str, Any]:
    passed = value >= threshold if more else value <= threshold
    return {"name": name, "value": value, "threshold": threshold, "more": more, "passed": passed}


def _faster(row: Row, samples: int) -> str:
    return f"{1 / row['ratio']:>6.1f}x" if row.get("samples", samples) == samples else f"{'-':>7}"


def _times_limit(row: Row) -> str:
    return f"{row['times_limit']:>6.1f}x" if "times_limit" in row else f"{'-':>7}"


def _ms(row: Row) -> str:
    return f"{1e3 * row['seconds']:>9.2f}"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _code_sha256() -> str:
    """Digest of this package's Python files: what was measured, without git."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def verb(settings: BenchSettings) -> Result:
    """`chexmask-u bench`."""
    facts = run(settings)
    return Result(facts, render(facts), INCOMPLETE if settings.check and not facts["passed"] else DONE)
