"""Resolving markers on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.ops._errors import marker_count_error


def resolve_markers_cpu(
    input_ids: Tensor,
    marker_ids: Sequence[int],
    prompt_starts: Sequence[int],
    prompt_lens: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """:func:`ruprompt_fast.ops.resolve_markers` of checked arguments, in the output's ``dtype``."""
    ids = input_ids.contiguous()
    out = torch.empty(ids.shape, dtype=dtype)
    length = ids.shape[-1]
    sequence, marker, found, rows = _C.resolve_markers(
        ids.data_ptr(),
        ids.element_size(),
        ids.numel() // length if length else 0,
        length,
        marker_ids,
        prompt_starts,
        prompt_lens,
        out.data_ptr(),
        out.element_size(),
    )
    if sequence >= 0:
        raise marker_count_error(sequence, marker, found, rows)
    return out
