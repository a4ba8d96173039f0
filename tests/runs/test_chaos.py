"""Killed anywhere, again and again, a run ends with every record once, and with the release of an undisturbed one.

The seed of the slow form is in CHEXMASK_CHAOS_SEED, its number of faults in CHEXMASK_CHAOS_FAULTS. Run it with
`pytest -m slow -s tests/runs/test_chaos.py`, which prints each fault and a table of them.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chexmask_u import record, storage
from chexmask_u.anatomy import ORGANS
from chexmask_u.images.fetch import fetch
from chexmask_u.manifests.folder import list_folder
from chexmask_u.manifests.parquet import complete
from chexmask_u.runs.run import Run
from chexmask_u.settings import ManifestFolderSettings
from chexmask_u.steps.mask import mask, rle_decode
from chexmask_u.steps.predict import Predictor
from chexmask_u.steps.read import read
from tests.support.chaos import Chaos, Outcome, leftovers, table
from tests.support.hospitals import draw_images
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.s3 import Gate, S3Server, gate, s3_server

# Files; the rows of a manifest name each several times.
IMAGES = 40

SAMPLES = 5

# Batches are cut elsewhere after a fault, and sums then end in other bits.
PIXELS = 0.01

SEED = int(os.environ.get("CHEXMASK_CHAOS_SEED", "1"))
FAULTS = int(os.environ.get("CHEXMASK_CHAOS_FAULTS", "50"))


@dataclass
class Arena:
    """A cluster, a storage, and runs of the same manifest.

    Attributes:
        url: where the runs go.
        env: of the drivers; the storage's way in it can be cut.
        manifest, rows: the images to do.
        weights: of the network.
        expected, release_expected: what a run and its release are to hold, the latter where releases are compared.
    """

    cluster: RayCluster
    url: str
    env: Mapping[str, str]
    manifest: str
    rows: int
    weights: Path
    logs: Path
    gate: Gate | None = None
    expected: pa.Table | None = None
    release_expected: Released | None = None

    def command(self, name: str) -> list[str]:
        """A run that commits often, since a fault ends with the next commit."""
        flags = {"manifest": self.manifest, "output": f"{self.url}/{name}", "weights": self.weights}
        flags |= {"samples": SAMPLES, "rows-per-file": 16, "batch-size": 8, "replicas": 1}
        flags |= {"address": self.cluster.gcs_address}
        return [*CLI, "generate", *(f"--{flag}={value}" for flag, value in flags.items())]

    def run(self, name: str) -> Run:
        return Run(f"{self.url}/{name}")

    def call(self, *arguments: str) -> None:
        done = subprocess.run(
            [*CLI, *arguments], env=self.env, capture_output=True, text=True, check=False, cwd="/", timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def release(self, name: str) -> Released:
        """The release that the command line makes of a run, valid by its own check."""
        output = f"{self.url}/{name}-releases"
        self.call("release", f"{self.url}/{name}", "--output", output, "--address", self.cluster.gcs_address)
        self.call("validate", f"{output}/v1.0.0")
        fs, path = storage.filesystem(f"{output}/v1.0.0")
        content = json.loads(fs.cat_file(f"{path}/release.json"))
        arrow_fs, _ = storage.arrow_filesystem(output)
        tables: dict[str, list[pa.Table]] = {}
        for file in content["files"]:
            tables.setdefault(file["config"], []).append(pq.read_table(f"{path}/{file['path']}", filesystem=arrow_fs))
        return Released(content, {config: pa.concat_tables(parts) for config, parts in tables.items()})


@dataclass(frozen=True)
class Released:
    """A release as its readers get it: release.json, and a table per config."""

    content: dict[str, Any]
    tables: dict[str, pa.Table]


CLI = [sys.executable, "-m", "chexmask_u.cli"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos") / "images"
    draw_images(folder, IMAGES, np.random.default_rng(0))
    return folder


@pytest.fixture
def arena(
    request: pytest.FixtureRequest,
    images: Path,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Arena]:
    """Parametrised by the storage, "local" or "s3", and how often the manifest names each image."""
    kind, copies = request.param
    with ExitStack() as stack:
        way: Gate | None = None
        env: dict[str, str] = {}
        place = str(tmp_path)
        if kind == "s3":
            server = stack.enter_context(s3_server())
            for name, value in server.env.items():
                monkeypatch.setenv(name, value)
            way = stack.enter_context(gate(server, tmp_path / "hold"))
            env = server.env | {"AWS_ENDPOINT_URL": way.endpoint}
            place = server.url
            upload(images, server)
        manifest, rows = make_manifest(place if kind == "s3" else str(images.parent), copies, tmp_path)
        cluster = stack.enter_context(ray_cluster(env, head_cpus=0, worker_cpus=2, worker_gpus=0, workers=2))
        yield Arena(
            cluster,
            f"{place}/runs",
            cluster.client_env() | env,
            manifest,
            rows,
            tiny_weights,
            tmp_path,
            way,
        )


def upload(images: Path, server: S3Server) -> None:
    fs = server.filesystem()
    for file in images.iterdir():
        fs.pipe_file(f"{server.bucket}/images/{file.name}", file.read_bytes())


def make_manifest(place: str, copies: int, folder: Path) -> tuple[str, int]:
    """List the images below a place; each is named several times, under ids of its own."""
    listed = folder / "listed.parquet"
    list_folder(ManifestFolderSettings(uri=f"{place}/images", output=str(listed)))
    once = pq.read_table(listed)
    columns = {name: once[name].to_pylist() * copies for name in once.column_names}
    for name in ("record_id", "image_id"):
        columns[name] = [f"{value}-{index // len(once)}" for index, value in enumerate(columns[name])]
    target = folder / "m.parquet"
    pq.write_table(pa.table(columns, schema=once.schema), target)
    return str(target), len(once) * copies


def survive(arena: Arena, name: str, kinds: Sequence[str], rng: random.Random) -> list[Outcome]:
    """Run the command until it is done, under faults of these kinds, and check what it left."""
    chaos = Chaos(
        arena.cluster, arena.run(name), arena.command(name), arena.env, arena.logs / f"{name}.log", rng, arena.gate
    )
    chaos.survive(kinds, arena.rows)
    print(f"workers outlived a killed driver by {', '.join(f'{seconds:.1f}' for seconds in chaos.afterlives)} s")
    assert leftovers(arena.run(name)) == []
    assert half_uploads(arena) == []
    check_records(arena, name)
    if arena.release_expected is not None:
        check_same_release(arena.release_expected, arena.release(name))
    return chaos.outcomes


def half_uploads(arena: Arena) -> list[Any]:
    """What a listing does not show, and a bucket's owner pays for."""
    if arena.gate is None:
        return []
    fs, path = storage.filesystem(arena.url)
    found: list[Any] = fs.call_s3("list_multipart_uploads", Bucket=path.split("/")[0]).get("Uploads", [])
    return found


def check_records(arena: Arena, name: str) -> None:
    assert arena.expected is not None
    ids = Counter(pq.read_table(arena.manifest)["record_id"].to_pylist())
    found = arena.run(name).dataset().to_table()
    for one in (arena.expected, found):
        assert Counter(one["record_id"].to_pylist()) == ids
    check_same_rows(arena.expected, found)


def check_same_release(expected: Released, found: Released) -> None:
    # All but the files' bytes, which a last bit of a float changes.
    for name in expected.content.keys() - {"files", "pages", "arrow_bytes"}:
        assert found.content[name] == expected.content[name], name
    assert found.tables.keys() == expected.tables.keys()
    for config, rows in expected.tables.items():
        assert found.tables[config]["record_id"].to_pylist() == rows["record_id"].to_pylist()
        check_same_rows(rows, found.tables[config])


def check_same_rows(expected: pa.Table, found: pa.Table) -> None:
    """The same ids with the same values: words, whole numbers and masks to the last bit, floats but for rounding."""
    assert expected.schema == found.schema
    expected, found = expected.sort_by("record_id"), found.sort_by("record_id")
    for column in expected.column_names:
        if column in ("device", *TIMES):
            continue
        rows = list(zip(expected[column].to_pylist(), found[column].to_pylist(), strict=True))
        kind = expected.schema.field(column).type
        if column in ORGANS:
            check_same_masks(expected, found, column)
        elif kind in (pa.float32(), record.LANDMARK_ARRAY, record.LATENT_ARRAY, record.NODE_ARRAY):
            # A covariance is a product of two spreads, each of which rounding may move by so much.
            share = 1e-3 if kind == record.NODE_ARRAY else 0
            for one, other in rows:
                assert (one is None) == (other is None), column
                if one is not None:
                    np.testing.assert_allclose(np.array(other), np.array(one), atol=PIXELS, rtol=share, err_msg=column)
        else:
            assert [one for one, _ in rows] == [other for _, other in rows], column


TIMES = ("read_seconds", "predict_seconds", "mask_seconds")


def check_same_masks(expected: pa.Table, found: pa.Table, organ: str) -> None:
    """The same strings; where not, by a contour that rounding may have moved by one pixel."""
    for row in range(len(expected)):
        one, other = expected[organ][row].as_py(), found[organ][row].as_py()
        if one == other:
            continue
        height, width = expected["height"][row].as_py(), expected["width"][row].as_py()
        first, second = rle_decode(one, height, width), rle_decode(other, height, width)
        kernel = np.ones((3, 3), np.uint8)
        assert not (first & ~cv2.dilate(second, kernel)).any(), expected["record_id"][row]
        assert not (second & ~cv2.dilate(first, kernel)).any(), expected["record_id"][row]


def undisturbed(arena: Arena) -> None:
    """A run that nothing happens to, and its release, are what the others are to be like."""
    arena.call(*arena.command("undisturbed")[len(CLI) :])
    arena.expected = arena.run("undisturbed").dataset().to_table()
    arena.release_expected = arena.release("undisturbed")


def in_one_process(arena: Arena) -> None:
    """The steps, one after another and without Ray, make what runs are to be like; in a tenth of a run's time."""
    predictor = Predictor(weights=str(arena.weights), samples=SAMPLES, device="cpu")
    arena.expected = mask(predictor(read(complete(pq.read_table(arena.manifest)))))


def check_telling(expected: pa.Table) -> None:
    """Records that are all alike would hide a mistake."""
    assert sum(bool(mask) for mask in expected["heart"].to_pylist()) > len(expected) / 2
    assert set(expected["reason"].to_pylist()) == {None, "damaged", "empty", "unsupported"}


@pytest.mark.slow
def test_an_outage_of_a_quarter_of_a_minute_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the three ways to storage: a step's image, a driver's small file, and a file system as workers get it."""
    with s3_server() as server, gate(server, tmp_path / "hold") as way, ThreadPoolExecutor() as pool:
        for name, value in (server.env | {"AWS_ENDPOINT_URL": way.endpoint}).items():
            monkeypatch.setenv(name, value)
        fs, path = storage.filesystem(f"{server.url}/image.png")
        fs.pipe_file(path, b"bytes")
        arrow_fs, part = storage.arrow_filesystem(f"{server.url}/part.parquet")
        arrow_fs = pickle.loads(pickle.dumps(arrow_fs))
        way.cut()
        waiting = [
            pool.submit(fetch, f"{server.url}/image.png", max_bytes=100),
            pool.submit(Run(server.url).write, "run.json", "{}"),
            pool.submit(pq.write_table, pa.table({"a": [1]}), part, filesystem=arrow_fs),
        ]
        time.sleep(15)
        assert not any(one.done() for one in waiting)
        way.open()
        assert [one.result(timeout=90) for one in waiting] == [b"bytes", None, None]
        assert pq.read_table(part, filesystem=arrow_fs).num_rows == 1


# A cluster, two faults and their recovery: a minute or two when nobody else uses the machine, ten when many do. That a
# driver may be killed again and again is in `test_pipeline`, too.
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("arena", [("s3", 4)], indirect=True, ids=["s3"])
def test_a_run_that_loses_its_driver_and_a_node_ends_like_one_that_does_not(arena: Arena) -> None:
    in_one_process(arena)
    check_telling(arena.expected)
    outcomes = survive(arena, "disturbed", ["driver in a rename", "node"], random.Random(SEED))
    print(table(outcomes))
    assert any(outcome.hit for outcome in outcomes)


KINDS = [
    "driver",
    "driver told to stop",
    "predictor",
    "reader",
    "decoder",
    "writer",
    "writer at a commit",
    "driver at a commit",
    "node",
]
KINDS_ON_S3 = [*KINDS, "storage", "driver in a rename"]


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("arena", [("local", 20), ("s3", 20)], indirect=True, ids=["local", "s3"])
def test_fifty_faults_lose_no_record_and_double_none(arena: Arena) -> None:
    rng = random.Random(SEED)
    print(f"\nseed {SEED}")
    undisturbed(arena)
    check_telling(arena.expected)
    outcomes: list[Outcome] = []
    while sum(outcome.hit for outcome in outcomes) < FAULTS:
        kinds = KINDS_ON_S3 if arena.gate is not None else list(KINDS)
        rng.shuffle(kinds)
        outcomes += survive(arena, f"disturbed-{len(outcomes)}", kinds * 2, rng)
        print(table(outcomes), flush=True)
    hits = [outcome for outcome in outcomes if outcome.hit]
    assert sum(outcome.lost + outcome.twice for outcome in hits) == 0
