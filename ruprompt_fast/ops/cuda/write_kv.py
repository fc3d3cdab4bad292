"""Writing keys and values into token-major pages on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.kernels import write_kv as kernels


def write_kv_cuda(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    """:func:`ruprompt_fast.ops.write_kv_token_major` of checked arguments: one launch, no copy, no wait."""
    with torch.cuda.device(key.get_device()):
        kernels.launch_write_kv(key, value, key_pages, value_pages, write_slots)
