"""Torch's kernels for causal attention of sequences that lie one after the other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ruprompt_fast.ops.cuda.cards import Card


@dataclass(frozen=True, eq=False)
class Packing:
    """Where sequences begin.

    Attributes:
        query_starts: int32 [sequences + 1], each sequence's first query.
        key_starts: int32 [sequences + 1], each sequence's first key.
        most_queries: of one sequence.
        most_keys: likewise.
    """

    query_starts: Tensor
    key_starts: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True)
class VarlenKernel:
    """Attention of packed sequences, causal from the bottom right: a sequence's last query sees all of its keys.

    Attributes:
        name: for messages.
        takes_groups: whether keys may have fewer heads than queries.
        forward: query [tokens, heads, D], key, value, packing, scaling, window -> output, and what the backward needs
            besides.
        backward: gradient, query, key, value, output, what the forward left, packing, scaling, window -> gradients of
            query, key and value.
    """

    name: str
    takes_groups: bool
    forward: Callable[[Tensor, Tensor, Tensor, Packing, float, int | None], tuple[Tensor, tuple[Tensor, ...]]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def varlen_kernel(query: Tensor, value: Tensor, sliding_window: int | None, card: Card) -> VarlenKernel | None:
    """The kernel for these tensors on a card; None where torch has none.

    Flash attention needs sm_80 and half precision; the memory-efficient kernel runs anywhere, float32 included, but its
    windows are not used here. ``torch.nn.attention.sdpa_kernel`` and the switches in ``torch.backends.cuda`` count.
    """
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    is_half = query.dtype is torch.float16 or (query.dtype is torch.bfloat16 and card.has_fast_dot)
    if head_dim % _ALIGNMENT or value_dim % _ALIGNMENT or not (is_half or query.dtype is torch.float32):
        return None
    fits_flash = head_dim == value_dim and head_dim <= (256 if card.capability in _WIDE_FLASH_CARDS else 192)
    if is_half and fits_flash and card.has_fast_dot and _flash_is_there():
        return FLASH
    if sliding_window is None and torch.backends.cuda.mem_efficient_sdp_enabled():
        return EFFICIENT
    return None


# The others have too little shared memory for the backward of heads wider than 192.
_WIDE_FLASH_CARDS = ((8, 0), (9, 0), (10, 0))
# Numbers of a head, of any dtype: the kernels load 16 bytes at a time.
_ALIGNMENT = 8
_CAUSAL_FROM_BOTTOM_RIGHT = 2


def _flash_is_there() -> bool:
    return torch.backends.cuda.is_flash_attention_available() and torch.backends.cuda.flash_sdp_enabled()


def _flash_window(window: int | None) -> dict[str, int]:
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


def _flash_forward(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, window: int | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    out, logsumexp, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        packing.query_starts,
        packing.key_starts,
        packing.most_queries,
        packing.most_keys,
        0.0,  # dropout
        True,  # causal
        False,  # debug mask
        scale=scaling,
        **_flash_window(window),
    )
    return out, (logsumexp, random_state, unused)


def _flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    kept: Sequence[Tensor],
    packing: Packing,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    logsumexp, random_state, unused = kept
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad,
        query,
        key,
        value,
        out,
        logsumexp,
        packing.query_starts,
        packing.key_starts,
        packing.most_queries,
        packing.most_keys,
        0.0,
        True,
        random_state,
        unused,
        scale=scaling,
        **_flash_window(window),
    )
    return grads


def _efficient_forward(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, window: int | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    out, logsumexp, seed, offset, _, _ = torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,  # bias
        packing.query_starts,
        packing.key_starts,
        packing.most_queries,
        packing.most_keys,
        0.0,  # dropout
        _CAUSAL_FROM_BOTTOM_RIGHT,
        True,  # the backward needs the log-sum-exp
        scale=scaling,
    )
    return out[0], (logsumexp, seed, offset)


def _efficient_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    kept: Sequence[Tensor],
    packing: Packing,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    logsumexp, seed, offset = kept
    grad_query, grad_key, grad_value, _ = torch.ops.aten._efficient_attention_backward(
        grad[None],
        query[None],
        key[None],
        value[None],
        None,
        out[None],
        packing.query_starts,
        packing.key_starts,
        packing.most_queries,
        packing.most_keys,
        logsumexp,
        0.0,
        seed,
        offset,
        _CAUSAL_FROM_BOTTOM_RIGHT,
        False,  # no gradient of a bias
        scale=scaling,
        num_splits_key=1,  # several add up in the order in which they end
    )
    return grad_query[0], grad_key[0], grad_value[0]


FLASH = VarlenKernel("flash attention", True, _flash_forward, _flash_backward)
EFFICIENT = VarlenKernel("memory-efficient attention", False, _efficient_forward, _efficient_backward)
