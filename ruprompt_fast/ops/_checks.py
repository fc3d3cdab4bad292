"""What the operators require of their arguments, and the memory layout that their kernels take."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ruprompt_fast.errors import SettingError, TensorArgumentError

# The names under which the compiled kernels know the element types.
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}

KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What keys and values in pages may be."""


def check_ids(input_ids: Tensor) -> None:
    """Raises :class:`TensorArgumentError` unless the ids are int32 or int64."""
    if input_ids.dtype is not torch.int64 and input_ids.dtype is not torch.int32:
        raise TensorArgumentError(f"input_ids must be int32 or int64, not {input_ids.dtype}")


def check_query(query: Tensor, tokens: int, pages: Tensor, head_dim: int) -> None:
    """Raises :class:`TensorArgumentError` unless ``query`` asks ``[pages, kv_heads, ...]`` with this many tokens."""
    kv_heads, shape = pages.shape[1], query.shape
    if len(shape) != 3 or shape[0] != tokens or shape[2] != head_dim or shape[1] == 0 or shape[1] % kv_heads:
        raise TensorArgumentError(
            f"query must be [{tokens}, a multiple of {kv_heads} heads, {head_dim}] for this plan and these pages, "
            f"not {list(shape)}"
        )
    if query.dtype is not pages.dtype or query.device != pages.device:
        raise TensorArgumentError(
            f"query must be {pages.dtype} on {pages.device}, as the pages are, not {query.dtype} on {query.device}"
        )
    if query.stride()[2] != 1 and head_dim > 1:
        raise TensorArgumentError(
            f"the last dimension of query must be contiguous, but its strides are {query.stride()}"
        )


def check_mask(sliding_window: int | None, softcap: float | None) -> None:
    """Raises :class:`SettingError` unless both are above zero or None."""
    if sliding_window is not None and sliding_window < 1:
        raise SettingError(f"sliding_window is {sliding_window}; it must be above zero, or None")
    if softcap is not None and not softcap > 0:
        raise SettingError(f"softcap is {softcap}; it must be above zero, or None")


def rows_contiguous(table: Tensor) -> Tensor:
    """``table`` itself if the elements of each row lie together, else a copy in which they do."""
    # All strides cost less to ask for than one: the kernel of a small input is not longer than these questions.
    return table if table.stride()[1] == 1 or table.shape[1] <= 1 else table.contiguous()


def runs_kernels(tensor: Tensor) -> bool:
    """Whether a Triton kernel can read it: on a CUDA device, or anywhere under Triton's interpreter."""
    return tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
