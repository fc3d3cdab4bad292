"""Replaces the markers of the text form by prompt ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import check_ids
from ruprompt_fast.ops._errors import marker_count_error
from ruprompt_fast.ops._library import LIBRARY, NAMESPACE
from ruprompt_fast.ops.cpu.markers import resolve_markers_cpu
from ruprompt_fast.ops.cuda.markers import resolve_markers_cuda

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
                raise marker_count_error(sequence, marker, found, rows)
    return out.contiguous()


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


def _on_cpu(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    dtype = _check_arguments(input_ids, marker_ids, prompt_starts, prompt_lens)
    return resolve_markers_cpu(input_ids, marker_ids, prompt_starts, prompt_lens, dtype)


def _on_cuda(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    dtype = _check_arguments(input_ids, marker_ids, prompt_starts, prompt_lens)
    return resolve_markers_cuda(input_ids, marker_ids, prompt_starts, prompt_lens, dtype)


def _fake(
    input_ids: Tensor, marker_ids: Sequence[int], prompt_starts: Sequence[int], prompt_lens: Sequence[int]
) -> Tensor:
    dtype = _check_arguments(input_ids, marker_ids, prompt_starts, prompt_lens)
    return input_ids.new_empty(input_ids.shape, dtype=dtype)


LIBRARY.impl("resolve_markers", _on_cpu, "CPU")
LIBRARY.impl("resolve_markers", _on_cuda, "CUDA")
torch.library.register_fake(f"{NAMESPACE}::resolve_markers", _fake, lib=LIBRARY)
