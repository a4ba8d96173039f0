"""How a training is shared out, as far as no cluster is needed to know it."""

from __future__ import annotations

import pytest

from chexmask_u.training.distributed import sharing


@pytest.mark.parametrize(("batch", "gpus", "workers"), [(16, 8, 8), (16, 3, 2), (12, 8, 6), (7, 4, 1), (8, 0, 1)])
def test_of_the_gpus_as_many_train_as_can_share_a_batch_evenly(batch: int, gpus: int, workers: int) -> None:
    assert sharing(batch, gpus) == workers
