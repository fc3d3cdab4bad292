"""Cases of attention over shared prefixes, and a varlen kernel in plain PyTorch in place of those that need a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from tolerances import ATTENTION_GRADIENT_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.ops import NO_PREFIX, PackedSequences, shared_prefix_attention_reference
from ruprompt_fast.ops.cuda.shared_prefix_attention import shared_prefix_attention_cuda
from ruprompt_fast.ops.cuda.varlen_attention import Packing, VarlenKernel

# Two prefixes that are computed in the batch, texts after them, and some with none.
MIXED = PackedSequences((20, 3, 9, 1, 12, 17, 33), (NO_PREFIX, NO_PREFIX, 0, 0, 1, NO_PREFIX, 0), 2)


class Case:
    """Random tensors; the prefixes are the first two sequences of the batch, and one more that is given."""

    def __init__(
        self,
        sequences: PackedSequences,
        heads: tuple[int, int] = (4, 2),
        dtype: torch.dtype = torch.float32,
        dim: int = 16,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(tokens: int, num_heads: int) -> Tensor:
            wide = torch.randn(tokens, num_heads, dim, generator=generator, dtype=torch.float64)
            return wide.to(device, dtype).requires_grad_()

        tokens = sequences.num_tokens
        self.sequences = sequences
        self.query, self.key, self.value = random(tokens, heads[0]), random(tokens, heads[1]), random(tokens, heads[1])
        self.given = (random(5, heads[1]), random(5, heads[1]))
        self.leaves = [self.query, self.key, self.value, *self.given]

    def run(self, function: Callable[..., Tensor], **settings: float | None) -> list[Tensor]:
        """The output and the gradients of a fixed function of it."""
        out = function(self.query, self.key, self.value, [self.given], self.sequences, scaling=0.25, **settings)
        weights = torch.arange(out.numel(), device=out.device).view_as(out).cos().to(out.dtype)
        grads = torch.autograd.grad((out * weights).sum(), self.leaves, allow_unused=True, materialize_grads=True)
        return [out.detach(), *grads]


def check(case: Case, function: Callable[..., Tensor], **settings: float | None) -> None:
    """Compare output and gradients with the reference's."""
    actual = case.run(function, **settings)
    expected = case.run(shared_prefix_attention_reference, **settings)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, ATTENTION_GRADIENT_ERROR)


def plain_kernel(takes_groups: bool) -> VarlenKernel:
    """A kernel that computes one sequence after the other."""
    return VarlenKernel("plain", takes_groups, _plain_forward, _plain_backward)


def gathered_by(kernel: VarlenKernel) -> Callable[..., Tensor]:
    """The operator as CUDA computes it, by this kernel."""

    def run(*tensors: Any, scaling: float, sliding_window: int | None = None) -> Tensor:
        return shared_prefix_attention_cuda(kernel, *tensors, scaling, sliding_window)

    return run


def _plain_forward(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, window: int | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs = []
    for queries, keys in _spans(packing):
        q, k, v = query[queries], key[keys], value[keys]
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        visible = (distance >= 0) & (distance < (len(k) if window is None else window))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scaling
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v))
    return torch.cat(outputs), (query.new_ones(3),)


def _plain_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    kept: Sequence[Tensor],
    packing: Packing,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, ...]:
    assert out.shape == query.shape
    assert [list(part.shape) for part in kept] == [[3]]
    leaves = [part.detach().requires_grad_() for part in (query, key, value)]
    with torch.enable_grad():
        again = _plain_forward(*leaves, packing, scaling, window)[0]
    return torch.autograd.grad(again, leaves, grad)


def _spans(packing: Packing) -> Iterator[tuple[slice, slice]]:
    queries, keys = packing.query_starts.tolist(), packing.key_starts.tolist()
    assert packing.most_queries == max(b - a for a, b in pairwise(queries))
    assert packing.most_keys == max(b - a for a, b in pairwise(keys))
    for i in range(len(queries) - 1):
        yield slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])
