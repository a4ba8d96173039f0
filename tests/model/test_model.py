"""The model is the published one, to the last digit that float32 allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import chexmask_u as cu
from chexmask_u.anatomy import COARSE_RING_SIZES, RING_SIZES
from chexmask_u.model.encoder import Features
from chexmask_u.model.graph import RingChebConv, ring_upsampling, window_lookup
from chexmask_u.model.hybridgnet import HybridGNet


@pytest.fixture(scope="module")
def golden(shared):
    def load(variant):
        stem = shared / "golden" / f"hybridgnet_{variant}_256"
        return cu.load_model(str(stem.with_suffix(".safetensors"))), np.load(stem.with_suffix(".npz"))

    return load


def test_posterior_is_the_published_one(golden, variant):
    model, expected = golden(variant)
    image = torch.from_numpy(expected["image"]).float()[None, None] / 255
    with torch.inference_mode():
        mean, log_var, features = model.encode(image)
    assert (model.variant, model.input_size) == (variant, 256)
    np.testing.assert_allclose(mean[0], expected["mu"], atol=1e-4)
    np.testing.assert_allclose(log_var[0], expected["log_var"], atol=1e-4)
    np.testing.assert_allclose(features.conv5[0].mean(dim=(1, 2)), expected["conv5_mean"], atol=1e-4)
    np.testing.assert_allclose(features.conv6[0, :, ::4, ::4], expected["conv6"], atol=1e-3)


def test_landmarks_are_the_published_ones(golden, variant):
    model, expected = golden(variant)
    image = torch.from_numpy(expected["image"]).float()[None, None] / 255
    with torch.inference_mode():
        _, _, features = model.encode(image)
        decoded = model.decode_all(torch.from_numpy(expected["z"])[None], features)
    error = np.abs(decoded.landmarks[0].numpy() - expected["landmarks"])
    if variant == "noskip":
        assert error.max() < 1e-4
    else:
        assert np.quantile(error, 0.999) < 1e-4
        assert error.max() < 1e-3
        # The vectors hold many positions outside the image, so the lookup's border rules are in this too.
        assert (np.abs(expected["pos2"] - 0.5) > 0.5).any()
        np.testing.assert_allclose(decoded.pos1[0], expected["pos1"], atol=1e-4)
        np.testing.assert_allclose(decoded.pos2[0], expected["pos2"], atol=1e-3)
    pixels = decoded.landmarks[0] * 1024
    np.testing.assert_allclose(pixels.mean(0), expected["mean_px"], atol=0.01)
    np.testing.assert_allclose(pixels.std(0, correction=0), expected["std_px"], atol=0.01)


@pytest.mark.parametrize("sizes", [RING_SIZES, COARSE_RING_SIZES, (3, 10, 7)])
def test_ring_convolution_is_the_chebyshev_convolution_on_the_graph(sizes):
    """Against the definition: T_k of the scaled normalised Laplacian, by recurrence, with dense matrices."""
    torch.manual_seed(1)
    conv = RingChebConv(5, 7, sizes, order=6)
    torch.nn.init.normal_(conv.bias)
    adjacency = torch.block_diag(*(torch.eye(n).roll(1, 0) + torch.eye(n).roll(-1, 0) for n in sizes)).double()
    degree = adjacency.sum(1)
    laplacian = torch.eye(len(degree)) - adjacency / torch.sqrt(degree[:, None] * degree[None, :])
    scaled = 2 * laplacian / 2 - torch.eye(len(degree))
    x = torch.randn(2, 3, len(degree), 5)
    terms = [x.double(), scaled @ x.double()]
    while len(terms) < 6:
        terms.append(2 * scaled @ terms[-1] - terms[-2])
    expected = sum(term @ lin.weight.double().T for term, lin in zip(terms, conv.lins, strict=True)) + conv.bias
    torch.testing.assert_close(conv(x).double(), expected, atol=1e-5, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(conv(x).double(), expected.detach(), atol=1e-5, rtol=0)


def test_upsampling_copies_even_nodes_and_averages_around_each_ring():
    fine = ring_upsampling((3, 2)) @ torch.tensor([[0.0], [2.0], [4.0], [10.0], [20.0]])
    assert fine.flatten().tolist() == [0, 1, 2, 3, 4, 2, 10, 15, 20, 15]


def slow_lookup(position: np.ndarray, feature_map: np.ndarray) -> np.ndarray:
    """RoIAlign's rules, tap by tap: 3x3 taps around the position, zero beyond -1 and the size, clamped between."""
    channels, height, width = feature_map.shape
    total = np.zeros(channels)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            x, y = position[0] * width + dx, position[1] * height + dy
            if x < -1 or y < -1 or x > width or y > height:
                continue
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            x0, y0 = int(x), int(y)
            x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
            fx, fy = x - x0, y - y0
            total += (1 - fy) * ((1 - fx) * feature_map[:, y0, x0] + fx * feature_map[:, y0, x1])
            total += fy * ((1 - fx) * feature_map[:, y1, x0] + fx * feature_map[:, y1, x1])
    return total / 9


def test_window_lookup_follows_the_border_rules_inside_and_outside_the_image():
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(2, 4, 5, 7))
    positions = rng.uniform(-0.6, 1.6, size=(2, 400, 2))
    positions[:, :6] = [[0, 0], [1, 1], [-1 / 7, 0.5], [8 / 7, 0.5], [0.5, 6 / 5], [50, -50]]
    found = window_lookup(torch.from_numpy(positions), torch.from_numpy(maps)).numpy()
    expected = [[slow_lookup(p, fm) for p in per_image] for per_image, fm in zip(positions, maps, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_lookup_survives_positions_that_are_not_numbers():
    positions = torch.tensor([[[float("nan"), 0.5], [float("inf"), 0.5], [-1e30, 1e30]]])
    assert (window_lookup(positions, torch.ones(1, 3, 8, 8)) == 0).all()


def test_draws_of_an_image_do_not_depend_on_each_other(tiny_weights):
    model = cu.load_model(str(tiny_weights))
    torch.manual_seed(3)
    features = Features(torch.randn(2, 128, 4, 4), torch.randn(2, 128, 2, 2))
    z = torch.randn(2, 9, 64)
    with torch.inference_mode():
        together = model.decode(z, features)
        alone = torch.cat([model.decode(z[:, n : n + 1], features) for n in range(9)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_normalisation_of_an_image_is_that_of_a_batch_of_one(tiny_weights):
    """Upstream's batch norm without running statistics, on each image alone, gives the same activations."""
    block = cu.load_model(str(tiny_weights)).encoder.dconv_down1
    x = torch.rand(3, 1, 64, 64)
    norm = block.block[0]
    batch_of_one = [F.batch_norm(image[None], None, None, norm.weight, norm.bias, training=True) for image in x]
    torch.testing.assert_close(norm(x), torch.cat(batch_of_one), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "kind"), [(0, "skip"), (32, "skip"), (100, "skip"), (256, "other")])
def test_a_model_of_impossible_shape_is_refused(size, kind):
    with pytest.raises(ValueError, match="must be"):
        HybridGNet(size, kind)
