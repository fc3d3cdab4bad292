"""What the operators require of their arguments, and the memory layout that their kernels take."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError

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


def rows_contiguous(table: Tensor) -> Tensor:
    """``table`` itself if the elements of each row lie together, else a copy in which they do."""
    # All strides cost less to ask for than one: the kernel of a small input is not longer than these questions.
    return table if table.stride()[1] == 1 or table.shape[1] <= 1 else table.contiguous()


def runs_kernels(tensor: Tensor) -> bool:
    """Whether a Triton kernel can read it: on a CUDA device, or anywhere under Triton's interpreter."""
    return tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
