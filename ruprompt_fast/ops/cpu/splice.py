"""The splice and its gradient on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.ops._checks import DTYPE_NAMES, rows_contiguous
from ruprompt_fast.ops._errors import raise_on_bad_id
from ruprompt_fast.ops.cpu.memory import empty_output


def splice_cpu(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    """:func:`ruprompt_fast.ops.splice` of checked tables."""
    ids, tokens, prompts = input_ids.contiguous(), rows_contiguous(token_weight), rows_contiguous(prompt_weight)
    size, width = tokens.element_size(), tokens.shape[1]
    out = empty_output((*ids.shape, width), tokens.dtype)
    bad = _C.splice(
        ids.data_ptr(),
        ids.element_size(),
        ids.numel(),
        tokens.data_ptr(),
        tokens.shape[0],
        tokens.stride()[0] * size,
        prompts.data_ptr(),
        prompts.shape[0],
        prompts.stride()[0] * size,
        first_prompt_id,
        width * size,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    if bad >= 0:
        raise_on_bad_id(ids, tokens.shape[0], prompts.shape[0], first_prompt_id)
    return out


def splice_prompt_grad_cpu(grad: Tensor, input_ids: Tensor, prompt_rows: int, first_prompt_id: int) -> Tensor:
    """The gradient of the prompt table: the rows of ``grad`` summed by prompt row, in rising order of position."""
    width = grad.shape[-1]
    ids = input_ids.contiguous()
    rows = rows_contiguous(grad.reshape(input_ids.numel(), width))
    out = grad.new_empty((prompt_rows, width))
    _C.splice_prompt_grad(
        ids.data_ptr(),
        ids.element_size(),
        ids.numel(),
        rows.data_ptr(),
        rows.stride(0),
        DTYPE_NAMES[grad.dtype],
        width,
        first_prompt_id,
        prompt_rows,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
