"""Step: the noise of each image's draws, made where images are read, so that a GPU's replica has it in hand."""

from __future__ import annotations

import pyarrow as pa

from chexmask_u import record
from chexmask_u.columns import replace
from chexmask_u.model.predict import latent_noise


def draw_noise(batch: pa.Table, *, samples: int, seed: int, size: int) -> pa.Table:
    """Step: `record.READ` -> `record.READY`.

    Args:
        batch: prepared images.
        samples, seed: as the predictor's.
        size: `noise_size` of its network.
    """
    noise = [
        latent_noise(record_id, samples, seed, size).tobytes() if status == record.OK else None
        for record_id, status in zip(batch["record_id"].to_pylist(), batch["status"].to_pylist(), strict=True)
    ]
    return replace(batch, record.READY, noise=noise)
