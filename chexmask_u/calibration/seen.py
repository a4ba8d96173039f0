"""What a calibration looks at, of predictions and of released records alike: spreads, landmarks and the posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexmask_u.anatomy import REGIONS
from chexmask_u.calibration import row
from chexmask_u.calibration.spread import across_and_along

# Smaller spreads, in pixels of the 1024 frame, and sigmas say more of rounding than of the network.
_FLOOR = 0.05
_SIGMA_FLOOR = 1e-4


@dataclass(frozen=True)
class Seen:
    """B images as the network sees them, float64, pixels of the 1024 frame.

    Attributes:
        landmarks: mean of the draws [B, 120, 2].
        across, along: standard deviation of each landmark's draws across and along the mean contour [B, 120].
        std: standard deviation of each landmark's draws, the mean of its two axes [B, 120].
        latent_mean, latent_std: of the posterior [B, 64].
    """

    landmarks: NDArray[np.float64]
    across: NDArray[np.float64]
    along: NDArray[np.float64]
    std: NDArray[np.float64]
    latent_mean: NDArray[np.float64]
    latent_std: NDArray[np.float64]

    @classmethod
    def of(cls, x: Any) -> Self:
        """Of a `Prediction` of B images, or of one released record.

        Raises:
            ValueError: if the record lacks a column, as those of releases before schema 1.1 lack ``landmarks_xy``.
        """
        if is_prediction(x):
            return cls.from_arrays(x.landmarks_mean, x.landmarks_std, x.landmarks_xy, x.latent_mean, x.latent_std)
        letterbox = row.letterbox(x)
        return cls.from_arrays(
            letterbox.to_frame(row.points(x, "landmarks_mean"))[None],
            letterbox.spread_to_frame(row.points(x, "landmarks_std"))[None],
            letterbox.covariance_to_frame(row.nodes(x, "landmarks_xy"))[None],
            *(np.asarray(row.column(x, name), np.float64)[None] for name in ("latent_mean", "latent_std")),
        )

    @classmethod
    def from_arrays(
        cls, mean: ArrayLike, std: ArrayLike, covariance: ArrayLike, latent_mean: ArrayLike, latent_std: ArrayLike
    ) -> Self:
        """Of the arrays that a `Prediction` has.

        Raises:
            ValueError: if a number is not finite.
        """
        across, along = across_and_along(mean, std, covariance)
        found = cls(
            np.asarray(mean, np.float64),
            across,
            along,
            np.asarray(std, np.float64).mean(axis=-1),
            np.asarray(latent_mean, np.float64),
            np.asarray(latent_std, np.float64),
        )
        for field in fields(cls):
            if not np.isfinite(getattr(found, field.name)).all():
                raise ValueError(f"a radius needs finite numbers; {field.name} holds NaN or infinity")
        return found

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Several as one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.landmarks)

    def take(self, rows: ArrayLike) -> Self:
        """Some of the images, by index or mask."""
        return type(self)(*(getattr(self, field.name)[np.asarray(rows)] for field in fields(self)))

    def spread_features(self) -> NDArray[np.float64]:
        """Logarithms of a landmark's spread across, along, and of its image's mean: float64 [B, 120, 3]."""
        image = np.broadcast_to(self.std.mean(axis=1, keepdims=True), self.std.shape)
        return np.log(np.maximum(np.stack([self.across, self.along, image], axis=-1), _FLOOR))

    def image_features(self) -> NDArray[np.float64]:
        """Posterior mean, logarithms of sigma and of each region's spread across and along: float64 [B, 64+64+2*16]."""
        regions = [list(nodes) for nodes in REGIONS.values()]
        spreads = [each[:, nodes].mean(axis=1) for each in (self.across, self.along) for nodes in regions]
        sigma = np.log(np.maximum(self.latent_std, _SIGMA_FLOOR))
        return np.concatenate([self.latent_mean, sigma, np.log(np.maximum(np.stack(spreads, axis=1), _FLOOR))], axis=1)


def is_prediction(x: Any) -> bool:
    """Whether it is a `Prediction` and not a record: known by its attributes, since a record's user needs no torch."""
    return (
        not isinstance(x, Mapping)
        and hasattr(x, "latent_mean")
        and hasattr(x, "landmarks_xy")
        and not hasattr(x, "iloc")
    )
