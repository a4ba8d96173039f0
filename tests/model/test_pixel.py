"""Networks of masks: PHiSeg's latents and divergence, the U-Net's dropout, and draws that hang on an image alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributions import Normal, kl_divergence

import chexmask_u as cu
from chexmask_u.model import phiseg
from chexmask_u.model.checkpoint import save_model
from chexmask_u.model.phiseg import PHiSeg
from chexmask_u.model.pixel import PixelNetwork, predict_masks
from chexmask_u.model.predict import latent_noise
from chexmask_u.model.unet import UNet
from chexmask_u.sources.synthetic import draw
from chexmask_u.weight_files import load_network

Kind = type[UNet] | type[PHiSeg]


@pytest.fixture(scope="module", params=[UNet, PHiSeg])
def model(request: pytest.FixtureRequest) -> PixelNetwork:
    torch.manual_seed(0)
    kind: Kind = request.param
    return kind(64).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([draw(index).image for index in range(2)])


def grey(model: PixelNetwork, images: np.ndarray) -> torch.Tensor:
    return model.grey(torch.from_numpy(images))


def test_an_images_masks_are_the_same_alone_and_in_a_batch(model: PixelNetwork, images: np.ndarray) -> None:
    both = predict_masks(model, images, ["a", "b"], n_samples=6, seed=3)
    alone = predict_masks(model, images[1:], ["b"], n_samples=6, seed=3)
    np.testing.assert_allclose(alone[0], both[1], atol=1e-6)
    assert both.shape == (2, 3, 1024, 1024)
    assert both.min() >= 0
    assert both.max() <= 1
    other = predict_masks(model, images[1:], ["b"], n_samples=6, seed=4)
    assert np.abs(other - alone).max() > 1e-4


def test_ten_draws_are_the_first_of_fifty(model: PixelNetwork, images: np.ndarray) -> None:
    def drawn(count: int) -> torch.Tensor:
        noise = torch.from_numpy(latent_noise("a", count, 0, model.noise_size)[None])
        return model.sample(grey(model, images[:1]), lambda: noise)

    fifty = drawn(50)
    assert fifty.shape == (1, 50, 3, 64, 64)
    torch.testing.assert_close(drawn(10), fifty[:, :10], rtol=0, atol=1e-5)
    assert fifty.std(dim=1).max() > 1e-3


def test_the_mean_mask_is_that_of_the_draws_however_many_are_held_at_once(
    model: PixelNetwork, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.from_numpy(latent_noise("a", 7, 0, model.noise_size)[None])
    mean = model.sample(grey(model, images[:1]), lambda: noise).mean(dim=1)
    monkeypatch.setattr("chexmask_u.model.pixel.PIXELS_AT_ONCE", 2 * 64 * 64)
    torch.testing.assert_close(model.mean_masks(grey(model, images[:1]), lambda: noise), mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [64, 128])
def test_phisegs_latents_halve_from_a_quarter_of_the_image_on(side: int) -> None:
    torch.manual_seed(0)
    model = PHiSeg(side).eval()
    features = model.prior.features(torch.rand(1, 1, side, side))
    coarser = None
    for level in reversed(range(5)):
        latents = model.prior.at(level, features[level], coarser)
        assert latents.mean.shape == latents.sigma.shape == (1, 2, side >> (level + 2), side >> (level + 2))
        assert latents.sigma.min() > 0
        coarser = latents.mean
    assert model.noise_size == sum(2 * (side >> (level + 2)) ** 2 for level in range(5))
    logits = model.training_masks(
        torch.rand(1, 1, side, side), torch.rand(1, 3, side, side), torch.randn(1, model.noise_size)
    ).logits
    assert [level.shape[-1] for level in logits] == [side >> level for level in range(5)]


def test_divergence_of_a_level_is_torchs_and_none_where_both_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p = (
        phiseg.Normal(torch.randn(3, 2, 4, 4, generator=generator), torch.rand(3, 2, 4, 4, generator=generator) + 0.1)
        for _ in range(2)
    )
    expected = kl_divergence(Normal(*q), Normal(*p)).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(phiseg.kl_divergence(q, p), expected)
    assert phiseg.kl_divergence(q, q).item() == 0


def test_phisegs_divergence_is_zero_where_the_posterior_looks_at_nothing_but_what_the_prior_sees() -> None:
    torch.manual_seed(0)
    model = PHiSeg(64)
    # The posterior is the prior, whose first layer does not look at the masks.
    state = {name.removeprefix("prior."): value for name, value in model.prior.named_parameters()}
    first = model.posterior.down[0][0].weight.data
    with torch.no_grad():
        for name, value in model.posterior.named_parameters():
            if value is not model.posterior.down[0][0].weight:
                value.copy_(state[name])
        first.zero_()
        first[:, :1] = model.prior.down[0][0].weight
    batch = torch.rand(2, 1, 64, 64), torch.rand(2, 3, 64, 64), torch.randn(2, model.noise_size)
    assert model.training_masks(*batch).divergence.item() == pytest.approx(0, abs=1e-2)
    with torch.no_grad():
        first[:, 1:] = 1
    assert model.training_masks(*batch).divergence.item() > 1


def test_phiseg_takes_an_image_whose_heart_is_not_annotated() -> None:
    torch.manual_seed(0)
    model = PHiSeg(64).eval()
    image, lungs, noise = torch.rand(1, 1, 64, 64), torch.rand(1, 2, 64, 64), torch.randn(1, model.noise_size)
    unknown = torch.cat([lungs, torch.full((1, 1, 64, 64), 0.5)], dim=1)
    torch.testing.assert_close(
        model.training_masks(image, lungs, noise).divergence, model.training_masks(image, unknown, noise).divergence
    )


def test_the_unet_without_noise_is_the_same_every_time_and_draws_lie_around_it(images: np.ndarray) -> None:
    torch.manual_seed(0)
    model = UNet(64).eval()
    seen = grey(model, images[:1])
    with torch.inference_mode():
        centre = model.centre(seen).sigmoid()
        torch.testing.assert_close(model.centre(seen).sigmoid(), centre)
    drawn = model.sample(seen, lambda: torch.randn(1, 40, model.noise_size, generator=torch.Generator().manual_seed(0)))
    assert (drawn.mean(dim=1) - centre).abs().mean() < drawn.std(dim=1).mean()


def _resized(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda side: torch.full_like(side, value)


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("input_side", _resized(100.0), "input_size must be a multiple of 64"),
        ("input_side", _resized(float("nan")), "input_side is no whole number"),
        ("likelihood.organs.0.bias", lambda value: value[:2], r"likelihood.organs.0.bias is \[2\], not \[3\]"),
    ],
)
def test_damaged_weights_of_a_pixel_network_are_named(
    key: str, change: Callable[[torch.Tensor], torch.Tensor], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_model(PHiSeg(64), path)
    state = {name: value.clone() for name, value in load_file(path).items()}
    save_file(state | {key: change(state[key]).contiguous()}, path)
    with pytest.raises(cu.CheckpointError, match=words):
        load_network(path)
