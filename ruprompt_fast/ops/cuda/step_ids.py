"""A step's ids and positions on CUDA devices, in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.kernels import step_ids as kernels


def step_ids_cuda(ids: Tensor, positions: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`ruprompt_fast.ops.step_ids` of checked arguments."""
    out_ids, out_positions = (torch.empty_like(part, dtype=torch.int64) for part in (ids, positions))
    with torch.cuda.device(ids.get_device()):
        kernels.launch_step_ids(ids, positions, carried, out_ids, out_positions)
    return out_ids, out_positions
