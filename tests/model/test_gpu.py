"""On a GPU the network gives the numbers of a CPU, compiled, in any batch: `pytest -s tests/model/test_gpu.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import chexmask_u as cu
from chexmask_u.bench.predict import in_turn, stretched
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.settings import TrainSettings
from chexmask_u.sources.synthetic import draw
from chexmask_u.steps.predict import NOT_COMPILED, Predictor
from chexmask_u.training.examples import drawn
from chexmask_u.training.loop import Place, Training
from chexmask_u.training.run import metrics_csv
from chexmask_u.weight_files import load_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

if torch.cuda.is_available():
    from chexmask_u.model.kernels import FusedEncoder

GPU = "cuda"

# More than one and not a power of two, so that batches of other sizes than the compiler saw are among them.
IMAGES = 17


@pytest.fixture(scope="module", params=["demo", 1024])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "demo":
        return "demo"
    path = tmp_path_factory.mktemp("weights") / "stretched.safetensors"
    stretched(request.param, path)
    return str(path)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([draw(index).image for index in range(IMAGES)])


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return [f"person{index}" for index in range(IMAGES)]


@pytest.fixture(scope="module")
def compiled(weights: str) -> Predictor:
    return Predictor(weights, device=GPU)


@pytest.fixture(scope="module")
def together(compiled: Predictor, images: np.ndarray, ids: list[str]) -> cu.Prediction:
    return cu.predict(compiled.model, images, ids)


def test_the_network_is_compiled(compiled: Predictor) -> None:
    assert not compiled.device_name.endswith(NOT_COMPILED)


def test_a_gpu_gives_the_numbers_of_a_cpu(
    weights: str, together: cu.Prediction, images: np.ndarray, ids: list[str]
) -> None:
    there = cu.predict(load_model(weights), images, ids)
    moved = np.abs(together.landmarks_mean - there.landmarks_mean)
    spread = together.landmarks_std.mean((1, 2)) / there.landmarks_std.mean((1, 2))
    print(f"means move by {moved.max():.2g} px at most, an image's std by {np.abs(spread - 1).max():.2%}")
    assert moved.max() < 0.5
    assert np.abs(spread - 1).max() < 0.02


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_the_numbers_of_an_image_do_not_depend_on_its_batch(
    compiled: Predictor, together: cu.Prediction, images: np.ndarray, ids: list[str], size: int
) -> None:
    parts = [
        cu.predict(compiled.model, images[first : first + size], ids[first : first + size])
        for first in range(0, IMAGES, size)
    ]
    for name in ("landmarks_mean", "landmarks_std"):
        apart = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(apart, getattr(together, name), atol=0.01, err_msg=name)


def test_kernels_of_our_own_give_the_numbers_of_the_compiled_network_in_any_batch(
    weights: str, together: cu.Prediction, images: np.ndarray, ids: list[str]
) -> None:
    model = load_model(weights, device=GPU)
    assert isinstance(model, HybridGNet)
    model.use_kernels()
    fused = cu.predict(model, images, ids)
    np.testing.assert_allclose(fused.landmarks_mean, together.landmarks_mean, atol=0.01)
    np.testing.assert_allclose(fused.landmarks_std, together.landmarks_std, atol=0.01)
    alone = cu.predict(model, images[3:5], ids[3:5])
    np.testing.assert_allclose(alone.landmarks_mean, fused.landmarks_mean[3:5], atol=0.01)
    encoder = FusedEncoder(model.encoder)
    with torch.inference_mode():
        grey = model.grey(torch.from_numpy(images).to(GPU))
        assert torch.equal(encoder.pooled(grey[3:5]), encoder.pooled(grey)[3:5])


def test_kernels_of_our_own_are_faster_than_the_compiled_encoder(compiled: Predictor, images: np.ndarray) -> None:
    model = compiled.model
    assert isinstance(model, HybridGNet)
    if model.input_size < 1024:
        pytest.skip("so small an image keeps no GPU busy")
    fused = FusedEncoder(model.encoder, compiled=True)
    with torch.inference_mode():
        grey = model.grey(torch.from_numpy(images[:16]).to(GPU))
        seconds = in_turn({"compiled": lambda: model.encode(grey), "ours": lambda: fused(grey)}, grey.device, 20)
    print({name: f"{1e3 * value / 16:.3f} ms an image" for name, value in seconds.items()})
    assert seconds["ours"] < seconds["compiled"]


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_reduced_precision_moves_landmarks_by_what_is_said_of_it(
    weights: str, together: cu.Prediction, images: np.ndarray, ids: list[str], precision: str
) -> None:
    reduced = cu.predict(Predictor(weights, device=GPU, precision=precision).model, images, ids)
    moved = np.abs(reduced.landmarks_mean - together.landmarks_mean).max()
    print(f"{precision}: means move by {moved:.2g} px at most")
    assert moved < {"tf32": 1, "bfloat16": 20}[precision]


@pytest.mark.parametrize("variant", ["skip", "noskip"])
def test_a_gpu_gives_the_golden_numbers(shared: Path, variant: str) -> None:
    stem = shared / "golden" / f"hybridgnet_{variant}_256"
    expected = np.load(f"{stem}.npz")
    model = load_model(f"{stem}.safetensors", device=GPU)
    with torch.inference_mode():
        mean, log_var, features = model.encode(torch.from_numpy(expected["image"])[None, None].to(GPU).float() / 255)
        landmarks = model.decode(torch.from_numpy(expected["z"])[None].to(GPU), features)[0].cpu().numpy()
    np.testing.assert_allclose(mean[0].cpu(), expected["mu"], atol=1e-3)
    np.testing.assert_allclose(log_var[0].cpu(), expected["log_var"], atol=1e-3)
    # Windows on the border of a cell may go to its neighbour.
    assert np.quantile(np.abs(landmarks - expected["landmarks"]), 0.99) < 1e-3


@pytest.mark.parametrize("variant", ["skip", "noskip", "dropout"])
def test_training_on_a_gpu_takes_the_steps_that_it_takes_on_a_cpu(variant: str) -> None:
    settings = TrainSettings(
        drawings=8, output="unused", variant=variant, input_size=64, epochs=2, batches=4, batch_size=4, every=1
    )
    people, held_out = drawn(8, 0, 64), drawn(2, 1, 64)
    rows = []
    for device in ("cpu", GPU):
        place = Place(0, 1, torch.device(device))
        training = Training(settings, people, 0, held_out, place, lambda module, place=place: module.to(place.device))
        rows.append([training.run_epoch(lambda _: None) for _ in range(2)])
    print(metrics_csv(rows[1]))
    for cpu, gpu in zip(*rows, strict=True):
        for name in ("train_landmarks", "train_kl", "train_loss", "mse"):
            assert gpu[name] == pytest.approx(cpu[name], rel=0.02), name
