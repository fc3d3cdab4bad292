"""Attention over a shared prefix on the CPU: both parts by torch's flash attention, joined by their log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ruprompt_fast.ops.shared_prefix_attention import KeysValues, PackedSequences


def shared_prefix_attention_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefixes: Sequence[KeysValues],
    sequences: PackedSequences,
    scaling: float,
) -> Tensor:
    """:func:`ruprompt_fast.ops.shared_prefix_attention` of checked arguments, without a window or a soft cap.

    Keys and values are of one width.
    """
    group = query.shape[1] // key.shape[1]
    key, value, *flat = (
        part.repeat_interleave(group, 1) if group > 1 else part
        for part in (key, value, *(part for pair in prefixes for part in pair))
    )
    out: Tensor = _TwoParts.apply(sequences, scaling, query, key, value, *flat)  # type: ignore[no-untyped-call]
    return out


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _TwoParts(torch.autograd.Function):
    """Own part and prefix part of every sequence, joined; query, key, value [tokens, heads, D], prefixes likewise."""

    @staticmethod
    def forward(
        ctx: Any, sequences: PackedSequences, scaling: float, query: Tensor, key: Tensor, value: Tensor, *flat: Tensor
    ) -> Tensor:
        q, k, v = map(_heads_first, (query, key, value))
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        logsumexp = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for start, stop, _ in sequences.spans():
            part = slice(start, stop)
            own, own_sum = _flash(q[:, :, part], k[:, :, part], v[:, :, part], 0.0, True, scale=scaling)
            out[part] = own[0].transpose(0, 1)
            logsumexp[:, :, part] = own_sum
        for start, stop, prefix in sequences.prefix_runs():
            part = slice(start, stop)
            prefix_key, prefix_value = map(_heads_first, flat[2 * prefix : 2 * prefix + 2])
            other, other_sum = _flash(q[:, :, part], prefix_key, prefix_value, 0.0, False, scale=scaling)
            _join(out[part], logsumexp[:, :, part], other[0].transpose(0, 1), other_sum)
        ctx.save_for_backward(query, key, value, out, logsumexp, *flat)
        ctx.sequences, ctx.scaling = sequences, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logsumexp, *flat = ctx.saved_tensors
        q, k, v, o, grad = map(_heads_first, (query, key, value, out, grads[0]))
        new_like = partial(torch.empty_like, memory_format=torch.contiguous_format)
        grad_query, grad_key, grad_value = map(new_like, (query, key, value))

        def part_of_gradient(part: slice, keys: Tensor, values: Tensor, is_causal: bool) -> list[Tensor]:
            pieces = _flash_backward(
                grad[:, :, part],
                q[:, :, part],
                keys,
                values,
                o[:, :, part],
                logsumexp[:, :, part],
                0.0,
                is_causal,
                scale=ctx.scaling,
            )
            return [piece[0].transpose(0, 1) for piece in pieces]

        for start, stop, _ in ctx.sequences.spans():
            part = slice(start, stop)
            pieces = part_of_gradient(part, k[:, :, part], v[:, :, part], True)
            grad_query[part], grad_key[part], grad_value[part] = pieces
        flat_grads = [torch.zeros_like(part) for part in flat]
        for start, stop, prefix in ctx.sequences.prefix_runs():
            part = slice(start, stop)
            keys, values = map(_heads_first, flat[2 * prefix : 2 * prefix + 2])
            pieces = part_of_gradient(part, keys, values, False)
            grad_query[part] += pieces[0]
            flat_grads[2 * prefix] += pieces[1]
            flat_grads[2 * prefix + 1] += pieces[2]
        return None, None, grad_query, grad_key, grad_value, *flat_grads


def _heads_first(x: Tensor) -> Tensor:
    """[tokens, heads, D] as [1, heads, tokens, D], without a copy."""
    return x.transpose(0, 1).unsqueeze(0)


def _join(out: Tensor, logsumexp: Tensor, other: Tensor, other_sum: Tensor) -> None:
    """Join softmax averages [tokens, heads, D] over two sets of keys, in place; log-sum-exp [1, heads, tokens]."""
    total = torch.logaddexp(logsumexp, other_sum)
    weight, other_weight = (torch.exp(part - total)[0].T.unsqueeze(-1) for part in (logsumexp, other_sum))
    out.copy_(out * weight + other * other_weight)
    logsumexp.copy_(total)
