"""Rows stay whole: what is written for a record is what a reader of any part of a file gets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from chexmask_u import record
from chexmask_u.columns import landmark_array, latent_array, to_landmarks


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """Row i holds landmarks that are all i, every seventh one nothing."""
    numbers = range(3000)
    landmarks = [None if i % 7 == 0 else np.full((120, 2), i, np.float32) for i in numbers]
    latents = [None if i % 7 == 0 else np.full(64, i, np.float32) for i in numbers]
    return pa.table({"i": numbers, "landmarks": landmark_array(landmarks), "latents": latent_array(latents)})


def assert_whole(table: pa.Table) -> None:
    assert len(table)
    values = to_landmarks(table["landmarks"])
    for i, landmarks, latents in zip(table["i"].to_pylist(), values, table["latents"].to_pylist(), strict=True):
        if i % 7 == 0:
            assert landmarks is None
            assert latents is None
        else:
            assert landmarks.shape == (120, 2)
            assert (landmarks == i).all()
            assert set(latents) == {i}


def test_types_are_those_of_the_schema(rows):
    assert rows["landmarks"].type == record.LANDMARK_ARRAY
    assert rows["latents"].type == record.LATENT_ARRAY


@pytest.mark.parametrize("start", [0, 1, 1000])
def test_slices_takes_filters_and_sorts_give_the_rows_they_name(rows, start):
    part = rows.slice(start, 600)
    assert_whole(part)
    assert_whole(part.take([3, 599, 100]))
    assert_whole(part.filter(pc.greater(part["i"], start + 50)))
    assert_whole(part.sort_by([("i", "descending")]))
    assert_whole(pa.concat_tables([part, rows.slice(2000, 10)]).combine_chunks().take([605, 2]))


def test_parts_of_a_parquet_file_give_the_rows_they_name(rows, tmp_path):
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=1000)
    dataset = pads.dataset(tmp_path / "rows.parquet")
    assert_whole(dataset.to_table(filter=(pc.field("i") > 700) & (pc.field("i") < 2300)))
    for batch in dataset.to_batches(batch_size=300, filter=pc.field("i") > 50):
        assert_whole(pa.table(batch))
