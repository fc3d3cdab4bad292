"""The decoder blocks of a model with each residual connection and the norm after it in one kernel.

A block's submodules are called as its own forward calls them, in the same order with the same arguments; only the sums
and norms between them are computed together. So a block is fused only if its forward is, statement by statement, one
of those that are written here in the other way. The last sum of a block is computed with the first norm of the next
one, which finds it there when it is asked for the norm of that very tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ruprompt_fast.backends.cuda.fused_norms import FusedNorm, has_call_hooks
from ruprompt_fast.integration.activations import has_own_forward
from ruprompt_fast.integration.known_code import code_digest


@dataclass(frozen=True)
class _KnownBlock:
    """A forward that transformers' families write in one way.

    Attributes:
        compute: computes the same.
        first_norm: the norm that is called first.
        inner_norm: the norm of the sum within the block.
    """

    compute: Callable[..., Tensor | None]
    first_norm: str
    inner_norm: str


class FusedBlock:
    """The forward of a decoder block.

    Args:
        block: the block.
        known: how it is written.
        inner_norm: the norm of the sum within the block.

    Attributes:
        next_norm: the norm that is called next after the block, of its result; None if that is not known.
        next_block: the block that calls it, if it is not called by the model itself.
    """

    def __init__(self, block: nn.Module, known: _KnownBlock, inner_norm: FusedNorm) -> None:
        self.block: Any = block
        self.inner_norm = inner_norm
        self.next_norm: FusedNorm | None = None
        self.next_block: nn.Module | None = None
        self._compute = known.compute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns."""
        if not torch.is_grad_enabled():
            out = self._compute(self, *args, **kwargs)
            if out is not None:
                return out
        return type(self.block).forward(self.block, *args, **kwargs)

    def last_sum(self, x: Tensor, residual: Tensor) -> Tensor:
        """The block's result, computed with the norm that follows if nothing can come between the two."""
        following = self.next_norm
        between = [module for module in (self.block, self.next_block) if module is not None]
        if following is None or not following.is_plain() or any(map(has_call_hooks, between)):
            return x + residual
        return following.add_ahead(x, residual)


def fused_blocks(model: nn.Module, norms: dict[int, FusedNorm]) -> list[FusedBlock]:
    """The fused form of every block that is known.

    Args:
        model: the model.
        norms: its fused norms, by the identities of their modules.
    """
    fused = []
    for parent in model.modules():
        for blocks in parent._modules.values():
            if isinstance(blocks, nn.ModuleList):
                fused += _fused_in_a_row(parent, list(blocks), norms)
    return fused


def _fused_in_a_row(parent: nn.Module, blocks: list[nn.Module], norms: dict[int, FusedNorm]) -> list[FusedBlock]:
    """The fused form of blocks that a model calls one after the other, and then the norm after them."""
    fused: list[FusedBlock] = []
    for block in blocks:
        known = _KNOWN_BLOCKS.get(code_digest(type(block).forward)) if has_own_forward(block) else None
        inner = None if known is None else norms.get(id(getattr(block, known.inner_norm, None)))
        if known is None or inner is None:
            return []
        if fused:
            fused[-1].next_block, fused[-1].next_norm = block, norms.get(id(getattr(block, known.first_norm, None)))
        fused.append(FusedBlock(block, known, inner))
    if fused:
        final = next((parent._modules[name] for name in _FINAL_NORMS if name in parent._modules), None)
        fused[-1].next_norm = norms.get(id(final))
    return fused


def _gpt2(
    fused: FusedBlock,
    hidden_states: Tensor,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    use_cache: bool | None = False,
    **kwargs: Any,
) -> Tensor | None:
    """GPT-2's block without cross-attention; with it, nothing."""
    if encoder_hidden_states is not None:
        return None
    block = fused.block
    attended, _ = block.attn(
        block.ln_1(hidden_states),
        past_key_values=past_key_values,
        attention_mask=attention_mask,
        use_cache=use_cache,
        **kwargs,
    )
    total, normalized = fused.inner_norm.add(attended, hidden_states)
    return fused.last_sum(block.mlp(normalized), total)


def _llama(fused: FusedBlock, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """The block of Llama, Mistral, Qwen and the first Gemma; with arguments by position, nothing."""
    if args:
        return None
    block = fused.block
    attended, _ = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)
    total, normalized = fused.inner_norm.add(attended, hidden_states)
    return fused.last_sum(block.mlp(normalized), total)


def _gemma(fused: FusedBlock, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """The block of Gemma 2 and 3, with norms before and after; with arguments by position, nothing."""
    if args:
        return None
    block = fused.block
    attended, _ = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)
    total, normalized = fused.inner_norm.add(block.post_attention_layernorm(attended), hidden_states)
    return fused.last_sum(block.post_feedforward_layernorm(block.mlp(normalized)), total)


# By the digest of the forward.
_KNOWN_BLOCKS = {
    "b9abe9cac8a5f770": _KnownBlock(_gpt2, "ln_1", "ln_2"),
    "a5794787ab552590": _KnownBlock(_llama, "input_layernorm", "post_attention_layernorm"),
    "2ced44e0c0adeb2f": _KnownBlock(_gemma, "input_layernorm", "pre_feedforward_layernorm"),
}
_FINAL_NORMS = ("ln_f", "norm")
