"""Resolving markers on CUDA devices: integer operations of static shapes, with no wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def resolve_markers_cuda(
    input_ids: Tensor,
    marker_ids: Sequence[int],
    prompt_starts: Sequence[int],
    prompt_lens: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """:func:`ruprompt_fast.ops.resolve_markers` of checked arguments, in the output's ``dtype``.

    The number of operations does not depend on how many markers there are.
    """
    if not marker_ids or input_ids.numel() == 0:
        return input_ids.to(dtype, copy=True, memory_format=torch.contiguous_format)
    markers, starts, rows = _marker_table(tuple(marker_ids), tuple(prompt_starts), tuple(prompt_lens), input_ids.device)
    ids = input_ids.long().contiguous()
    slot = torch.searchsorted(markers, ids).clamp_(max=len(marker_ids) - 1)
    is_marker = markers[slot] == ids
    # The ordinal of an id among its equals: its place in a stable sort less the place of the first equal.
    ordered, order = ids.sort(dim=-1, stable=True)
    first = torch.searchsorted(ordered, ids)
    count = torch.searchsorted(ordered, ids, right=True) - first
    torch._assert_async(
        (~is_marker | (count == rows[slot])).all(),
        "a sequence holds another number of markers than its prompt has rows",
    )
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(ids.shape[-1], device=ids.device).expand_as(ids))
    return torch.where(is_marker, starts[slot] + place - first, ids).to(dtype)


@lru_cache(maxsize=64)
def _marker_table(
    markers: tuple[int, ...], starts: tuple[int, ...], rows: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The lists as tensors sorted by marker; kept, because each copy to a device would wait for it."""
    table = torch.tensor(sorted(zip(markers, starts, rows, strict=True)), dtype=torch.int64, device=device)
    return table[:, 0].contiguous(), table[:, 1].contiguous(), table[:, 2].contiguous()
