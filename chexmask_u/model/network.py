"""What every variant of the network is to those who predict, train, evaluate and measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chexmask_u.model.decoder import Decoded
from chexmask_u.model.draws import Draws
from chexmask_u.model.encoder import DOWNSAMPLING
from chexmask_u.model.precision import Precision

# Side in pixels of the smallest images: at a single cell conv6 would have no variance to be normalised by.
LEAST_SIZE = 2 * DOWNSAMPLING


class TrainingDraws(NamedTuple):
    """Draws that gradients flow through, and the KL divergence of the posterior from the prior, nats, mean over images.

    The divergence is a scalar, 0 where there is no posterior.
    """

    decoded: Decoded
    divergence: Tensor


class BaseNetwork(nn.Module, ABC):
    """Weights that take square radiographs of one size: a `Network` draws landmarks of them, a `PixelNetwork` masks.

    Args:
        input_size: side S in pixels of the square images it takes; a multiple of `multiple`, at least 64.
        variant: what it is called, as --variant takes it.

    Raises:
        ValueError: if the size is not one of those.
    """

    family: ClassVar[str]
    """What people call networks of this kind."""

    mark: ClassVar[str]
    """The tensor in its weight files that no other family has, and that tells the input size."""

    multiple: ClassVar[int] = DOWNSAMPLING
    """What the input size is a multiple of."""

    noise_size: int
    """Standard normal numbers that a draw takes."""

    has_posterior: ClassVar[bool]
    """Whether the latents have a posterior, whose divergence from the prior is part of the loss."""

    sha256: str | None = None
    """Digest of the weight file this model was loaded from; None for a model that was never saved."""

    def __init__(self, input_size: int, variant: str) -> None:
        super().__init__()
        if input_size < LEAST_SIZE or input_size % self.multiple:
            raise ValueError(f"input_size must be a multiple of {self.multiple} from {LEAST_SIZE} on, not {input_size}")
        self.input_size = input_size
        self.variant = variant

    @classmethod
    def noise_at(cls, input_size: int) -> int:
        """`noise_size` of a network of that input size."""
        return cls.noise_size

    @classmethod
    def size_of(cls, state: Mapping[str, Tensor]) -> int:
        """The input size of the network whose weights a file holds, by the file's keys.

        Raises:
            ValueError: if they do not tell.
        """
        raise NotImplementedError(f"{cls.__name__} is read from no file")

    @staticmethod
    def saved_as(name: str) -> str:
        """The key in a weight file of what the module calls so."""
        return name

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def computes_batches(self) -> bool:
        """Whether it computes a batch at once, as is best on a GPU; on a CPU it takes image by image."""
        return self.device.type != "cpu"

    def grey(self, images: Tensor) -> Tensor:
        """Prepared images uint8 [B, H, H] as the network takes them: float32 [B, 1, S, S] in [0, 1]; means of areas."""
        grey = images.unsqueeze(1).float().div_(255)
        if images.shape[-1] == self.input_size:
            return grey
        return F.interpolate(grey, (self.input_size, self.input_size), mode="area")

    def freeze_convolutions(self) -> None:
        """Keep the encoder's convolutions as they are in training."""
        raise NotImplementedError(f"the variant {self.variant} cannot be trained in part")

    def config(self) -> dict[str, Any]:
        """What a config.json beside its weights must not contradict, by upstream's names."""
        return {"inputsize": self.input_size}


class Network(BaseNetwork):
    """A network that draws landmarks of a radiograph; a variant is a subclass and its line in `variants.VARIANTS`."""

    precision: Precision = "float32"
    """Arithmetic of the encoder where no gradient is kept; training chooses its own. The decoder is always float32."""

    @abstractmethod
    def sample(self, images: Tensor, noise: Callable[[], Tensor]) -> Draws:
        """Draws of a batch, where no gradient is kept, in `precision`.

        Args:
            images: float32 [B, 1, S, S], from `grey`.
            noise: gives standard normal float32 [B, N, noise_size]. It is called as late as it can be: making noise on
                the host takes its time, in which a GPU may have begun already.

        Raises:
            ValueError: if the device does not have the precision.
        """

    @abstractmethod
    def centre(self, images: Tensor) -> Draws:
        """A single draw of each image, N = 1, without noise: of the latents' mean."""

    @abstractmethod
    def training_draws(self, images: Tensor, noise: Tensor, precision: str = "float32") -> TrainingDraws:
        """M draws of each image with gradients.

        Args:
            images: float32 [B, 1, S, S] in [0, 1].
            noise: standard normal float32 [B, M, noise_size].
            precision: of the encoder's convolutions, "float32" or "bfloat16"; all that follows is float32.
        """

    def compile_checked(self, images: Tensor, noise: Tensor) -> tuple[float, Tensor]:
        """Have torch compile the network, for any batch size, and compare it with its plain form; in inference mode.

        Args:
            images: float32 [B, 1, S, S] in [0, 1].
            noise: standard normal float32 [B, N, 64].

        Returns:
            By which share of their largest value the latents differ, and by how much each coordinate, float32 [n] in
            the unit square, of the same draws and feature maps.

        Raises:
            Exception: of whatever kind a compiler raises.
        """
        raise NotImplementedError(f"the variant {self.variant} has no compiled form")


def training_arithmetic(precision: str, device: torch.device) -> Any:
    """Context in which a forward pass with gradients computes in "float32" or "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def reparameterised(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """Latent draws float32 [B, N, 64] of a Gaussian posterior, mean and log variance [B, 64], from noise [B, N, 64]."""
    return mean.unsqueeze(1) + noise * torch.exp(log_var / 2).unsqueeze(1)
