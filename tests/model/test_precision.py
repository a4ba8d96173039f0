"""The fast form of the encoder is the plain one, and a run's arithmetic is what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import chexmask_u as cu
from chexmask_u.errors import InputError
from chexmask_u.images.letterbox import prepare
from chexmask_u.manifests.check import ManifestFacts
from chexmask_u.model import fast, hybridgnet
from chexmask_u.model.decoder import Decoded
from chexmask_u.model.hybridgnet import HybridGNet
from chexmask_u.model.precision import PRECISIONS, arithmetic, without_tf32
from chexmask_u.model.predict import latent_noise
from chexmask_u.model.variants import build
from chexmask_u.runs.identity import check_same, freeze
from chexmask_u.runs.run import Run
from chexmask_u.settings import GenerateSettings
from chexmask_u.steps.predict import Predictor, _compiles

# The contract of a precision other than float32, against float32: pixels of the 1024 frame, and a share of the std.
CONTRACT_SHIFT = 0.5
CONTRACT_STD = 0.02


def network(size: int, variant: str = "skip") -> HybridGNet:
    """Random weights whose normalisations scale and shift, as trained ones do."""
    torch.manual_seed(size)
    model = HybridGNet(size, variant).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def errors(model: HybridGNet, images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Largest deviations of mean, log variance, conv5, conv6 from float64: those of the plain and of the fast form."""
    with torch.inference_mode():
        mean, log_var, maps = copy.deepcopy(model).double().encoder(images.double())
        truth = (mean, log_var, *maps)
        found = []
        for form in (model.encoder, model.encode):
            mean, log_var, maps = form(images)
            found.append([float((a - b).abs().max()) for a, b in zip((mean, log_var, *maps), truth, strict=True)])
    return found[0], found[1]


@pytest.mark.parametrize("strip_values", [2**20, 5000, 1])
@pytest.mark.parametrize("size", [64, 96, 160])
def test_the_fast_encoder_is_the_plain_one_however_the_image_is_cut(monkeypatch, size, strip_values):
    monkeypatch.setattr(fast, "STRIP_VALUES", strip_values)
    _, error = errors(network(size), torch.rand(3, 1, size, size))
    assert max(error) < 3e-5


def test_the_fast_encoder_is_the_plain_one_at_the_published_size():
    model = network(1024)
    plain, error = errors(model, torch.rand(1, 1, 1024, 1024))
    assert max(error) < 3e-5
    assert sum(error) < 2 * sum(plain)


def test_images_without_contrast_lose_few_digits():
    """Sums of squares about zero would lose all: the mean is a thousand times the deviation, or there is none."""
    model = network(128)
    noise = torch.rand(128, 128)
    for image in (0.9 + 1e-3 * noise, torch.zeros_like(noise), torch.full_like(noise, 0.7)):
        _, error = errors(model, image[None, None])
        assert max(error[:2]) < 5e-4
        assert max(error[2:]) < 2e-3


def plainly(model: HybridGNet, images: np.ndarray, names: list[str], samples: int = 50) -> cu.Prediction:
    """What `cu.predict` gives, by the plain form of the network, whole."""
    with torch.inference_mode():
        grey = nn.functional.interpolate(
            torch.from_numpy(images)[:, None] / 255.0, (model.input_size,) * 2, mode="area"
        )
        mean, log_var, features = model.encoder(grey)
        sigma = torch.exp(log_var / 2)
        noise = torch.stack([torch.from_numpy(latent_noise(name, samples, 0)) for name in names])
        landmarks = model.decode_all(mean[:, None] + noise * sigma[:, None], features).landmarks * 1024
        std, centre = torch.std_mean(landmarks, dim=1, correction=0)
        covariance = (landmarks - centre[:, None]).prod(dim=-1).mean(dim=1)
    # What is compared below needs no spread without rare draws.
    return cu.Prediction(*(part.numpy() for part in (centre, std, covariance, covariance, covariance, mean, sigma)))


def moved(found: cu.Prediction, expected: cu.Prediction) -> tuple[float, float]:
    """How far the mean of any landmark moved, in pixels, and by which share the mean std of any image changed."""
    shift = np.linalg.norm(found.landmarks_mean - expected.landmarks_mean, axis=-1)
    std = found.landmarks_std.mean(axis=(1, 2)) / expected.landmarks_std.mean(axis=(1, 2))
    return float(shift.max()), float(np.abs(std - 1).max())


def radiographs(shared, chosen: slice) -> tuple[np.ndarray, list[str]]:
    paths = sorted((shared / "data" / "jsrt" / "images").glob("*.jpg"))[chosen]
    return np.stack([prepare(cv2.imread(str(path), 0))[0] for path in paths]), [path.stem for path in paths]


@pytest.mark.parametrize("chosen", [slice(0, 3), pytest.param(slice(0, 200), marks=pytest.mark.slow)], ids=str)
def test_the_fast_form_moves_nothing_on_radiographs(shared, chosen):
    model = cu.load_model("demo")
    images, names = radiographs(shared, chosen)
    for start in range(0, len(images), 10):
        few = slice(start, start + 10)
        shift, std = moved(cu.predict(model, images[few], names[few]), plainly(model, images[few], names[few]))
        assert shift < 0.01
        assert std < 1e-4


def test_the_fast_form_moves_nothing_with_the_golden_weights(shared, variant):
    """Random weights magnify every rounding; these are the bounds of the golden vectors themselves."""
    stem = shared / "golden" / f"hybridgnet_{variant}_256"
    model = cu.load_model(str(stem.with_suffix(".safetensors")))
    image = np.kron(np.load(stem.with_suffix(".npz"))["image"], np.ones((4, 4), np.uint8))[None]
    shift, std = moved(cu.predict(model, image, ["golden"]), plainly(model, image, ["golden"]))
    assert shift < 0.05
    assert std < 1e-4


def test_bfloat16_breaks_the_contract_so_float32_is_the_default(shared):
    """If this fails because bfloat16 has become exact enough, make it the default."""
    stem = shared / "golden" / "hybridgnet_skip_256"
    model = cu.load_model(str(stem.with_suffix(".safetensors")))
    image = np.kron(np.load(stem.with_suffix(".npz"))["image"], np.ones((4, 4), np.uint8))[None]
    model.precision = "bfloat16"
    shift, std = moved(cu.predict(model, image, ["golden"]), plainly(model, image, ["golden"]))
    assert shift > CONTRACT_SHIFT
    assert std < 5 * CONTRACT_STD, "it is rounding, not another network"


@pytest.mark.slow
def test_bfloat16_breaks_the_contract_with_trained_weights_too(shared):
    model = cu.load_model("demo")
    images, names = radiographs(shared, slice(0, 40))
    model.precision = "bfloat16"
    shift, std = moved(cu.predict(model, images, names), plainly(model, images, names))
    assert CONTRACT_SHIFT < shift < 20
    assert std < CONTRACT_STD


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_dropout_variant_computes_in_the_precision_that_a_run_records(precision):
    torch.manual_seed(0)
    model = build(64, "dropout").eval()
    images, noise = torch.rand(2, 1, 64, 64), torch.randn(2, model.noise_size)
    plain = model.encode(images, noise)[0].detach()
    model.precision = precision
    with torch.inference_mode():
        latents, log_var, features = model.encode(images, noise)
    assert {latents.dtype, log_var.dtype, *(maps.dtype for maps in features)} == {torch.float32}
    assert torch.isneginf(log_var).all()
    difference = float((latents - plain).abs().max() / plain.abs().max())
    assert difference < 1e-5 if precision == "float32" else 1e-4 < difference < 0.2


def compiled(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """What torch does when it compiles a module, with a compiler that changes what it returns."""

    def replace(**_: Any) -> None:
        module._compiled_call_impl = lambda *given: change(module.forward(*given))

    module.compile = replace


def shifted_decoder(pixels: float, model: HybridGNet) -> None:
    compiled(model.decoder, lambda decoded: decoded._replace(landmarks=decoded.landmarks + pixels / 1024))


def shifted_encoder(share: float, model: HybridGNet) -> None:
    compiled(model.encoder, lambda encoded: (encoded[0] + share * encoded[0].abs().max(), *encoded[1:]))


def one_node_shifted(model: HybridGNet) -> None:
    def move(decoded: Decoded) -> Decoded:
        landmarks = decoded.landmarks.clone()
        landmarks[..., 7, 0] += 30 / 1024
        return decoded._replace(landmarks=landmarks)

    compiled(model.decoder, move)


def failing(model: HybridGNet) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no compiler\nfor this device")

    model.encoder.compile = fail


@pytest.mark.parametrize("which", ["skip", "noskip", "dropout"])
@pytest.mark.parametrize(
    ("compiler", "fault"),
    [
        (partial(shifted_decoder, 0.0), None),
        (partial(shifted_decoder, 0.02), None),
        # As a lookup may that lies on the border of a cell: 1 of 240 coordinates.
        (one_node_shifted, None),
        (partial(shifted_decoder, 0.2), "landmarks by 0.2 px"),
        (partial(shifted_decoder, float("nan")), "landmarks by nan px"),
        (partial(shifted_encoder, 0.5), "latents differ by 0.5"),
        (partial(shifted_encoder, float("nan")), "latents differ by nan"),
        (failing, "no compiler"),
    ],
)
def test_a_compiler_that_changes_either_half_of_the_network_is_found_out(compiler, fault, which, capsys):
    torch.manual_seed(0)
    model = build(64, which).eval()
    # The fast form, for which no compiler is needed, is float32's on a CPU.
    model.precision = "bfloat16"
    if which == "dropout" and "latents" in (fault or ""):
        pytest.skip("its draws take the encoder's blocks one by one, which are never compiled")
    # Beside the half that is changed, the other is as it was.
    for half in (model.encoder, model.decoder):
        compiled(half, lambda result: result)
    compiler(model)
    assert _compiles(model) == (fault is None)
    said = capsys.readouterr().err
    assert (fault or "") in said
    assert len(said.splitlines()) == (fault is not None)


def test_training_goes_through_the_plain_form_and_reaches_every_weight(variant):
    model = network(64, variant).train()
    images = torch.rand(2, 1, 64, 64)
    mean, log_var, features = model.encode(images)
    decoded = model.decode_all(mean.unsqueeze(1), features)
    positions = [p.square().sum() for p in (decoded.pos1, decoded.pos2) if p is not None]
    (decoded.landmarks.square().sum() + log_var.square().sum() + sum(positions)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images)[0], mean, atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encode(images)[0].dtype == torch.bfloat16


def test_decoding_in_pieces_is_decoding_at_once(monkeypatch, variant):
    model = network(64, variant)
    with torch.inference_mode():
        _, _, features = model.encode(torch.rand(3, 1, 64, 64))
        z = torch.randn(3, 7, 64)
        whole = model.decode_all(z, features).landmarks
        for at_once in (1, 3, 14, 1000):
            monkeypatch.setattr(hybridgnet, "CPU_DRAWS", at_once)
            torch.testing.assert_close(model.decode(z, features), whole, atol=1e-4, rtol=0)


def test_precisions_that_are_not_there_are_refused(tiny_weights):
    for model in (cu.load_model(str(tiny_weights)), build(64, "dropout").eval()):
        for precision, words in (("tf32", "NVIDIA"), ("float16", "one of float32, tf32, bfloat16")):
            model.precision = precision
            with pytest.raises(ValueError, match=words):
                cu.predict(model, np.zeros((1, 1024, 1024), np.uint8), ["a"], 2)


def test_float32_is_not_tf32_and_torch_is_left_as_it_was():
    convolutions = torch.backends.cudnn.conv
    # Otherwise the convolutions of a float32 network would run in TF32 on a GPU.
    assert convolutions.fp32_precision == "tf32"
    with arithmetic("float32", torch.device("cuda")):
        assert convolutions.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert convolutions.fp32_precision == "tf32"
    with torch.autocast("cpu", torch.bfloat16), arithmetic("float32", torch.device("cpu")):
        assert nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype == torch.float32


def test_a_process_that_trains_in_float32_can_leave_tf32_for_good():
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    assert before[0] == "tf32"
    try:
        without_tf32()
        assert convolutions.fp32_precision == products.fp32_precision == "ieee"
        # Validation, in between, leaves it so.
        with arithmetic("tf32", torch.device("cuda")):
            pass
        assert convolutions.fp32_precision == products.fp32_precision == "ieee"
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


def test_a_resumed_run_may_not_change_its_precision(tmp_path):
    run = Run(str(tmp_path))
    settings = GenerateSettings(manifest="m", output=str(tmp_path))
    facts = ManifestFacts(uri="m", sha256="0" * 64, rows=1, sources={"folder": 1})
    freeze(run, settings, facts, {"sha256": "1" * 64})
    assert run.read_json("run.json")["numbers"]["precision"] == "float32"
    other = GenerateSettings(manifest="m", output=str(tmp_path), precision="bfloat16")
    with pytest.raises(InputError, match="--precision was float32, now bfloat16"):
        check_same(run, other, {"sha256": "1" * 64}, facts.sha256)


def test_a_run_can_ask_for_every_precision_there_is():
    field = GenerateSettings.__dataclass_fields__["precision"]
    assert field.metadata["choices"] == PRECISIONS
    assert Predictor(precision="bfloat16").model.precision == "bfloat16"
