"""Replicas of one machine that start together compile once, and what one compiled serves every batch of the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from chexmask_u.model import compiling
from chexmask_u.model.compiling import once_a_machine

# A fork has torch already, which a fresh process takes seconds to import.
fork = get_context("fork")


@contextmanager
def process(what: str = "a network") -> Iterator[tuple[BaseProcess, Connection]]:
    """A process in the place of one that compiles: it tells that it began, and ends once it is told to."""
    here, there = fork.Pipe()

    def compile_it() -> None:
        with once_a_machine(what):
            there.send("begun")
            there.recv()
        there.send("ended")

    started = fork.Process(target=compile_it, daemon=True)
    started.start()
    try:
        yield started, here
    finally:
        started.kill()
        started.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    # Here, and not in every fork, for it takes a second to import.
    return Path(compiling._cache_folder())


def receive(pipe: Connection) -> str:
    assert pipe.poll(60)
    said: str = pipe.recv()
    return said


def test_the_first_compiles_alone_and_the_others_then_side_by_side() -> None:
    with process() as (_, first), process("another network") as (_, other):
        assert receive(first) == receive(other) == "begun"
        with process() as (_, second), process() as (_, third):
            assert not second.poll(0.3)
            assert not third.poll()
            first.send("end")
            assert receive(first) == "ended"
            assert receive(second) == receive(third) == "begun"


def test_another_goes_on_where_the_one_that_compiles_is_killed() -> None:
    with process() as (killed, first):
        receive(first)
        with process() as (_, second):
            assert not second.poll(0.3)
            killed.kill()
            assert receive(second) == "begun"


def test_a_cache_that_cannot_be_written_stops_nobody(cache: Path) -> None:
    cache.rmdir()
    cache.write_text("a file")
    with process() as (_, only):
        assert receive(only) == "begun"
        only.send("end")
        assert receive(only) == "ended"


PREDICT = """
import json, sys
import numpy as np, torch
from torch._dynamo.utils import counters
from chexmask_u.model import hybridgnet
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.predict import predict
from chexmask_u.steps.predict import _compiles
from chexmask_u.weight_files import load_model

class AtOnce(HybridGNet):
    computes_batches = True

# As on a GPU: a batch at once, and not an image.
hybridgnet.CPU_DRAWS = hybridgnet.DEVICE_DRAWS
model = load_model(sys.argv[1])
model.__class__ = AtOnce
# The fast form, for which no compiler is needed, is float32's on a CPU.
model.precision = "bfloat16"
assert _compiles(model)
made = counters["stats"]["unique_graphs"]
images = np.random.default_rng(0).integers(0, 256, (5, 1024, 1024), np.uint8)
found = [predict(model, images[:batch], [str(row) for row in range(batch)], samples).landmarks_mean[0].tolist()
         for batch, samples in ((5, 50), (2, 10), (1, 10), (3, 200))]
print(json.dumps({"new": counters["stats"]["unique_graphs"] - made, "found": found, **counters["inductor"]}))
"""


# Minutes on a busy machine: torch compiles C++.
@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_what_one_process_compiled_another_loads_and_both_compile_once_for_all_batches(tmp_path, tiny_weights):
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PREDICT, str(tiny_weights)],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = told
    assert first["new"] == second["new"] == 0
    assert first["fxgraph_cache_miss"] > 0
    assert second.get("fxgraph_cache_miss", 0) == 0
    assert second["fxgraph_cache_hit"] == first["fxgraph_cache_miss"]
    assert second["found"] == first["found"]
