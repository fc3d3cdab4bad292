"""The activations that may follow a matrix, each in one pass over its input."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor

Activation: TypeAlias = Literal["gelu_tanh", "gelu", "relu", "silu"]
"""What may follow the matrix: GELU by its tanh approximation, GELU by the error function, ReLU, SiLU."""


def activate(x: Tensor, activation: Activation | None) -> Tensor:
    """``x`` after the activation, in one pass over it; ``x`` itself for None."""
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "gelu":
        return F.gelu(x)
    if activation == "relu":
        return F.relu(x)
    return F.silu(x) if activation == "silu" else x
