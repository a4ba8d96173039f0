"""The published algorithm written plainly, one image at a time: what the predictor is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from chexmask_u.anatomy import COARSE_RING_SIZES, FRAME, RING_SIZES
from chexmask_u.model.network import Network
from chexmask_u.model.precision import arithmetic

# Variants of the network that it has.
PUBLISHED_VARIANTS = ("skip", "noskip")


@dataclass(frozen=True)
class PublishedCode:
    """What upstream's own code took for an image at 1024 x 1024 with skips and 50 draws; seconds, measured once.

    Attributes:
        kind, words, cores: of the device: "cpu" or "cuda", what its name holds, and of a CPU its number of cores.
        encode, decode, whole: from the image on the device to the posterior, from the draws to their landmarks, and
            from the image on the host to mean and standard deviation there.
    """

    kind: str
    words: str
    cores: int | None
    encode: float
    decode: float
    whole: float


PUBLISHED_CODE = (
    PublishedCode("cpu", "AMD EPYC", 2, encode=0.370, decode=0.140, whole=0.510),
    PublishedCode("cuda", "H100", None, encode=0.0062, decode=0.0251, whole=0.0319),
)

CHEBYSHEV_ORDER = 6
ENCODER_BLOCKS = 6


@dataclass(frozen=True)
class Encoded:
    """One image's posterior, float32 [1, 64] each, and feature maps float32 [1, 128, h, w]."""

    mean: Tensor
    log_var: Tensor
    conv5: Tensor
    conv6: Tensor


class Reference:
    """HybridGNet as published: a batch of one, statistics of that batch, a copy of every feature map for every draw.

    Written from a description of the method (its papers, and the layers' names and sizes), with the plainest
    operations that PyTorch has. It differs from upstream in two places, in neither to its own disadvantage:

    - Upstream looks windows up with torchvision's RoIAlign, which chooses its number of taps from a box width that is 3
      up to rounding. Here they are 3 x 3 bilinear taps by one `grid_sample`, each draw's in its own copy of the map.
    - Upstream propagates over the edges of a graph library's sparse graph. Here the Laplacian is a dense matrix, which
      at 120 nodes is the faster of the two.

    Args:
        model: whose weights are used, in float32; TF32 and bfloat16 are off, whatever torch's defaults are.
        device: where it runs (default: where the model is).
    """

    def __init__(self, model: Network, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or model.device)
        self.input_size = model.input_size
        self.skip = model.variant == "skip"
        self.weights = {
            key.removeprefix("decoder."): value.detach().to(self.device, torch.float32)
            for key, value in model.state_dict().items()
        }
        self.coarse = scaled_laplacian(COARSE_RING_SIZES).to(self.device)
        self.fine = scaled_laplacian(RING_SIZES).to(self.device)
        self.upsampling = upsampling(COARSE_RING_SIZES).to(self.device)

    def predict(
        self, images: NDArray[np.uint8], noise: Sequence[NDArray[np.float32]]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Landmarks of each image, one after the other.

        Args:
            images: uint8 [B, 1024, 1024], grey.
            noise: standard normal draws float32 [N, 64] of each image.

        Returns:
            Mean and standard deviation (ddof = 0) over the draws of each image, float32 [120, 2], pixels of the 1024
            frame.
        """
        results = []
        with torch.inference_mode():
            for image, eps in zip(images, noise, strict=True):
                encoded = self.encode(self.grey(image))
                z = self.sample(encoded, eps)
                # Every draw goes to the host, where numpy takes the statistics.
                landmarks = self.decode(z, encoded)[0].cpu().numpy() * FRAME
                results.append((landmarks.mean(axis=0), landmarks.std(axis=0)))
        return results

    def grey(self, image: NDArray[np.uint8]) -> Tensor:
        """Input float32 [1, 1, S, S] in [0, 1] of an image uint8 [1024, 1024]."""
        grey = torch.from_numpy(image).to(self.device)[None, None].float() / 255
        size = (self.input_size, self.input_size)
        return grey if self.input_size == FRAME else F.interpolate(grey, size, mode="area")

    def sample(self, encoded: Encoded, noise: NDArray[np.float32]) -> Tensor:
        """Latents float32 [N, 64] of standard normal draws float32 [N, 64]."""
        return encoded.mean + torch.from_numpy(noise).to(self.device) * torch.exp(encoded.log_var / 2)

    def encode(self, image: Tensor) -> Encoded:
        """Posterior and feature maps of one image, float32 [1, 1, S, S] in [0, 1]."""
        with arithmetic("float32", self.device):
            return self._encode(image)

    def _encode(self, image: Tensor) -> Encoded:
        x = image
        maps: list[Tensor] = []
        for level in range(1, ENCODER_BLOCKS + 1):
            x = self._residual_block(F.max_pool2d(x, 2) if maps else x, f"encoder.dconv_down{level}")
            maps.append(x)
        flat = x.flatten(1)
        mean = F.linear(flat, self.weights["encoder.fc_mu.weight"], self.weights["encoder.fc_mu.bias"])
        log_var = F.linear(flat, self.weights["encoder.fc_logvar.weight"], self.weights["encoder.fc_logvar.bias"])
        return Encoded(mean, log_var, conv5=maps[-2], conv6=maps[-1])

    def decode(self, z: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Landmarks float32 [N, 120, 2] of draws float32 [N, 64], and the skip blocks' positions; unit square."""
        with arithmetic("float32", self.device):
            return self._decode(z, encoded)

    def _decode(self, z: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor | None, Tensor | None]:
        pos1 = pos2 = None
        x = F.relu(F.linear(z, self.weights["dec_lin.weight"], self.weights["dec_lin.bias"]))
        x = x.reshape(len(z), len(self.coarse), -1)
        x = F.relu(node_norm(self._chebyshev(x, "graphConv_up6", self.coarse)))
        x = F.relu(node_norm(self._chebyshev(x, "graphConv_up5", self.coarse)))
        if self.skip:
            x, pos1 = self._skip_connection(x, "SC_1", encoded.conv6)
        x = F.relu(node_norm(self._chebyshev(x, "graphConv_up4", self.coarse)))
        x = self.upsampling @ x
        x = F.relu(node_norm(self._chebyshev(x, "graphConv_up3", self.fine)))
        if self.skip:
            x, pos2 = self._skip_connection(x, "SC_2", encoded.conv5)
        x = F.relu(node_norm(self._chebyshev(x, "graphConv_up2", self.fine)))
        return F.linear(x, self.weights["graphConv_up1.lins.0.weight"]), pos1, pos2

    def _residual_block(self, x: Tensor, name: str) -> Tensor:
        y = self._convolution(F.relu(self._batch_norm(x, f"{name}.block.0")), f"{name}.block.2")
        y = self._convolution(F.relu(self._batch_norm(y, f"{name}.block.3")), f"{name}.block.5")
        if f"{name}.skip.0.weight" in self.weights:
            x = self._batch_norm(F.conv2d(x, self.weights[f"{name}.skip.0.weight"]), f"{name}.skip.1")
        return F.relu(y + x)

    def _convolution(self, x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding=1)

    def _batch_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.batch_norm(x, None, None, weight, bias, training=True)

    def _chebyshev(self, x: Tensor, name: str, laplacian: Tensor) -> Tensor:
        """Sum over k of T_k(laplacian) x W_k, with T_k by its recursion (Defferrard et al. 2016, section 2.1)."""
        before, term = x, laplacian @ x
        total = F.linear(before, self.weights[f"{name}.lins.0.weight"])
        for order in range(1, CHEBYSHEV_ORDER):
            total = total + F.linear(term, self.weights[f"{name}.lins.{order}.weight"])
            before, term = term, 2 * (laplacian @ term) - before
        return total + self.weights[f"{name}.bias"]

    def _skip_connection(self, x: Tensor, name: str, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        position = F.linear(x, self.weights[f"{name}.graphConv_pre.lins.0.weight"])
        windows = window_means(feature_map.repeat(len(x), 1, 1, 1), position)
        return torch.cat([x, windows, position], dim=-1), position


def window_means(feature_maps: Tensor, positions: Tensor) -> Tensor:
    """Mean of 3 x 3 bilinear taps around each position, by RoIAlign's rules for taps beyond the border.

    Args:
        feature_maps: float32 [N, C, H, W], one of each draw.
        positions: float32 [N, P, 2], x then y, unit square.

    Returns:
        float32 [N, P, C].
    """
    height, width = feature_maps.shape[2:]
    step = torch.arange(-1, 2, device=positions.device)
    x = positions[..., :1] * width + step.repeat(3)
    y = positions[..., 1:] * height + step.repeat_interleave(3)
    inside = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    # With aligned corners, -1 and 1 are the centres of the first and last cell; "border" clamps taps to them.
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    sampled = F.grid_sample(feature_maps, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return (sampled * inside.unsqueeze(1)).mean(dim=-1).mT


def published_code(kind: str, name: str, cores: int | None) -> PublishedCode | None:
    """What upstream's own code took on a device of this kind and name, and of so many cores, if it is known."""
    for code in PUBLISHED_CODE:
        if code.kind == kind and code.words in name and code.cores in (None, cores):
            return code
    return None


def node_norm(x: Tensor) -> Tensor:
    """Instance norm of [N, nodes, features] without parameters: each node over its features."""
    return F.instance_norm(x)


def scaled_laplacian(ring_sizes: Sequence[int]) -> Tensor:
    """2 L / lambda_max - I with lambda_max = 2, L the normalised Laplacian I - D^-1/2 A D^-1/2 of disjoint rings.

    Returns:
        float32 [nodes, nodes].
    """
    ring = [torch.eye(size).roll(1, dims=0) + torch.eye(size).roll(-1, dims=0) for size in ring_sizes]
    adjacency = torch.block_diag(*ring)
    degree = adjacency.sum(dim=1)
    return -adjacency / torch.sqrt(degree[:, None] * degree[None, :])


def upsampling(ring_sizes: Sequence[int]) -> Tensor:
    """float32 [2 n, n]: even nodes copy a coarse node, odd ones average it with the next of its ring."""
    blocks = []
    for size in ring_sizes:
        copy = torch.eye(size)
        blocks.append(torch.stack([copy, (copy + copy.roll(1, dims=1)) / 2], dim=1).reshape(2 * size, size))
    return torch.block_diag(*blocks)
