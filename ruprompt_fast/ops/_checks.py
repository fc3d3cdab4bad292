"""What the operators require of their arguments, and the memory layout that their kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import PromptMismatchError, TensorArgumentError

# The names under which the compiled kernels know the element types.
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}


def check_ids(input_ids: Tensor) -> None:
    """Raises :class:`TensorArgumentError` unless the ids are int32 or int64."""
    if input_ids.dtype is not torch.int64 and input_ids.dtype is not torch.int32:
        raise TensorArgumentError(f"input_ids must be int32 or int64, not {input_ids.dtype}")


def check_tables(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor) -> None:
    """Raises unless the ids are ids and the tables are two matrices of one width, dtype and device."""
    check_ids(input_ids)
    token_shape, prompt_shape = token_weight.shape, prompt_weight.shape
    if len(token_shape) != 2 or len(prompt_shape) != 2:
        raise TensorArgumentError(
            f"token_weight and prompt_weight must be [rows, width], not {list(token_shape)} and {list(prompt_shape)}"
        )
    if token_weight.dtype not in DTYPE_NAMES:
        names = ", ".join(DTYPE_NAMES.values())
        raise TensorArgumentError(f"token_weight must be one of {names}, not {token_weight.dtype}")
    if token_weight.dtype is not prompt_weight.dtype:
        raise PromptMismatchError(
            f"the tables must have one dtype, but token_weight is {token_weight.dtype} and prompt_weight "
            f"{prompt_weight.dtype}: convert the prompt with .to({token_weight.dtype})"
        )
    if token_shape[1] != prompt_shape[1]:
        raise PromptMismatchError(f"the prompt table has width {prompt_shape[1]}, the token table {token_shape[1]}")
    device = token_weight.device
    if input_ids.device != device or prompt_weight.device != device:
        raise TensorArgumentError(
            f"input_ids, token_weight and prompt_weight must be on one device, not on {input_ids.device}, {device} "
            f"and {prompt_weight.device}"
        )


def rows_contiguous(table: Tensor) -> Tensor:
    """``table`` itself if the elements of each row stand together, else a copy in which they do."""
    return table if table.stride(1) == 1 or table.shape[1] <= 1 else table.contiguous()
