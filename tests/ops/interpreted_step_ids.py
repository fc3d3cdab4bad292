"""The kernel of a step's ids under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from ruprompt_fast.ops import step_ids, step_ids_reference


@pytest.mark.parametrize("count", [0, 1, 255, 257])
def test_step_ids(count: int) -> None:
    ids = torch.randint(-5, 60_000, (count,), dtype=torch.int32)
    positions = torch.randint(0, 2048, (count,), dtype=torch.int32)
    carried = torch.randint(0, 60_000, (5,), dtype=torch.int32)
    for found, expected in zip(
        step_ids(ids, positions, carried), step_ids_reference(ids, positions, carried), strict=True
    ):
        assert found.dtype is torch.int64
        assert torch.equal(found, expected)
