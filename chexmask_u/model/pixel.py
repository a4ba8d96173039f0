"""Networks that draw masks of the organs instead of landmarks: the baselines that the paper compares with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.anatomy import FRAME, ORGANS
from chexmask_u.model.network import BaseNetwork
from chexmask_u.model.predict import check_batch, latent_noise

# Pixels of the input that are drawn at once: at full resolution the largest activations take 32 MiB or less.
PIXELS_AT_ONCE = 2**18

# Channels that are normalised together are a quarter of all.
_GROUPS = 4


class TrainingMasks(NamedTuple):
    """What masks are learnt from, with gradients.

    ``logits``, float32 [B, 3, s, s] each, are of the whole resolution first, then of half, a quarter and so on, where a
    network predicts those as well. ``divergence`` is that of the posterior from the prior, nats, weighted as the
    network has it, mean over images; a scalar, 0 where there is no posterior.
    """

    logits: tuple[Tensor, ...]
    divergence: Tensor


class PixelNetwork(BaseNetwork):
    """A network that draws masks of a radiograph, one per organ of `anatomy.ORGANS`, since lungs and heart overlap.

    Its normalisation is an image's own (`nn.GroupNorm`), so that numbers do not depend on the batch.
    """

    mark = "input_side"

    input_side: Tensor

    def __init__(self, input_size: int, variant: str) -> None:
        super().__init__(input_size, variant)
        # No shape of a convolution tells it.
        self.register_buffer("input_side", torch.tensor(float(input_size)))

    @classmethod
    def size_of(cls, state: Mapping[str, Tensor]) -> int:
        side = state[cls.mark]
        if side.numel() != 1 or not float(side).is_integer():
            raise ValueError(f"{cls.mark} is no whole number")
        return int(side)

    @abstractmethod
    def draws(self, image: Tensor, noise: Tensor) -> Iterator[Tensor]:
        """Draws of one image, a few at a time, without gradients.

        Args:
            image: float32 [1, 1, S, S] in [0, 1], from `grey`.
            noise: standard normal float32 [N, noise_size].

        Yields:
            float32 [n, 3, S, S], the probability of each organ; N of them in all.
        """

    @abstractmethod
    def centre(self, images: Tensor) -> Tensor:
        """Logits float32 [B, 3, S, S] of images float32 [B, 1, S, S], without noise."""

    @abstractmethod
    def training_masks(self, images: Tensor, masks: Tensor, noise: Tensor, precision: str = "float32") -> TrainingMasks:
        """A draw of each image with gradients.

        Args:
            images: float32 [B, 1, S, S] in [0, 1].
            masks: float32 [B, c, S, S] in [0, 1], the share of each pixel that is the organ's; c is 3, or 2 for lungs
                alone.
            noise: standard normal float32 [B, noise_size].
            precision: of the convolutions, "float32" or "bfloat16".
        """

    @torch.inference_mode()
    def sample(self, images: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """All draws float32 [B, N, 3, S, S] of images float32 [B, 1, S, S], of noise float32 [B, N, noise_size]."""
        return torch.stack(
            [torch.cat(list(self.draws(image[None], one))) for image, one in zip(images, noise(), strict=True)]
        )

    @torch.inference_mode()
    def mean_masks(self, images: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """Mean float32 [B, 3, S, S] of what `sample` gives, without holding all of it."""
        means = []
        for image, one in zip(images, noise(), strict=True):
            total = torch.stack([drawn.sum(dim=0) for drawn in self.draws(image[None], one)]).sum(dim=0)
            means.append(total / len(one))
        return torch.stack(means)

    def draws_at_once(self) -> int:
        return max(1, PIXELS_AT_ONCE // self.input_size**2)


def predict_masks(
    model: PixelNetwork,
    images: NDArray[np.uint8],
    record_ids: Sequence[str],
    n_samples: int = 50,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Mean masks of a batch of prepared images.

    Args:
        model: from `weight_files.load_network`.
        images, record_ids, n_samples, seed: as `predict.predict` takes them; an image's draws depend on its name and
            the seed alone.

    Returns:
        float32 [B, 3, 1024, 1024], the mean over the draws of each organ's probability, in the 1024 frame.

    Raises:
        TypeError, ValueError: as `predict.predict`.
    """
    check_batch(images, record_ids, n_samples, seed)
    means = np.zeros((len(images), len(ORGANS), FRAME, FRAME), np.float32)
    # One by one: a draw's activations are many times its image.
    for row, (image, name) in enumerate(zip(images, record_ids, strict=True)):
        noise = torch.from_numpy(latent_noise(name, n_samples, seed, model.noise_size)[None]).to(model.device)
        grey = model.grey(torch.from_numpy(image[None]).to(model.device))
        means[row] = in_frame(model.mean_masks(grey, lambda noise=noise: noise))[0].cpu().numpy()  # type: ignore[misc]
    return means


def in_frame(masks: Tensor) -> Tensor:
    """Probabilities [B, c, S, S] in the 1024 frame, [B, c, 1024, 1024], linear between the pixels' centres."""
    if masks.shape[-1] == FRAME:
        return masks
    return F.interpolate(masks, (FRAME, FRAME), mode="bilinear", align_corners=False)


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each normalised per image and rectified."""
    layers: list[nn.Module] = []
    for before in (in_channels, out_channels):
        layers += [
            nn.Conv2d(before, out_channels, 3, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def doubled(maps: Tensor) -> Tensor:
    """Maps [B, c, s, s] at twice their resolution, linear between the pixels' centres."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
