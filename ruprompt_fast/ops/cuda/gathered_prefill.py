"""Prefill where Triton has no tensor cores (sm_70 and sm_75): pages gathered for torch's kernels, which use them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ruprompt_fast.kernels import paged_prefill as kernels
from ruprompt_fast.ops.cuda.cards import Card
from ruprompt_fast.ops.cuda.paged_decode import paged_decode_cuda
from ruprompt_fast.ops.cuda.varlen_attention import Packing, VarlenKernel

if TYPE_CHECKING:
    from ruprompt_fast.ops.paged_prefill import HostLens, Lens

# What the gathered keys and values of some sequences may take at once; a sequence that is longer takes more.
MOST_GATHERED_BYTES = 256 << 20


class Run(NamedTuple):
    """Neighbouring sequences that are computed together.

    Attributes:
        first: the first sequence.
        stop: the one after the last.
        decodes: whether each has one query token, for which nothing is gathered.
    """

    first: int
    stop: int
    decodes: bool


def gathered_prefill(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    host_lens: HostLens,
    kernel: VarlenKernel,
    *,
    scaling: float,
    card: Card | None = None,
) -> Tensor:
    """:func:`ruprompt_fast.ops.paged_prefill` by a kernel for packed sequences; sequences that decode by ours.

    The gathered keys and values of a group of sequences are there at a time. Windows and soft caps are not for this.
    """
    out = query.new_zeros((*query.shape[:2], value_pages.shape[3]))
    bytes_of_token = query.shape[1] * (query.shape[2] + out.shape[2]) * query.element_size()
    for run in runs_of(host_lens, MOST_GATHERED_BYTES // bytes_of_token):
        rows, tokens = slice(run.first, run.stop), host_lens.span(run.first, run.stop)
        tables, lens = block_tables[rows], context_lens[rows]
        if run.decodes:
            out[tokens] = paged_decode_cuda(
                query[tokens], key_pages, value_pages, tables, lens, scaling=scaling, card=card
            )
        elif tokens.start < tokens.stop:
            starts = query_starts[run.first : run.stop + 1] - tokens.start
            packing = packing_of(starts, lens, host_lens.query_lens[rows], host_lens.context_lens[rows])
            num_keys = int(host_lens.context_lens[rows].sum())
            key, value = (
                gather_pages(pages, tables, packing, query.shape[1], num_keys) for pages in (key_pages, value_pages)
            )
            out[tokens], _ = kernel.forward(query[tokens], key, value, packing, scaling, None)
    return out


def runs_of(host_lens: HostLens, most_tokens: int) -> Iterator[Run]:
    """The sequences in order, cut where one that decodes meets one that does not, and where contexts get too long.

    Args:
        host_lens: of the sequences.
        most_tokens: the sum of the contexts that are gathered at once, unless one sequence alone has more.
    """
    first, decodes, gathered = 0, False, 0
    lens = zip(host_lens.query_lens.tolist(), host_lens.context_lens.tolist(), strict=True)
    for sequence, (queries, context) in enumerate(lens):
        full = not decodes and gathered + context > most_tokens
        if sequence > first and (full or (queries == 1) != decodes):
            yield Run(first, sequence, decodes)
            first, gathered = sequence, 0
        decodes = queries == 1
        gathered += context
    if len(host_lens.context_lens):
        yield Run(first, len(host_lens.context_lens), decodes)


def packing_of(query_starts: Tensor, context_lens: Tensor, host_query_lens: Lens, host_context_lens: Lens) -> Packing:
    """Where the queries and the gathered keys of some sequences begin, and the longest of both."""
    key_starts = F.pad(context_lens.cumsum(0, dtype=torch.int32), (1, 0))
    return Packing(query_starts, key_starts, int(host_query_lens.max()), int(host_context_lens.max()))


def gather_pages(pages: Tensor, block_tables: Tensor, packing: Packing, heads: int, num_tokens: int) -> Tensor:
    """The sequences' tokens ``[num_tokens, heads, dim]`` out of their pages, a head's once for its group.

    Args:
        pages: ``[pages, kv_heads, page_size, dim]``.
        block_tables: int32 ``[sequences, blocks]``.
        packing: where each sequence's tokens begin in the result.
        heads: a multiple of ``kv_heads``.
        num_tokens: of all sequences.
    """
    out = pages.new_empty((num_tokens, heads, pages.shape[3]))
    blocks = -(-packing.most_keys // pages.shape[2])
    kernels.launch_gather_pages(pages, block_tables, packing.key_starts, blocks, out)
    return out
