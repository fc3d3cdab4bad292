"""Attention over shared prefixes on CUDA: keys and values are gathered, then one of torch's varlen kernels runs.

A sequence's keys are those of its prefix and then its own, so the kernel's causal mask from the bottom right is the one
that is wanted. The gathered copies are made again in the backward: what is kept of a layer has every key once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.kernels import splice as kernels
from ruprompt_fast.ops._checks import runs_kernels
from ruprompt_fast.ops.cuda.varlen_attention import Packing, VarlenKernel

if TYPE_CHECKING:
    from ruprompt_fast.ops.shared_prefix_attention import KeysValues, PackedSequences


@dataclass(frozen=True, eq=False)
class GatheredKeys(Packing):
    """Where the gathered keys come from; the sources are the batch's own keys, then those of the given prefixes.

    Attributes:
        rows: int64 [gathered], the source of each.
        order: int64 [gathered], the gathered keys sorted by source, in rising order among equals.
        source_starts: int64 [sources + 1], where in ``order`` those of each source begin.
    """

    rows: Tensor
    order: Tensor
    source_starts: Tensor


def shared_prefix_attention_cuda(
    kernel: VarlenKernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Sequence[KeysValues],
    sequences: PackedSequences,
    scaling: float,
    sliding_window: int | None,
) -> Tensor:
    """:func:`ruprompt_fast.ops.shared_prefix_attention` of checked arguments by a varlen kernel."""
    keys = gathered_keys(sequences, tuple(len(prefix) for prefix, _ in given), query.device)
    flat = [part for pair in zip(*given, strict=True) for part in pair]  # all keys, then all values
    out: Tensor = _GatheredAttention.apply(  # type: ignore[no-untyped-call]
        kernel, keys, scaling, sliding_window, query, key, value, *flat
    )
    return out


@lru_cache(maxsize=8)
def gathered_keys(sequences: PackedSequences, given_lens: tuple[int, ...], device: torch.device) -> GatheredKeys:
    """The tables of a batch, made on the host and copied without a wait; kept, because all layers ask for them."""
    own = [np.arange(start, stop) for start, stop, _ in sequences.spans()]
    given_starts = accumulate(given_lens, initial=sequences.num_tokens)
    given = [np.arange(start, start + length) for start, length in zip(given_starts, given_lens, strict=False)]
    prefixes = [*own[: sequences.num_computed], *given]
    parts = [[prefixes[p], tokens] if p >= 0 else [tokens] for tokens, p in zip(own, sequences.prefix_of, strict=True)]
    key_lens = [sum(map(len, part)) for part in parts]
    rows = np.concatenate([piece for part in parts for piece in part])
    order = np.argsort(rows, kind="stable")
    tables = [
        rows,
        order,
        np.searchsorted(rows[order], np.arange(sequences.num_tokens + sum(given_lens) + 1)),
        np.cumsum([0, *sequences.lens]),
        np.cumsum([0, *key_lens]),
    ]
    padded = [np.pad(table, (0, len(table) % 2)) for table in tables]  # each begins at a multiple of 16 bytes
    whole = torch.from_numpy(np.concatenate(padded))
    if device.type == "cuda":
        whole = whole.pin_memory()  # or the copy would wait for the device
    whole = whole.to(device, non_blocking=True)
    views = whole.split(list(map(len, padded)))
    *of_keys, query_starts, key_starts = (view[: len(table)] for view, table in zip(views, tables, strict=True))
    return GatheredKeys(query_starts.int(), key_starts.int(), max(sequences.lens), max(key_lens), *of_keys)


class _GatheredAttention(torch.autograd.Function):
    """query [tokens, heads, D], key and value [tokens, kv_heads, D]; keys and then values of the given prefixes."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: VarlenKernel,
        keys: GatheredKeys,
        scaling: float,
        window: int | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *given: Tensor,
    ) -> Tensor:
        query, key, value = map(_heads_whole, (query, key, value))
        ctx.kernel, ctx.keys, ctx.scaling, ctx.window, ctx.num_given = kernel, keys, scaling, window, len(given)
        num_heads = _heads_of(kernel, query, key)
        k, v = (_gather(parts, keys, num_heads) for parts in _sources(key, value, given))
        out, kept = kernel.forward(query, k, v, keys, scaling, window)
        ctx.save_for_backward(query, key, value, out, *given, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *others = ctx.saved_tensors
        given, kept = others[: ctx.num_given], others[ctx.num_given :]
        kernel, keys = ctx.kernel, ctx.keys
        num_heads, sources = _heads_of(kernel, query, key), _sources(key, value, given)
        k, v = (_gather(parts, keys, num_heads) for parts in sources)
        grad_query, *grad_gathered = kernel.backward(grads[0], query, k, v, out, kept, keys, ctx.scaling, ctx.window)
        (grad_key, *given_keys), (grad_value, *given_values) = (
            _sum_by_source(grad, keys, key.shape[1]).split([len(part) for part in parts])
            for grad, parts in zip(grad_gathered, sources, strict=True)
        )
        return None, None, None, None, grad_query, grad_key, grad_value, *given_keys, *given_values


def _sources(key: Tensor, value: Tensor, given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    half = len(given) // 2
    return [key, *given[:half]], [value, *given[half:]]


def _heads_of(kernel: VarlenKernel, query: Tensor, key: Tensor) -> int:
    """How many heads the kernel wants of keys and values."""
    return key.shape[1] if kernel.takes_groups else query.shape[1]


def _gather(parts: Sequence[Tensor], keys: GatheredKeys, num_heads: int) -> Tensor:
    """[gathered, num_heads, D]."""
    source = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    gathered = source.index_select(0, keys.rows)
    return gathered if num_heads == gathered.shape[1] else gathered.repeat_interleave(num_heads // source.shape[1], 1)


def _sum_by_source(grad: Tensor, keys: GatheredKeys, num_heads: int) -> Tensor:
    """The transpose of :func:`_gather`, [sources, num_heads, D], summed in float32, always in the same order."""
    if grad.shape[1] != num_heads:
        grad = grad.unflatten(1, (num_heads, -1)).sum(2)
    rows = grad.flatten(1)
    out = rows.new_empty((len(keys.source_starts) - 1, rows.shape[1]))
    if runs_kernels(grad):
        with torch.cuda.device_of(grad):
            kernels.launch_prompt_grad(keys.order, keys.source_starts, rows, out)
    else:
        wide = torch.promote_types(grad.dtype, torch.float32)
        out.copy_(torch.zeros_like(out, dtype=wide).index_add_(0, keys.rows, rows.to(wide)))
    return out.view(-1, *grad.shape[1:])


def _heads_whole(x: Tensor) -> Tensor:
    """The kernels read a head's numbers side by side; tokens and heads may lie anywhere."""
    return x if x.stride(-1) == 1 else x.contiguous()
