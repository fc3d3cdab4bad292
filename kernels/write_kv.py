"""The Triton kernel that writes the keys and values of new tokens into token-major pages."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WARPS = 4
# Elements per program: 128 threads with one 128-bit access of half precision each to keys and to values.
_BLOCK = 1024


@triton.jit
def write_heads(
    source_ptr, pages_ptr, first_row, heads, present, place, PAGE: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """Copies ``[heads, DIM]``, whose heads begin at ``source_ptr``, to ``place`` in those heads' pages."""
    columns = tl.arange(0, BLOCK)[None, :]
    mask = present[:, None]
    if DIM != BLOCK:
        mask = mask & (columns < DIM)
    new = tl.load(source_ptr[:, None] + columns, mask=mask)
    rows = (first_row + heads) * PAGE + place
    tl.store(pages_ptr + rows[:, None] * DIM + columns, new, mask=mask)


@triton.jit(do_not_specialize=["num_slots"])
def write_kv_kernel(
    key_ptr,
    value_ptr,
    key_pages_ptr,
    value_pages_ptr,
    slots_ptr,
    num_slots,
    kv_heads,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    # A slot in no page leaves no head; Triton 3.7's interpreter cannot run "heads & (slot >= 0)".
    present = heads < tl.where((slot >= 0) & (slot < num_slots), kv_heads, 0)
    first_row, place = slot // PAGE * kv_heads, slot % PAGE
    key_ptr += token * key_token_stride + heads * key_head_stride
    value_ptr += token * value_token_stride + heads * value_head_stride
    write_heads(key_ptr, key_pages_ptr, first_row, heads, present, place, PAGE, HEAD_DIM, BLOCK_D)
    write_heads(value_ptr, value_pages_ptr, first_row, heads, present, place, PAGE, VALUE_DIM, BLOCK_V)


def heads_per_program(kv_heads: int, head_dim: int, value_dim: int) -> int:
    """Heads of one token that a program writes, a power of two."""
    block = triton.next_power_of_2(max(head_dim, value_dim))
    return min(triton.next_power_of_2(kv_heads), max(_BLOCK // block, 1))


def launch_write_kv(
    key: torch.Tensor,
    value: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    write_slots: torch.Tensor,
) -> None:
    """Writes ``[tokens, kv_heads, dim]`` at any strides of the first two dimensions; a slot in no page is skipped."""
    tokens, kv_heads, head_dim = key.shape
    num_pages, _, page_size, value_dim = value_pages.shape
    if tokens == 0:
        return
    heads = heads_per_program(kv_heads, head_dim, value_dim)
    write_kv_kernel[(tokens, triton.cdiv(kv_heads, heads))](
        key,
        value,
        key_pages,
        value_pages,
        write_slots,
        num_pages * page_size,
        kv_heads,
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        PAGE=page_size,
        HEAD_DIM=head_dim,
        VALUE_DIM=value_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_V=triton.next_power_of_2(value_dim),
        HEADS=heads,
        num_warps=WARPS,
    )
