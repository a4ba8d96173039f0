"""What a calibration looks at, of predictions and of released records alike: spreads, landmarks and the posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chexmask_u.anatomy import FRAME, LANDMARKS, LATENT_SIZE, REGIONS
from chexmask_u.calibration import row
from chexmask_u.calibration.edges import edge_features

COLUMNS = ("landmarks_mean", "landmarks_std", "landmarks_across", "landmarks_along", "latent_mean", "latent_std")
"""What is looked at: fields of a `Prediction` and columns of a record."""

# Smaller spreads, in pixels of the 1024 frame, and sigmas say more of rounding than of the network.
_FLOOR = 0.05
_SIGMA_FLOOR = 1e-4


@dataclass(frozen=True)
class Seen:
    """B images as the network sees them, float64, pixels of the 1024 frame.

    Attributes:
        landmarks: mean of the draws [B, 120, 2].
        across, along: standard deviation of each landmark's draws across and along the mean contour [B, 120], in which
            rare draws count less, see `Prediction`.
        std: standard deviation of each landmark's draws, the mean of its two axes [B, 120].
        latent_mean, latent_std: of the posterior [B, 64].
        further: features of each landmark beside its spread [B, 120, F], `edge_features` if there were images; or None.
    """

    landmarks: NDArray[np.float64]
    across: NDArray[np.float64]
    along: NDArray[np.float64]
    std: NDArray[np.float64]
    latent_mean: NDArray[np.float64]
    latent_std: NDArray[np.float64]
    further: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, x: Any, images: ArrayLike | None = None) -> Self:
        """Of a `Prediction` of B images, or of one released record.

        Args:
            x: the prediction or record.
            images: that it is of, uint8 [B, 1024, 1024], or [1024, 1024] of a record.

        Raises:
            ValueError: if the record lacks a column, as those of releases before schema 1.2 lack ``landmarks_across``,
                or the images are others.
        """
        if is_prediction(x):
            seen = cls.from_arrays(*(getattr(x, name) for name in COLUMNS))
        else:
            letterbox = row.letterbox(x)
            seen = cls.from_arrays(
                letterbox.to_frame(row.points(x, "landmarks_mean"))[None],
                letterbox.spread_to_frame(row.points(x, "landmarks_std"))[None],
                *(letterbox.spread_to_frame(row.nodes(x, f"landmarks_{way}"))[None] for way in ("across", "along")),
                *(np.asarray(row.column(x, name), np.float64)[None] for name in ("latent_mean", "latent_std")),
            )
        return seen if images is None else seen.with_images(images)

    def with_images(self, images: ArrayLike) -> Self:
        """The same with what the images, uint8 [B, 1024, 1024], show at the landmarks.

        Raises:
            ValueError: if the images are others.
        """
        frames = np.asarray(images)
        if len(self) == 1 and frames.ndim == 2:
            frames = frames[None]
        if frames.dtype != np.uint8 or frames.shape != (len(self), FRAME, FRAME):
            raise ValueError(
                f"images must be the uint8 [{len(self)}, {FRAME}, {FRAME}] that were predicted, not {frames.dtype}"
                f" {list(frames.shape)}; of a file, chexmask_u.read_image(path).image is one"
            )
        return replace(self, further=edge_features(frames, self.landmarks))

    @classmethod
    def from_arrays(
        cls,
        mean: ArrayLike,
        std: ArrayLike,
        across: ArrayLike,
        along: ArrayLike,
        latent_mean: ArrayLike,
        latent_std: ArrayLike,
    ) -> Self:
        """Of the arrays that a `Prediction` has, as `COLUMNS` names them.

        Raises:
            ValueError: if a number is not finite.
        """
        found = cls(
            np.asarray(mean, np.float64),
            np.asarray(across, np.float64),
            np.asarray(along, np.float64),
            np.asarray(std, np.float64).mean(axis=-1),
            np.asarray(latent_mean, np.float64),
            np.asarray(latent_std, np.float64),
        )
        for name in _ARRAYS:
            if not np.isfinite(getattr(found, name)).all():
                raise ValueError(f"a radius needs finite numbers; {name} holds NaN or infinity")
        return found

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Several as one, with further features if all have them."""
        further = [part.further for part in parts if part.further is not None]
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS},
            further=np.concatenate(further) if len(further) == len(parts) else None,
        )

    def __len__(self) -> int:
        return len(self.landmarks)

    def take(self, rows: ArrayLike) -> Self:
        """Some of the images, by index or mask."""
        index = np.asarray(rows)
        return type(self)(
            **{name: getattr(self, name)[index] for name in _ARRAYS},
            further=None if self.further is None else self.further[index],
        )

    @property
    def spread(self) -> NDArray[np.float64]:
        """As `std`, but that rare draws count less: root of the mean of both ways' variances [B, 120]."""
        return np.sqrt((self.across**2 + self.along**2) / 2)

    def spread_features(self) -> NDArray[np.float64]:
        """Logarithms of a landmark's spread across, along, and of its image's mean: float64 [B, 120, 3]."""
        image = np.broadcast_to(self.spread.mean(axis=1, keepdims=True), self.across.shape)
        return np.log(np.maximum(np.stack([self.across, self.along, image], axis=-1), _FLOOR))

    def error_features(self) -> NDArray[np.float64]:
        """What an error is expected from, `spread_features` and what there is further: float64 [B, 120, 3 + F]."""
        spread = self.spread_features()
        return spread if self.further is None else np.concatenate([spread, self.further], axis=-1)

    def spread_alone(self) -> Self:
        """The same without further features."""
        return replace(self, further=None)

    def image_features(self) -> NDArray[np.float64]:
        """What tells how usual an image is, float64 [B, 165].

        The posterior's mean [64]; logarithms of sigma [64], of each region's spread across and along the contour
        [2 * 16], and of the spread across it of the upper and lower half of each lung and of the heart [5].
        """
        regions = [list(nodes) for nodes in REGIONS.values()]
        spreads = [each[:, nodes].mean(axis=1) for each in (self.across, self.along) for nodes in regions]
        sigma = np.log(np.maximum(self.latent_std, _SIGMA_FLOOR))
        spread = np.log(np.maximum(np.stack(spreads, axis=1), _FLOOR))
        return np.concatenate([self.latent_mean, sigma, spread, self._coarse_features()], axis=1)

    def _coarse_features(self) -> NDArray[np.float64]:
        across = np.log(np.maximum(self.across, _FLOOR))
        found = []
        for organ, nodes in LANDMARKS.items():
            y, spread = self.landmarks[:, nodes, 1], across[:, nodes]
            upper = y < np.median(y, axis=1, keepdims=True)
            halves = (upper, ~upper) if organ != "heart" else (np.ones_like(upper),)
            # A contour that fell into one point has no upper half.
            found += [(spread * half).sum(axis=1) / np.maximum(half.sum(axis=1), 1) for half in halves]
        return np.stack(found, axis=1)


COARSE_FEATURES = 5

IMAGE_FEATURES = 2 * LATENT_SIZE + 2 * len(REGIONS) + COARSE_FEATURES
"""How many `Seen.image_features` gives."""

_ARRAYS = tuple(field.name for field in fields(Seen) if field.name != "further")


def is_prediction(x: Any) -> bool:
    """Whether it is a `Prediction` and not a record: known by its attributes, since a record's user needs no torch."""
    return (
        not isinstance(x, Mapping)
        and hasattr(x, "latent_mean")
        and hasattr(x, "landmarks_across")
        and not hasattr(x, "iloc")
    )
