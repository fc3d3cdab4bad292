"""Every kernel at the shape that it is for: ruGPT-3 Large's layers, 64 sequences.

A case is checked against its reference in the stage ``tests`` and timed in the stage ``speed``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.measurement import Setting
from ruprompt_fast import ops

FIRST_PROMPT_ID = 1 << 20


@dataclass(frozen=True)
class Case:
    """A kernel with its inputs on the device.

    Attributes:
        run: launches it and returns what it computes.
        reference: the same in plain PyTorch.
        num_bytes: what it has to read and write at least.
    """

    run: Callable[[], Any]
    reference: Callable[[], Any]
    num_bytes: int


def _generator(setting: Setting) -> torch.Generator:
    return torch.Generator(setting.device).manual_seed(0)


def _dtype(setting: Setting) -> torch.dtype:
    return torch.float16 if setting.on_card else torch.float32


def _randn(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(shape, generator=_generator(setting), device=setting.device).to(_dtype(setting))


def copy(setting: Setting) -> Case:
    """A large copy of torch's: the bandwidth that all others are compared with."""
    size = (1 << 16) if setting.toy else (1 << 29)
    source = torch.ones(size, dtype=torch.float16, device=setting.device)
    target = torch.empty_like(source)
    return Case(lambda: target.copy_(source), lambda: source, 2 * source.nbytes)


def _splice_ids(setting: Setting, num_prompts: int, rows_per_sequence: int, batch: int, length: int) -> Tensor:
    ids = torch.randint(0, 50 if setting.toy else 50257, (batch, length), device=setting.device)
    prompt = torch.arange(batch, device=setting.device) % num_prompts * rows_per_sequence
    ids[:, :rows_per_sequence] = FIRST_PROMPT_ID + prompt[:, None] + torch.arange(rows_per_sequence, device=ids.device)
    return ids


def _splice_shape(setting: Setting) -> tuple[int, int, int]:
    return (4, 16, 32) if setting.toy else (64, 1024, 1536)


def splice_forward(setting: Setting) -> Case:
    """Rows of a batch with a 100-row prompt of its own in every sequence."""
    batch, length, width = _splice_shape(setting)
    rows = min(100, length // 2)
    ids = _splice_ids(setting, batch, rows, batch, length)
    tokens, prompts = _randn(setting, 50 if setting.toy else 50257, width), _randn(setting, batch * rows, width)
    return Case(
        lambda: ops.splice(ids, tokens, prompts, FIRST_PROMPT_ID),
        lambda: ops.splice_reference(ids, tokens, prompts, FIRST_PROMPT_ID),
        2 * ids.numel() * width * tokens.element_size() + ids.nbytes,
    )


def splice_backward(setting: Setting) -> Case:
    """The gradient of 8 prompts that fill all positions, so that all of the gradient is read."""
    batch, length, width = _splice_shape(setting)
    ids = _splice_ids(setting, 8, length, batch, length)
    grad, num_rows = _randn(setting, batch, length, width), 8 * length

    def reference() -> Tensor:
        rows = torch.zeros(num_rows, width, dtype=torch.float64, device=grad.device)
        return rows.index_add_(0, (ids - FIRST_PROMPT_ID).flatten(), grad.flatten(0, 1).double()).to(grad.dtype)

    return Case(
        lambda: torch.ops.ruprompt_fast.splice_prompt_grad(grad, ids, num_rows, FIRST_PROMPT_ID),
        reference,
        grad.nbytes + ids.nbytes + num_rows * width * grad.element_size(),
    )


@dataclass(frozen=True)
class _Heads:
    heads: int
    kv_heads: int
    head_dim: int


_LARGE = _Heads(16, 16, 96)
_GROUPED = _Heads(32, 8, 128)


@dataclass(frozen=True)
class _Cache:
    """Sequences of one context in pages that lie in random order."""

    key_pages: Tensor
    value_pages: Tensor
    block_tables: Tensor
    context_lens: Tensor


def _cache(setting: Setting, shape: _Heads, batch: int, context: int) -> _Cache:
    from ruprompt_fast.ops.token_major_pages import PAGE_SIZE, token_major_page_shapes

    blocks = -(-context // PAGE_SIZE)
    shapes = token_major_page_shapes(batch * blocks + 1, shape.kv_heads, shape.head_dim, shape.head_dim)
    order = torch.randperm(batch * blocks, device=setting.device, dtype=torch.int32)
    return _Cache(
        *(_randn(setting, *size) for size in shapes),
        order.view(batch, blocks),
        torch.full((batch,), context, dtype=torch.int32, device=setting.device),
    )


def _paged_decode(shape: _Heads, batch: int, context: int) -> Callable[[Setting], Case]:
    def case(setting: Setting) -> Case:
        rows, length = (2, 33) if setting.toy else (batch, context)
        cache = _cache(setting, shape, rows, length)
        query = _randn(setting, rows, shape.heads, shape.head_dim)
        arguments = (query, cache.key_pages, cache.value_pages, cache.block_tables, cache.context_lens)
        scaling = shape.head_dim**-0.5
        return Case(
            lambda: ops.paged_decode(*arguments, scaling=scaling),
            lambda: ops.paged_decode_reference(*arguments, scaling=scaling),
            2 * rows * length * shape.kv_heads * shape.head_dim * query.element_size() + 2 * query.nbytes,
        )

    return case


def _paged_prefill(shape: _Heads, num_sequences: int, num_new: int, context: int) -> Callable[[Setting], Case]:
    def case(setting: Setting) -> Case:
        sequences, new, length = (2, 3, 33) if setting.toy else (num_sequences, num_new, context)
        cache = _cache(setting, shape, sequences, length)
        query = _randn(setting, sequences * new, shape.heads, shape.head_dim)
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=setting.device) * new
        arguments = (query, cache.key_pages, cache.value_pages, starts, cache.context_lens, cache.block_tables)
        scaling = shape.head_dim**-0.5
        return Case(
            lambda: ops.paged_prefill(*arguments, scaling=scaling),
            lambda: ops.paged_prefill_reference(*arguments, scaling=scaling),
            2 * sequences * length * shape.kv_heads * shape.head_dim * query.element_size() + 2 * query.nbytes,
        )

    return case


def write_kv(setting: Setting) -> Case:
    """A prefill step's keys and values, views of one fused projection."""
    from ruprompt_fast.ops import token_major_pages

    num_tokens, heads, dim = (8, 2, 32) if setting.toy else (512, _LARGE.kv_heads, _LARGE.head_dim)
    pages = token_major_pages.token_major_page_shapes(max(num_tokens // 8, 2), heads, dim, dim)
    keys, values = (torch.zeros(size, dtype=_dtype(setting), device=setting.device) for size in pages)
    fused = _randn(setting, num_tokens, 3, heads, dim)
    num_slots = keys.shape[0] * keys.shape[2]
    slots = torch.randperm(num_slots, device=setting.device)[:num_tokens]
    slots[0] = -1

    def written(write: Callable[..., None]) -> Tensor:
        write(fused[:, 1], fused[:, 2], keys, values, slots)
        return torch.stack([keys, values])

    def reference() -> Tensor:
        keys.zero_()
        values.zero_()
        return written(token_major_pages.write_kv_token_major_reference)

    return Case(
        lambda: token_major_pages.write_kv_token_major(fused[:, 1], fused[:, 2], keys, values, slots) or (keys, values),
        lambda: (reference()[0], reference()[1]),
        4 * num_tokens * heads * dim * fused.element_size(),
    )


CASES: dict[str, Callable[[Setting], Case]] = {
    "splice, forward": splice_forward,
    "splice, backward": splice_backward,
    "write_kv, 512 tokens": write_kv,
    "paged_decode, batch 1": _paged_decode(_LARGE, 1, 612),
    "paged_decode, batch 16": _paged_decode(_LARGE, 16, 612),
    "paged_decode, batch 64": _paged_decode(_LARGE, 64, 612),
    "paged_decode, groups of 4, batch 64": _paged_decode(_GROUPED, 64, 612),
    "paged_prefill, 8 x 64 tokens of 164": _paged_prefill(_LARGE, 8, 64, 164),
    "paged_prefill, 512 tokens of 512": _paged_prefill(_LARGE, 1, 512, 512),
}
