"""As many records as CheXmask has: an hour and 20 GB of disk. Slow: `pytest -m slow -s tests/runs/test_scale.py`.

Images and network are drawn, see `drawn_run`, and an image has 64 pixels, since 690 GB of empty ones prove nothing; all
else is the product, on the Ray that it starts on this machine. A machine has other things to do, so growth is judged by
the processor seconds of the command and of all that it started, as /proc has them; the clock's are printed too.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from chexmask_u import cli, record, sources
from chexmask_u.anatomy import ORGANS
from chexmask_u.manifests import parquet
from chexmask_u.steps.mask import organ_mask, rle_encode
from tests.support import drawn_run

PUBLISHED: dict[str, int] = {name: source.expected_rows or 0 for name, source in sources.PUBLISHED.items()}
TOTAL = 657_566
SWEEP = (10_000, 30_000, 100_000)

# Records of a run that is nothing but start and end: what the others take beside their records.
START = 320

# The published scores of the last source's rows are fewer than its images.
WITHOUT_SCORES = 103

DRIVER_MIB = 2_000
DRIVER_BYTES = 2_048  # for each record more: 657,566 of them keep to DRIVER_MIB
SLOPE = 0.1
POLL_SECONDS = 0.5
TICKS = os.sysconf("SC_CLK_TCK")

# The longest that a worker may outlive its driver. Ray's agents stay for a minute, and only watch.
END_SECONDS = 60.0
RAY_AGENTS = ("ray::DashboardA", "ray::RuntimeEnv", "ray-dashboard", "python")


@dataclass
class Process:
    """What /proc told of a process: processor seconds so far, and the most MiB that it ever held, shared ones too."""

    name: str
    seconds: float = 0.0
    peak_mib: float = 0.0


@dataclass
class Attempt:
    """One command, and what was seen of it and of all processes below it.

    Attributes:
        seconds: wall clock.
        code: what it ended with.
        driver_mib: its own peak.
        processes: by id and start time; the command's own is among them.
        commits: seconds since the start, committed records and processor seconds, whenever the records grew.
        gone_after: seconds from its end until none of the processes was left that could write.
        answer: the JSON that it ended with, or {}.
    """

    seconds: float = 0.0
    code: int | None = None
    driver_mib: float = 0.0
    processes: dict[tuple[int, str], Process] = field(default_factory=dict)
    commits: list[tuple[float, int, float]] = field(default_factory=list)
    gone_after: float = 0.0
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        return sum(process.seconds for process in self.processes.values())

    @property
    def largest(self) -> Process:
        """The largest process that is not the driver."""
        others = [process for process in self.processes.values() if not process.name.startswith("driver")]
        return max(others, key=lambda process: process.peak_mib, default=Process("none"))


def run(verb: str, *arguments: str | Path, folder: Path, watched: Path | None = None, kill_at: int = 0) -> Attempt:
    """Type one command and watch it.

    Args:
        watched: the run whose commits are counted.
        kill_at: kill -9 the command once so many records are committed; never, if 0.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Ray's sockets have at most 107 characters.
    environment |= {"RAY_TMPDIR": str(folder / "ray")}
    # Ray's workers give way to all others by default; of a clock's time those would be the most.
    environment |= {"RAY_worker_niceness": "0"}
    (folder / "ray").mkdir(exist_ok=True)
    command = [sys.executable, drawn_run.__file__, verb, *map(str, arguments), "--json"]
    attempt = Attempt()
    rows = committed(watched, {}) if watched else {}
    start = time.monotonic()
    with (folder / "stdout").open("wb") as output, (folder / "stderr").open("ab") as errors:
        driver = subprocess.Popen(command, env=environment, stdout=output, stderr=errors, cwd=folder)
    try:
        while driver.poll() is None:
            look(driver.pid, attempt)
            if watched is not None:
                before, rows = rows, committed(watched, rows)
                done = sum(rows.values())
                if len(rows) > len(before):
                    attempt.commits.append((time.monotonic() - start, done, attempt.cpu_seconds))
                if kill_at and done >= kill_at:
                    driver.kill()
            time.sleep(POLL_SECONDS)
    finally:
        driver.kill()
        attempt.code = driver.wait()
        attempt.seconds = time.monotonic() - start
        end_all(attempt)
    if not kill_at:
        lines = (folder / "stdout").read_text().splitlines()
        attempt.answer = json.loads(lines[-1])
        assert attempt.code == 0, (folder / "stderr").read_text()[-4000:]
    return attempt


def committed(run: Path, known: dict[Path, int]) -> dict[Path, int]:
    """Rows by checkpoint, of those that are not `known` from their footers."""
    names = [path for path in (run / "checkpoint").glob("*.parquet") if not path.name.endswith(".pending.parquet")]
    return {path: known[path] if path in known else pq.read_metadata(path).num_rows for path in names}


def look(driver: int, attempt: Attempt) -> None:
    """Note what /proc says of a process and of all below it."""
    found: dict[int, tuple[int, str, float, str]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                name, _, rest = (path / "stat").read_text().partition("(")[2].rpartition(")")
                values = rest.split()
                found[int(path.name)] = (
                    int(values[1]),
                    values[19],
                    (int(values[11]) + int(values[12])) / TICKS,
                    name,
                )
    below = {driver}
    new = below
    while new:
        new = {pid for pid, (parent, *_) in found.items() if parent in new} - below
        below |= new
    for pid in below & found.keys():
        _, started, seconds, name = found[pid]
        process = attempt.processes.setdefault((pid, started), Process(name))
        process.name = "driver" if pid == driver else name
        process.seconds = seconds
        with suppress(OSError, IndexError):
            status = Path(f"/proc/{pid}/status").read_text()
            process.peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 2**10
        if pid == driver:
            attempt.driver_mib = process.peak_mib


def end_all(attempt: Attempt) -> None:
    """Wait until none of an attempt's processes is left but Ray's agents, which stay for a minute, and end those."""

    def left() -> list[int]:
        return [pid for pid, started in attempt.processes if started_at(pid) == started]

    names = {pid: process.name for (pid, _), process in attempt.processes.items()}
    start = time.monotonic()
    while writers := [pid for pid in left() if not names[pid].startswith(RAY_AGENTS)]:
        assert time.monotonic() - start < END_SECONDS, [names[pid] for pid in writers]
        time.sleep(0.1)
    attempt.gone_after = time.monotonic() - start
    for pid in left():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def started_at(pid: int) -> str | None:
    """Start time of a living process, which tells it from a later one of its id."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if values[0] == "Z" else values[19]


def image_id(source: str, number: int) -> str:
    """An image's id as its source writes them."""
    digest = hashlib.md5(f"{source}{number}".encode(), usedforsecurity=False).hexdigest()
    return {
        "chestx-ray8": f"{number // 4:08d}_{number % 4:03d}.png",
        "chexpert": f"train/patient{number // 3:05d}/study{number % 3 + 1}/view1_frontal.jpg",
        "mimic-cxr-jpg": "-".join(digest[part : part + 8] for part in (0, 8, 16, 24)),
        "padchest": f"{int(digest, 16) % 10**38:038d}_{number:06d}.png",
        "vindr-cxr": digest,
    }[source]


def list_images(records: int, folder: Path) -> Path:
    """A manifest of so many drawn images: a share of every published source, merged as users do it."""
    total = sum(PUBLISHED.values())
    parts = []
    for source, published in PUBLISHED.items():
        count = published if records == total else round(published * records / total)
        ids = [image_id(source, number) for number in range(count)]
        record_ids = [f"{source}/{name}" for name in ids]
        scores = np.random.default_rng(0).uniform(0.6, 0.95, count)
        none = np.arange(count) >= count - (WITHOUT_SCORES if source == "padchest" else 0)
        columns = {
            "record_id": record_ids,
            "uri": [drawn_run.uri(record_id) for record_id in record_ids],
            "source": [source] * count,
            "image_id": ids,
            "dice_rca_mean": pa.array(scores, mask=none),
            "dice_rca_max": pa.array(scores + 0.03, mask=none),
            "height": pa.nulls(count),
            "width": pa.nulls(count),
        }
        parts.append(folder / f"{source}.parquet")
        parquet.write([pa.table(columns).cast(record.MANIFEST)], str(parts[-1]))
    path = folder / "manifest.parquet"
    less = [] if records == total else ["--accept-less"]
    assert cli.main(["manifest", "merge", *map(str, parts), "--output", str(path), *less]) == 0
    return path


def generate(folder: Path, kill_at: int = 0) -> Attempt:
    run_ = folder / "run"
    command = ("--manifest", folder / "manifest.parquet", "--output", run_)
    return run("generate", *command, folder=folder, watched=run_, kill_at=kill_at)


def make_release(folder: Path) -> Attempt:
    return run("release", folder / "run", "--output", folder / "releases", folder=folder)


def validate(folder: Path) -> Attempt:
    return run("validate", folder / "releases" / "v1.0.0", folder=folder)


def mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def describe(verb: str, records: int, attempt: Attempt) -> None:
    largest = attempt.largest
    say(
        f"{verb} {records:,}: {attempt.seconds:.0f} s, {attempt.cpu_seconds:.0f} processor s,"
        f" driver {attempt.driver_mib:.0f} MiB, largest other process {largest.name} {largest.peak_mib:.0f} MiB"
    )


def flow(attempts: list[Attempt]) -> tuple[int, float, float]:
    """Records, seconds and processor seconds between each attempt's first and last commit."""
    some = [attempt.commits for attempt in attempts if len(attempt.commits) > 1]
    seconds, records, cpu = (sum(commits[-1][i] - commits[0][i] for commits in some) for i in range(3))
    return int(records), seconds, cpu


def measure(records: int, folder: Path) -> dict[str, Attempt]:
    """An undisturbed run of so many records, its release and the release's check."""
    place = folder / str(records)
    place.mkdir()
    list_images(records, place)
    attempts = {}
    for verb, step in (("generate", generate), ("release", make_release), ("validate", validate)):
        attempts[verb] = step(place)
        describe(verb, records, attempts[verb])
    say(f"  run {mib(place / 'run'):.0f} MiB, release {mib(place / 'releases'):.0f} MiB")
    answer = attempts["generate"].answer
    assert answer["complete"]
    # Here too, where a difference shows within a minute.
    check_records(place, np.random.default_rng(0))
    say(f"  graph {answer['seconds']:.0f} s, {answer['images_per_second']:.0f}/s, {flow([attempts['generate']])}")
    return attempts


def slope(start: float, sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """p of the curve start + b * records ** p that fits best in logarithms.

    Plainly taking the start from each would make a second more or less of it decide, where it is most of the time.
    """

    def curve(records: NDArray[np.float64], log_b: float, p: float) -> NDArray[np.float64]:
        return np.log(start + np.exp(log_b) * records**p)

    (_, p), _ = curve_fit(curve, np.array(sizes, float), np.log(seconds), p0=(-6, 1))
    return float(p)


@dataclass
class Measured:
    """Undisturbed runs by their number of records, each with the attempts that its verbs took."""

    attempts: dict[int, dict[str, Attempt]]

    def slope(self, verb: str, of: str) -> float:
        """Slope of the sweep's seconds, wall clock's or processors'."""
        taken = [getattr(self.attempts[size][verb], of) for size in (START, *SWEEP)]
        return slope(taken[0], SWEEP, taken[1:])


@pytest.fixture(scope="module")
def sweep() -> Iterator[Measured]:
    # Not pytest's own folder, which stays.
    with tempfile.TemporaryDirectory(prefix="scale", dir="/tmp") as name:
        yield Measured({records: measure(records, Path(name)) for records in (START, *SWEEP)})


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_time_grows_linearly(sweep: Measured) -> None:
    for verb in ("generate", "release", "validate"):
        wall, cpu = sweep.slope(verb, "seconds"), sweep.slope(verb, "cpu_seconds")
        say(f"{verb}: slope {wall:.3f} of seconds, {cpu:.3f} of processor seconds")
    # The clock also tells what else the machine did. Less than 1 is what 10,000 records pay for files that are small.
    # Of a release and its check the start is a third here and more: the whole run, further below, judges them.
    assert sweep.slope("generate", "cpu_seconds") < 1 + SLOPE


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_the_driver_of_a_run_and_of_a_release_hardly_grows(sweep: Measured) -> None:
    # `validate` has no driver: it works itself, and holds a row group.
    for verb in ("generate", "release"):
        small, large = (sweep.attempts[size][verb].driver_mib for size in (SWEEP[0], SWEEP[-1]))
        # Ids, and Ray's own bookkeeping of tasks, may grow it a little; a record alone takes 60 kB.
        assert large - small < (SWEEP[-1] - SWEEP[0]) * DRIVER_BYTES / 2**20


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scale", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_run_of_657_566_records_is_killed_twice_and_released_whole(sweep: Measured, whole: Path) -> None:
    assert sum(PUBLISHED.values()) == TOTAL
    listed = pq.read_table(list_images(TOTAL, whole), columns=["record_id", "source"])
    lots = np.random.default_rng(0)
    kills = [int(TOTAL * share) for share in (lots.uniform(0.1, 0.5), lots.uniform(0.5, 0.9))]
    attempts = []
    for kill_at in (*kills, 0):
        attempts.append(generate(whole, kill_at))
        describe("generate", TOTAL, attempts[-1])
        first, last = attempts[-1].commits[0], attempts[-1].commits[-1]
        say(f"  {first[1]:,} committed after {first[0]:.0f} s, {last[1]:,} after {last[0]:.0f} s")
        say(f"  all its processes were gone {attempts[-1].gone_after:.1f} s later")
    records, seconds, cpu = flow(attempts)
    say(f"  flowing: {records:,} records, {seconds:.0f} s, {records / seconds:.0f}/s, {cpu:.0f} processor s")
    sizes, flows = (*SWEEP, records), [flow([sweep.attempts[size]["generate"]]) for size in SWEEP]
    per_record = [cpu_ / records_ for records_, _, cpu_ in (*flows, (records, seconds, cpu))]
    grown = slope(0, sizes, [size * one for size, one in zip(sizes, per_record, strict=True)])
    say(f"  slope {grown:.3f} of the processor seconds while it flows, from {SWEEP[0]:,} records on")
    answer = attempts[-1].answer
    say(f"  object store {answer['object_store_peak_mib']:.0f} MiB, {len(list(whole.rglob('*-0.parquet')))} parts")
    made, checked = make_release(whole), validate(whole)
    for verb, attempt in (("release", made), ("validate", checked)):
        describe(verb, TOTAL, attempt)
        start, *before = (sweep.attempts[size][verb].cpu_seconds for size in (START, *SWEEP))
        ended = slope(start, (*SWEEP, TOTAL), (*before, attempt.cpu_seconds))
        say(f"  slope {ended:.3f} of processor seconds, from {SWEEP[0]:,} records on")
        assert ended < 1 + SLOPE
    say(f"  run {mib(whole / 'run'):.0f} MiB, release {mib(whole / 'releases'):.0f} MiB")

    fates = Counter(
        zip(
            listed["source"].to_pylist(),
            [drawn_run.fate(record_id) for record_id in listed["record_id"].to_pylist()],
            strict=True,
        )
    )
    ok = {source: fates[source, None] for source in PUBLISHED}
    expected = {source: {"ok": ok[source], "failed": PUBLISHED[source] - ok[source]} for source in PUBLISHED}
    reasons = {reason: sum(fates[source, reason] for source in PUBLISHED) for reason in drawn_run.FATES}
    assert answer["sources"] == {source: {"images": PUBLISHED[source], **expected[source]} for source in PUBLISHED}
    assert {reason: failure["images"] for reason, failure in answer["failures"].items()} == reasons
    content = json.loads((whole / "releases" / "v1.0.0" / "release.json").read_text())
    assert content["counts"] == checked.answer["counts"] == expected
    assert content["failures"] == reasons
    assert ids(whole, content, ("landmarks", "failures")).equals(sorted_ids(listed["record_id"]))
    assert ids(whole, content, ("masks", "failures")).equals(sorted_ids(listed["record_id"]))
    for attempt in (*attempts, made, checked):
        assert attempt.driver_mib < DRIVER_MIB
    assert grown == pytest.approx(1, abs=SLOPE)
    check_records(whole, lots)


def sorted_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.take(pc.sort_indices(column)).combine_chunks()


def ids(folder: Path, content: dict[str, Any], kinds: tuple[str, ...]) -> pa.ChunkedArray:
    """All record ids of a release's files of these kinds, sorted."""
    paths = [
        folder / "releases" / content["version"] / file["path"] for file in content["files"] if file["kind"] in kinds
    ]
    return sorted_ids(pa.concat_tables([pq.read_table(path, columns=["record_id"]) for path in paths])["record_id"])


def check_records(folder: Path, lots: np.random.Generator) -> None:
    """Records of every source of a release, taken by lot, hold what was drawn for them."""
    release = folder / "releases" / "v1.0.0"
    content = json.loads((release / "release.json").read_text())
    for source in PUBLISHED:
        file = next(file for file in content["files"] if file["config"] == source)
        paths = [release / path for path in (file["path"], file["path"].replace("/landmarks-", "/masks-"))]
        first_groups = [pq.ParquetFile(path).read_row_group(0) for path in paths]
        for row in lots.integers(0, len(first_groups[1]), 20):
            check_record(*(group.slice(int(row), 1).to_pylist()[0] for group in first_groups))


def check_record(row: dict[str, Any], masks: dict[str, Any]) -> None:
    """A released record is what was drawn for its id, mapped to its image."""
    record_id = row["record_id"]
    drawn, _ = drawn_run.draw(None, None, [record_id], 50, 0)
    image = drawn_run.Decoder().read(drawn_run.uri(record_id).encode(), source=row["source"], max_side=10_000)
    expected = image.letterbox.to_original(drawn.landmarks_mean[0])
    assert (row["height"], row["width"], row["letterbox"]) == (image.height, image.width, image.letterbox.to_row())
    np.testing.assert_allclose(row["landmarks_mean"], expected, atol=0.01)
    np.testing.assert_allclose(row["latent_std"], drawn.latent_std[0], rtol=1e-6)
    assert masks["record_id"] == record_id
    for organ in ORGANS:
        filled = rle_encode(organ_mask(expected, organ, image.height, image.width))
        assert masks[organ] == filled
