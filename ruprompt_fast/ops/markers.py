"""Replaces the markers of the text form by prompt ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.errors import MarkerCountError, TensorArgumentError
from ruprompt_fast.ops._checks import check_ids
from ruprompt_fast.ops._library import LIBRARY, NAMESPACE

LIBRARY.define(
    "resolve_markers(Tensor input_ids, int[] marker_ids, int[] prompt_starts, int[] prompt_lens) -> Tensor",
)
_RESOLVE = torch.ops.ruprompt_fast.resolve_markers.default


def resolve_markers(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    """Replaces the k-th occurrence of every marker in a sequence by the id of row k of its prompt.

    Semantics, for each marker ``m`` with ``start`` and ``n`` rows::

        mask = input_ids == m
        out = torch.where(mask, start + mask.cumsum(-1) - 1, input_ids)
        mask.sum(-1) is 0 or n in every sequence

    Args:
        input_ids: ``[..., sequence]``, int32 or int64, contiguous or not.
        marker_ids: the markers' token ids, no two equal.
        prompt_starts: the id of each prompt's row 0.
        prompt_lens: each prompt's number of rows.

    Returns:
        A new contiguous tensor of ``input_ids``' shape and dtype; int64 if a prompt id does not fit that dtype.

    Raises:
        MarkerCountError: a sequence holds another number of a marker than 0 or the prompt's rows. On CUDA this is a
            device-side assertion, raised at the next synchronization.
        TensorArgumentError: ``input_ids`` has another dtype or no dimension, or the lists differ in length.
    """
    return cast(Tensor, _RESOLVE(input_ids, marker_ids, prompt_starts, prompt_lens))


def resolve_markers_reference(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    """:func:`resolve_markers` in plain PyTorch, one marker after another."""
    dtype = _check_arguments(input_ids, marker_ids, prompt_starts, prompt_lens)
    out = input_ids.to(dtype, copy=True)
    for marker, start, rows in zip(marker_ids, prompt_starts, prompt_lens, strict=True):
        mask = input_ids == marker
        out = torch.where(mask, (start + mask.cumsum(-1) - 1).to(dtype), out)
        for sequence, found in enumerate(mask.sum(-1).reshape(-1).tolist()):
            if found not in (0, rows):
                raise _count_error(sequence, marker, found, rows)
    return out.contiguous()


def _count_error(sequence: int, marker: int, found: int, rows: int) -> MarkerCountError:
    return MarkerCountError(
        f"sequence {sequence} has {found} markers of id {marker}, but its prompt has {rows} rows; "
        "a prompt's markers must all be present (check for truncation) and stand once per sequence"
    )


def _check_arguments(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> torch.dtype:
    """The output's dtype."""
    check_ids(input_ids)
    if input_ids.dim() == 0:
        raise TensorArgumentError("input_ids must be [..., sequence], not a scalar")
    if not len(marker_ids) == len(prompt_starts) == len(prompt_lens):
        raise TensorArgumentError(
            f"marker_ids, prompt_starts and prompt_lens must be of one length, "
            f"not {len(marker_ids)}, {len(prompt_starts)} and {len(prompt_lens)}"
        )
    if len(set(marker_ids)) != len(marker_ids):
        raise TensorArgumentError(f"marker_ids must differ from one another: {list(marker_ids)}")
    end = max((start + rows for start, rows in zip(prompt_starts, prompt_lens, strict=True)), default=0)
    return input_ids.dtype if end <= torch.iinfo(input_ids.dtype).max else torch.int64


def _resolve_cpu(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    dtype = _check_arguments(input_ids, marker_ids, prompt_starts, prompt_lens)
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
        raise _count_error(sequence, marker, found, rows)
    return out


@lru_cache(maxsize=64)
def _marker_table(
    markers: tuple[int, ...], starts: tuple[int, ...], rows: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The lists as tensors sorted by marker; kept, because each copy to a device would wait for it."""
    table = torch.tensor(sorted(zip(markers, starts, rows, strict=True)), dtype=torch.int64, device=device)
    return table[:, 0].contiguous(), table[:, 1].contiguous(), table[:, 2].contiguous()


def _resolve_without_sync(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    """Integer operations of static shapes whose number does not depend on how many markers there are."""
    dtype = _check_arguments(input_ids, marker_ids, prompt_starts, prompt_lens)
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


def _resolve_fake(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    dtype = _check_arguments(input_ids, marker_ids, prompt_starts, prompt_lens)
    return input_ids.new_empty(input_ids.shape, dtype=dtype)


LIBRARY.impl("resolve_markers", _resolve_cpu, "CPU")
LIBRARY.impl("resolve_markers", _resolve_without_sync, "CUDA")
torch.library.register_fake(f"{NAMESPACE}::resolve_markers", _resolve_fake, lib=LIBRARY)
