"""The gradient of gathered keys under Triton's interpreter; run by test_kernels_interpreted.py, or by hand."""

from __future__ import annotations

import pytest
import torch
from ops.shared_prefix_cases import Case, check, gathered_by, plain_kernel

from ruprompt_fast.ops import NO_PREFIX, PackedSequences

SEQUENCES = PackedSequences((3, 1, 2, 4, 1), (NO_PREFIX, NO_PREFIX, 0, 2, 0), 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("takes_groups", [False, True])
def test_segments_are_summed_by_the_kernel(takes_groups: bool, dtype: torch.dtype) -> None:
    check(Case(SEQUENCES, (4, 2), dtype), gathered_by(plain_kernel(takes_groups)))
