"""Norms on CUDA, with the residual before them: allocation and one launch, with no wait for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast.kernels import add_norm as kernels
from ruprompt_fast.ops._checks import rows_contiguous

if TYPE_CHECKING:
    from ruprompt_fast.ops.add_norm import NormKind


def fits(x: Tensor) -> bool:
    """Whether a row is narrow enough for the kernel."""
    return bool(x.shape[-1] <= kernels.MOST_COLUMNS)


def add_norm_cuda(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, kind: NormKind
) -> tuple[Tensor, Tensor]:
    """The sum, or ``x`` itself where there is no residual, and its norm; of checked arguments, for rows that fit."""
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(out)
    if out.numel():
        with torch.cuda.device(x.get_device()):
            kernels.launch_add_norm(
                rows_contiguous(x.reshape(-1, width)),
                None if residual is None else rows_contiguous(residual.reshape(-1, width)),
                weight.contiguous(),
                None if bias is None else bias.contiguous(),
                eps,
                kind,
                None if total is None else total.view(-1, width),
                out.view(-1, width),
            )
    return (x if total is None else total), out
