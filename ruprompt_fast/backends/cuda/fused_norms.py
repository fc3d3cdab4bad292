"""The norms of a model, each in one kernel, which may add a residual first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ruprompt_fast.integration.activations import has_own_forward
from ruprompt_fast.integration.known_code import code_digest
from ruprompt_fast.ops.add_norm import NORM_DTYPES, NormKind, add_norm, norm


@dataclass(frozen=True)
class _KnownNorm:
    """A norm that transformers' families write in one way.

    Attributes:
        kind: what it computes.
        eps: the attribute that holds its epsilon.
        parts: methods that its forward calls, with their digests.
    """

    kind: NormKind
    eps: str
    parts: tuple[tuple[str, str], ...] = ()


# By the digest of the forward: Llama's, Mistral's and Qwen's, then Gemma's.
_RMS_NORMS = {
    "eebde652912f34f7": _KnownNorm("rms_norm", "variance_epsilon"),
    "5d9f07d20108fe0b": _KnownNorm("rms_norm_plus_one", "eps", (("_norm", "8c35a547bd773d8c"),)),
}


class FusedNorm:
    """The forward of a norm module, in one kernel.

    Where the kernel does not compute what the module does (under autocast, for gradients, in mixed dtypes) the module's
    own forward runs.

    Args:
        module: the module.
        kind: the norm that it is.
        eps: the attribute that holds its epsilon.
    """

    def __init__(self, module: nn.Module, kind: NormKind, eps: str) -> None:
        self.module: Any = module
        self._kind = kind
        self._eps = eps
        self._ahead: tuple[Tensor, Tensor] | None = None

    @property
    def saves_kernels(self) -> bool:
        """Whether the module's own forward takes several; torch has one for a layer norm."""
        return self._kind != "layer_norm"

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of ``x``; of the sum of :meth:`add_ahead`, what was computed with it."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is x:
            return ahead[1]
        if not self._takes(x):
            own_forward: Any = type(self.module).forward
            return cast(Tensor, own_forward(self.module, x))
        return norm(x, *self._arguments())

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``x + residual`` and the norm of that."""
        if not self._takes(x) or not self.is_plain() or x.shape != residual.shape or x.dtype is not residual.dtype:
            total = x + residual
            return total, self.module(total)
        return add_norm(x, residual, *self._arguments())

    def add_ahead(self, x: Tensor, residual: Tensor) -> Tensor:
        """``x + residual``, whose norm the module's next call will ask for: it is computed with the sum."""
        if not self._takes(x):
            return x + residual
        self._ahead = self.add(x, residual)
        return self._ahead[0]

    def is_plain(self) -> bool:
        """Whether calling the module does nothing else than this."""
        return vars(self.module).get("forward") is self and not has_call_hooks(self.module)

    def _arguments(self) -> tuple[Tensor, Tensor | None, float, NormKind]:
        module = self.module
        return module.weight, getattr(module, "bias", None), getattr(module, self._eps), self._kind

    def _takes(self, x: Tensor) -> bool:
        weight = self.module.weight
        wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        return (
            not wants_gradient
            and x.dtype in NORM_DTYPES
            and x.dtype is weight.dtype
            and x.device == weight.device
            and not torch.is_autocast_enabled(x.device.type)
        )


def fused_norm(module: nn.Module) -> FusedNorm | None:
    """The fused form of a module's forward; None for a module that is no norm, or none that is known."""
    if "forward" in vars(module):
        return None
    if type(module) is nn.LayerNorm:
        is_simple = module.weight is not None and module.weight.ndim == 1
        return FusedNorm(module, "layer_norm", "eps") if is_simple else None
    if not has_own_forward(module):
        return None
    known = _RMS_NORMS.get(code_digest(type(module).forward))
    if known is None or any(code_digest(getattr(type(module), name)) != digest for name, digest in known.parts):
        return None
    return FusedNorm(module, known.kind, known.eps)


def has_call_hooks(module: nn.Module) -> bool:
    """Whether a call of a module runs hooks."""
    has_any: Callable[[], bool] = _has_any_global_hook
    return bool(module._forward_hooks or module._forward_pre_hooks or has_any())
