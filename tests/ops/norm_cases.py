"""Inputs for norms."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.ops.add_norm import NormKind

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS: list[NormKind] = ["layer_norm", "rms_norm", "rms_norm_plus_one"]
WIDTHS = [1, 15, 16, 17, 96, 1536, 4097]


def make_case(
    shape: tuple[int, ...], dtype: torch.dtype, kind: NormKind
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float, NormKind]:
    """The arguments of ``add_norm``; the inputs' mean is not zero."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(shape, generator=generator).add(0.5).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=generator).to(dtype) for _ in range(2))
    return x, residual, weight, bias if kind == "layer_norm" else None, 1e-5, kind
