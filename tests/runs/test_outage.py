"""What a step says when a storage is out of reach is what the driver says; and tasks are not tried for ever."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from chexmask_u.errors import StoppedError
from chexmask_u.runs import cluster


def test_the_words_of_a_step_that_stops_are_those_of_the_driver(local_ray: Any) -> None:
    def stop(batch: pa.Table) -> pa.Table:
        raise StoppedError("s3://bucket is out of reach: 8 images in a row could not be fetched")

    words = r"^s3://bucket is out of reach: 8 images in a row could not be fetched$"
    with pytest.raises(StoppedError, match=words), cluster.stopped_in_one_line():
        local_ray.data.range(1).map_batches(stop, batch_format="pyarrow").materialize()


def test_ray_takes_the_bound_on_retries_of_a_repartition(local_ray: Any) -> None:
    from ray.data._internal.logical.optimizers import get_execution_plan

    rows = cluster.bounded(local_ray.data.range(4).repartition(target_num_rows_per_block=2))
    plan = get_execution_plan(rows._logical_plan)
    operator = (plan[0] if isinstance(plan, tuple) else plan).dag
    assert "StreamingRepartition" in operator.name
    assert operator._ray_remote_args["max_retries"] == cluster.MAX_RESTARTS
