"""The kernels over pages of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu.case import Case, dtype_of, randn
from gpu.measurement import Setting
from ruprompt_fast import ops
from ruprompt_fast.ops.token_major_pages import PAGE_SIZE, token_major_page_shapes


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
    blocks = -(-context // PAGE_SIZE)
    shapes = token_major_page_shapes(batch * blocks + 1, shape.kv_heads, shape.head_dim, shape.head_dim)
    order = torch.randperm(batch * blocks, device=setting.device, dtype=torch.int32)
    return _Cache(
        *(randn(setting, *size) for size in shapes),
        order.view(batch, blocks),
        torch.full((batch,), context, dtype=torch.int32, device=setting.device),
    )


def _paged_decode(shape: _Heads, batch: int, context: int) -> Callable[[Setting], Case]:
    def case(setting: Setting) -> Case:
        rows, length = (2, 33) if setting.toy else (batch, context)
        cache = _cache(setting, shape, rows, length)
        query = randn(setting, rows, shape.heads, shape.head_dim)
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
        query = randn(setting, sequences * new, shape.heads, shape.head_dim)
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=setting.device) * new
        arguments = (query, cache.key_pages, cache.value_pages, starts, cache.context_lens, cache.block_tables)
        scaling = shape.head_dim**-0.5
        host_lens = ops.HostLens(starts.cpu().numpy(), cache.context_lens.cpu().numpy())
        return Case(
            lambda: ops.paged_prefill(*arguments, scaling=scaling, host_lens=host_lens),
            lambda: ops.paged_prefill_reference(*arguments, scaling=scaling),
            2 * sequences * length * shape.kv_heads * shape.head_dim * query.element_size() + 2 * query.nbytes,
        )

    return case


def write_kv(setting: Setting) -> Case:
    """A prefill step's keys and values, views of one fused projection."""
    num_tokens, heads, dim = (8, 2, 32) if setting.toy else (512, _LARGE.kv_heads, _LARGE.head_dim)
    pages = ops.token_major_page_shapes(max(num_tokens // 8, 2), heads, dim, dim)
    keys, values = (torch.zeros(size, dtype=dtype_of(setting), device=setting.device) for size in pages)
    fused = randn(setting, num_tokens, 3, heads, dim)
    num_slots = keys.shape[0] * keys.shape[2]
    slots = torch.randperm(num_slots, device=setting.device)[:num_tokens]
    slots[0] = -1

    def written(write: Callable[..., None]) -> Tensor:
        write(fused[:, 1], fused[:, 2], keys, values, slots)
        return torch.stack([keys, values])

    def reference() -> Tensor:
        keys.zero_()
        values.zero_()
        return written(ops.write_kv_token_major_reference)

    return Case(
        lambda: ops.write_kv_token_major(fused[:, 1], fused[:, 2], keys, values, slots) or (keys, values),
        lambda: (reference()[0], reference()[1]),
        4 * num_tokens * heads * dim * fused.element_size(),
    )


def prefix_decode(setting: Setting) -> Case:
    """64 rows that share a prefix of 512 tokens, 100 of their own each."""
    rows, shared, own = (2, 32, 5) if setting.toy else (64, 512, 100)
    cache = _cache(setting, _LARGE, rows, shared + own)
    cache.block_tables[:, : shared // PAGE_SIZE] = cache.block_tables[:1, : shared // PAGE_SIZE].clone()
    query = randn(setting, rows, _LARGE.heads, _LARGE.head_dim)
    groups = torch.tensor([0, rows], dtype=torch.int32, device=setting.device)
    lens = torch.full((rows,), shared, dtype=torch.int32, device=setting.device)
    arguments = (query, cache.key_pages, cache.value_pages, cache.block_tables, cache.context_lens, groups, lens)
    scaling = _LARGE.head_dim**-0.5
    return Case(
        lambda: ops.prefix_decode(*arguments, scaling=scaling),
        lambda: ops.prefix_decode_reference(*arguments, scaling=scaling),
        2 * (shared + rows * own) * _LARGE.kv_heads * _LARGE.head_dim * query.element_size() + 2 * query.nbytes,
    )


def copy_pages(setting: Setting) -> Case:
    """Sixteen pages in all layers, which lie anywhere."""
    layers, pages, copies = (2, 8, 3) if setting.toy else (24, 128, 16)
    shape, _ = token_major_page_shapes(pages, _LARGE.kv_heads, _LARGE.head_dim, _LARGE.head_dim)
    pool = randn(setting, layers, *shape)
    before = pool.clone()
    pairs = torch.randperm(pages, device=setting.device)[: 2 * copies].view(-1, 2)

    def run() -> Tensor:
        ops.copy_pages_at_once(pool, pairs)
        return pool

    def reference() -> Tensor:
        ops.copy_pages_at_once_reference(before, pairs)
        return before

    return Case(run, reference, 2 * copies * layers * pool[0, 0].nbytes)


CASES: dict[str, Callable[[Setting], Case]] = {
    "write_kv, 512 tokens": write_kv,
    "paged_decode, batch 1": _paged_decode(_LARGE, 1, 612),
    "paged_decode, batch 16": _paged_decode(_LARGE, 16, 612),
    "paged_decode, batch 64": _paged_decode(_LARGE, 64, 612),
    "paged_decode, groups of 4, batch 64": _paged_decode(_GROUPED, 64, 612),
    "paged_prefill, 8 x 64 tokens of 164": _paged_prefill(_LARGE, 8, 64, 164),
    "paged_prefill, 512 tokens of 512": _paged_prefill(_LARGE, 1, 512, 512),
    "prefix_decode, 64 rows share 512 of 612": prefix_decode,
    "copy_pages, 16 pages of 24 layers": copy_pages,
}
