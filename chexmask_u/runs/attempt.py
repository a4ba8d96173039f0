"""One attempt at a run: checked before Ray starts, alone on its folder while it works, and reported at its end."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from chexmask_u import storage, weight_files
from chexmask_u.errors import CheckpointError, InputError
from chexmask_u.manifests.check import ManifestFacts, check_access, check_columns, inspect
from chexmask_u.runs import lock, repair
from chexmask_u.runs.cluster import (
    check_device,
    check_here,
    connected,
    layout,
    on_nodes_of_replicas,
    on_worker,
    peak_memory_mib,
    stopped_in_one_line,
)
from chexmask_u.runs.identity import check_same, freeze
from chexmask_u.runs.job import check_places, check_shipped
from chexmask_u.runs.report import calibration_of, write_report
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings
from chexmask_u.weight_files import WeightFile

# Ray Data takes the rest of a path for a query, or drops it, and would do every image again.
_LOST_ON_RAY = re.compile(r"[?\t\r\n]")


@dataclass(frozen=True)
class Attempt:
    """What one `generate` command does.

    Attributes:
        settings: of the command.
        run: the folder that it works on.
        manifest: what is to be done.
        weights: that every replica loads.
        about_weights: what run.json says of them.
        noise_size: of their network.
    """

    settings: GenerateSettings
    run: Run
    manifest: ManifestFacts
    weights: WeightFile
    about_weights: dict[str, Any]
    noise_size: int


@dataclass(frozen=True)
class Before:
    """What there was when an attempt began: records, and how many of them are of images that failed."""

    done: int
    failed: int


def check(settings: GenerateSettings) -> Attempt:
    """Check what can be known without a cluster.

    Raises:
        InputError: on bad input; nothing was written.
    """
    if settings.manifest is None or settings.output is None:
        raise InputError("--manifest and --output are needed")
    check_places({"--manifest": settings.manifest, "--output": settings.output})
    if settings.weights != weight_files.DEMO:
        check_shipped("--weights", settings.weights)
    uri = storage.normalise(settings.manifest)
    if storage.redact(uri) != uri:
        raise InputError(
            f"--manifest {storage.redact(uri)}: its URL holds a secret; `release` reads the manifest again,"
            " and a run keeps no secrets; copy it to a place without"
        )
    run = Run(storage.normalise(settings.output))
    if lost := _LOST_ON_RAY.search(run.url):
        raise InputError(f"--output {run.url!r}: holds {lost[0]!r}, behind which Ray Data loses files; choose another")
    check_columns(uri)
    weights = weight_files.find_again(settings.weights, (run.read_json("run.json") or {}).get("weights"))
    model = weight_files.load_model(weights, sha256=settings.weights_sha256)
    weights = weights.known(str(model.sha256))
    about_weights = weights.facts() | {
        "sha256": model.sha256,
        "variant": model.variant,
        "input_size": model.input_size,
    }
    noise_size = model.noise_size
    del model
    facts = inspect(uri)
    check_same(run, settings, about_weights, facts.sha256)
    return Attempt(settings, run, facts, weights, about_weights, noise_size)


def finished(attempt: Attempt) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do, which is told; None if there is something.

    Raises:
        InputError: if the storage fails.
    """
    run, rows = attempt.run, attempt.manifest.rows
    summary = run.read_json("report.json")
    if summary is None or not summary["complete"] or run.committed_rows() != rows or repair.lost_parts(run):
        return None
    reasons = attempt.settings.retried_reasons()
    if not reasons.isdisjoint(summary["failures"]):
        return None
    retried = f"; no image failed for a reason that --retry names ({', '.join(sorted(reasons))})" if reasons else ""
    print(f"{run.url}: is finished, and nothing is done again{retried}", file=sys.stderr)
    return summary | {"already_done": rows}


@contextmanager
def under_way(attempt: Attempt) -> Iterator[None]:
    """Be the run's only driver, on a cluster that has what the settings ask for.

    Raises:
        InputError: if the cluster does not have it, or another driver is at work.
    """
    settings = attempt.settings
    check_here(settings.device, settings.precision, settings.address)
    with lock.held(attempt.run.url), connected(settings.address) as started_here, stopped_in_one_line():
        check_device(settings.device, settings.precision, started_here)
        if attempt.weights.source != weight_files.DEMO and not started_here:
            on_nodes_of_replicas(_have_weights, attempt.weights, layout(settings.device, settings.replicas))
        yield


def _have_weights(weights: WeightFile) -> None:
    """Fetch the weights to the machine that this runs on."""
    try:
        weights.fetch()
    except CheckpointError as error:
        raise CheckpointError(f"{error} (on the node {platform.node()})") from error


def begin(attempt: Attempt) -> Before:
    """Freeze or mend the run, take out what is to be tried again, and tell what is there then."""
    run, settings, rows = attempt.run, attempt.settings, attempt.manifest.rows
    on_worker(check_access, attempt.manifest.uri)
    weight_files.say_if_demonstration(settings.weights)
    freeze(run, settings, attempt.manifest, attempt.about_weights)
    _redo_lost(run)
    if settings.retry:
        again = on_worker(repair.redo_failed, run, settings.retried_reasons())
        print(f"{again:,} failed images are done again", file=sys.stderr)
    done = _rows_once(run, run.committed_rows())
    failed = on_worker(Run.failed_rows, run) if done else 0
    if done < rows:
        # That of an earlier attempt would be believed if this one ended before its own.
        run.remove("report.json")
    if done:
        print(f"{done:,} of {rows:,} images are done already, {rows - done:,} are left", file=sys.stderr)
    return Before(done, failed)


def conclude(attempt: Attempt, before: Before, seconds: float, seen: dict[str, float | None]) -> dict[str, Any]:
    """Mend what was lost meanwhile and write the report; returns its summary.

    Args:
        attempt: that ends.
        before: what there was when it began.
        seconds: that its graph took.
        seen: what else the report is to say of it.
    """
    run, rows = attempt.run, attempt.manifest.rows
    _redo_lost(run)
    stored = _rows_once(run, run.committed_rows())
    facts = {
        "complete": stored == rows,
        "manifest_rows": rows,
        "already_done": before.done,
        "left": rows - stored,
        "seconds": seconds,
        "images_per_second": (stored - before.done) / seconds if stored > before.done else 0.0,
        "driver_peak_mib": peak_memory_mib(),
    }
    summary: dict[str, Any] = on_worker(write_report, run, facts | seen, calibration_of(run))
    return summary


def _redo_lost(run: Run) -> None:
    if lost := on_worker(repair.redo_lost, run):
        print(f"{lost} parts of the run were lost or damaged; their images are done again", file=sys.stderr)


def _rows_once(run: Run, rows: int) -> int:
    """Committed rows that are left of so many once parts that repeat others' records are taken out."""
    if not rows or not (doubled := on_worker(repair.redo_doubled, run)):
        return rows
    print(f"{doubled} parts of the run repeated records; what they alone held is done again", file=sys.stderr)
    return run.committed_rows()
