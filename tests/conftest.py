"""Fixtures: the golden vectors where they are, tiny weights, and one local Ray for the tests that need it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.hybridgnet import HybridGNet

if TYPE_CHECKING:
    from tests.support.hospitals import FinishedRun
    from tests.support.s3 import S3Server

# Before anything imports Ray: stay on loopback and start nothing that talks to the world.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Before anything imports `datasets`: a bucket's files that an earlier session loaded are not these.
_datasets_cache = tempfile.TemporaryDirectory(prefix="datasets-cache-")
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name

SHARED = Path(os.environ.get("CHEXMASK_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True)
def sigterm_as_it_was() -> Iterator[None]:
    """`cli.main` takes SIGTERM for the rest of its process, which here is that of all tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"real data are not at {SHARED}")
    return SHARED


@pytest.fixture(params=["skip", "noskip"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small input: fast, and as good as any where only the plumbing is looked at.

    With this seed most organs lie in the image; with others, masks are empty and so all the same.
    """
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(HybridGNet(input_size=64, variant="skip"), path)
    return path


@pytest.fixture(scope="session")
def radiograph() -> np.ndarray:
    """uint8 [1024, 1024]: not a radiograph, but smooth, bright in places and different everywhere."""
    y, x = np.mgrid[0:1024, 0:1024] / 1024
    grey = 120 + 80 * np.sin(9 * x + 2 * y) * np.cos(5 * y) + 40 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.04)
    return grey.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for the session; a test takes a bucket of its own on it, with `own_bucket`."""
    from tests.support.s3 import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def hospitals(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: object) -> FinishedRun:
    """A finished run that tests look at, and change copies of."""
    from tests.support import hospitals

    return hospitals.make(tmp_path_factory.mktemp("hospitals"), tiny_weights)


@pytest.fixture(scope="session")
def local_ray():
    """One local Ray for the session, as `generate` starts it; `cluster.connected` uses one that is there."""
    import ray

    # Ray ends workers that have nothing to do for a second; each run would wait for others to import torch. And it
    # tells metrics every ten seconds.
    changed = {"idle_worker_killing_time_threshold_ms": 600_000, "metrics_report_interval_ms": 2_000}
    sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=changed)
    # Ray takes it in the main thread, and no driver here is to end as Ray's do.
    signal.signal(signal.SIGTERM, sigterm)
    yield ray
    ray.shutdown()
