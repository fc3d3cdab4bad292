"""The Triton kernel that copies whole pages over others, all at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# 128 threads with four 128-bit accesses each.
BLOCK_BYTES = 8192
WARPS = 4


@triton.jit(do_not_specialize=["num_pages"])
def copy_pages_kernel(pages_ptr, copies_ptr, num_pages, page_bytes, BLOCK: tl.constexpr):
    pair = copies_ptr + tl.program_id(0) * 2
    source, destination = tl.load(pair).to(tl.int64), tl.load(pair + 1).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    layer = tl.program_id(2).to(tl.int64) * num_pages
    exist = (source >= 0) & (source < num_pages) & (destination >= 0) & (destination < num_pages)
    mask = columns < tl.where(exist, page_bytes, 0)
    page = tl.load(pages_ptr + (layer + source) * page_bytes + columns, mask=mask)
    tl.store(pages_ptr + (layer + destination) * page_bytes + columns, page, mask=mask)


def launch_copy_pages(pages: torch.Tensor, copies: torch.Tensor) -> None:
    """Copies ``pages`` ``[layers, pages, ...]`` by ``copies`` ``[copies, 2]``, both contiguous, in any order."""
    layers, num_pages = pages.shape[:2]
    if pages.numel() == 0 or copies.shape[0] == 0:
        return
    page_bytes = pages.stride(1) * pages.element_size()
    copy_pages_kernel[(copies.shape[0], triton.cdiv(page_bytes, BLOCK_BYTES), layers)](
        pages.view(torch.uint8), copies, num_pages, page_bytes, BLOCK=BLOCK_BYTES, num_warps=WARPS
    )
