"""Copying pages on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.kernels import copy_pages as kernels


def copy_pages_cuda(pages: Tensor, copies: Tensor) -> None:
    """:func:`ruprompt_fast.ops.copy_pages_at_once` of checked arguments: one launch for all layers, no wait."""
    with torch.cuda.device(pages.get_device()):
        kernels.launch_copy_pages(pages, copies)
