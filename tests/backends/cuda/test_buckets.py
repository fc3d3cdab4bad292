from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruprompt_fast.backends.cuda.buckets import Bucket, Buckets


def test_sizes() -> None:
    buckets = Buckets(64, 129)
    assert buckets.rows == (1, 2, 4, 8, 16, 24, 32, 48, 64)
    assert buckets.blocks == (32, 128, 129)
    assert buckets.largest_first()[0] == buckets.largest == Bucket(64, 129)
    assert Buckets(200, 1).rows[-4:] == (96, 128, 192, 256)
    assert str(Bucket(8, 32)) == "8 sequences of 32 pages"


@given(st.integers(1, 1 << 14), st.integers(1, 1 << 12), st.data())
def test_every_step_has_a_bucket_with_little_padding(max_rows: int, max_blocks: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, max_rows))
    blocks = data.draw(st.integers(1, max_blocks))
    bucket = Buckets(max_rows, max_blocks).of(rows, blocks)
    assert rows <= bucket.num_rows <= max(2 * rows - 1, 8)
    assert blocks <= bucket.num_blocks <= max(4 * blocks, 32)


@pytest.mark.parametrize("max_rows", [1, 3, 64, 65, 1000])
def test_few_graphs(max_rows: int) -> None:
    assert len(Buckets(max_rows, 129).largest_first()) <= 3 * 17
