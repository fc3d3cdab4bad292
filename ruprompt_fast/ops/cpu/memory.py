"""Memory of large outputs on the CPU, kept between calls."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ruprompt_fast import _C
from ruprompt_fast.ops._checks import DTYPE_NAMES

# From here on the C library hands memory back to the system whenever it is freed, and the next output of that size
# pays for its pages again: 14 of 17 ms for 48 MiB.
_POOLED_BYTES = 32 << 20


def empty_output(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialized contiguous CPU tensor; a large one from memory that an earlier one has given back."""
    if math.prod(shape) * dtype.itemsize <= _POOLED_BYTES:
        return torch.empty(shape, dtype=dtype)
    return from_dlpack(_C.pooled_tensor(shape, DTYPE_NAMES[dtype]))


def release_memory() -> int:
    """Gives the memory of large outputs that are no longer in use back to the system.

    At most the last two such outputs' memory is kept, and no more than 512 MiB.

    Returns:
        The number of bytes given back.
    """
    return _C.release_pool()
