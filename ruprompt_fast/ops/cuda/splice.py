"""The splice and its gradient on CUDA: allocation and launches, with no wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.kernels import splice as kernels
from ruprompt_fast.ops._checks import rows_contiguous
from ruprompt_fast.ops.cuda.id_errors import IdErrorSlots, raise_pending, slots_of


def splice_cuda(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    """:func:`ruprompt_fast.ops.splice` of checked tables on one device; raises what an earlier call has left."""
    device_index = input_ids.get_device()
    raise_pending(device_index)
    with torch.cuda.device(device_index):
        return splice_into_slots(input_ids, token_weight, prompt_weight, first_prompt_id, slots_of(device_index))


def splice_into_slots(
    input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int, errors: IdErrorSlots
) -> Tensor:
    """The lookup on the current device; an id in neither table gives a row of NaN and is noted in ``errors``."""
    out = token_weight.new_empty((*input_ids.shape, token_weight.shape[1]))
    kernels.launch_splice(
        input_ids.contiguous(),
        rows_contiguous(token_weight),
        rows_contiguous(prompt_weight),
        first_prompt_id,
        errors.slots,
        out,
    )
    return out


def splice_prompt_grad_cuda(grad: Tensor, input_ids: Tensor, prompt_rows: int, first_prompt_id: int) -> Tensor:
    """The gradient of the prompt table on the device of ``grad``."""
    with torch.cuda.device(grad.get_device()):
        return sum_segments(grad, input_ids, prompt_rows, first_prompt_id)


def sum_segments(grad: Tensor, input_ids: Tensor, prompt_rows: int, first_prompt_id: int) -> Tensor:
    """Sums the rows of ``grad`` by prompt row: a stable sort brings each row's positions together, in rising order."""
    width = grad.shape[-1]
    # Short keys, -1 for all tokens: a radix sort passes over them twice, and eight times over 64-bit ids.
    key_dtype = torch.int16 if prompt_rows <= torch.iinfo(torch.int16).max else torch.int32
    keys = torch.empty(input_ids.numel(), dtype=key_dtype, device=grad.device)
    ids = input_ids.reshape(-1).long()
    torch.sub(ids.clamp(first_prompt_id - 1, first_prompt_id + prompt_rows), first_prompt_id, out=keys)
    ordered, order = keys.sort(stable=True)
    bounds = torch.arange(prompt_rows + 1, dtype=key_dtype, device=grad.device)
    out = grad.new_empty((prompt_rows, width))
    rows = rows_contiguous(grad.reshape(input_ids.numel(), width))
    kernels.launch_prompt_grad(order, torch.searchsorted(ordered, bounds), rows, out)
    return out
