"""Inputs of the tests of decoding after shared prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from ops.attention_cases import Heads
from ops.decode_cases import make_decode_case
from torch import Tensor

from ruprompt_fast.ops.token_major_pages import PAGE_SIZE


class Group(NamedTuple):
    """Rows that share a prefix: its tokens, and each row's context."""

    prefix: int
    contexts: tuple[int, ...]


class PrefixCase(NamedTuple):
    """The operator's tensors, and its keyword ``scaling``."""

    query: Tensor
    key_pages: Tensor
    value_pages: Tensor
    block_tables: Tensor
    context_lens: Tensor
    group_starts: Tensor
    prefix_lens: Tensor
    scaling: float

    def run(self, function: Any, **settings: Any) -> Tensor:
        return function(*self[:7], scaling=self.scaling, **settings)

    def run_alone(self, function: Any, **settings: Any) -> Tensor:
        """``paged_decode`` of the same rows, whose block tables have the shared pages as well."""
        return function(*self[:5], scaling=self.scaling, **settings)


def make_prefix_case(
    groups: Sequence[Group],
    shape: Heads | None = None,
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
    seed: int = 0,
) -> PrefixCase:
    """Random queries, keys and values for the groups' rows, and for ``padding`` rows after them."""
    contexts = [context for group in groups for context in group.contexts] + [0] * padding
    case = make_decode_case(contexts, shape, dtype, seed=seed)
    starts = torch.tensor([0, *[len(group.contexts) for group in groups]]).cumsum(0).int()
    prefix_lens = torch.zeros(len(contexts), dtype=torch.int32)
    for group, start, stop in zip(groups, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        prefix_lens[start:stop] = group.prefix
        case.block_tables[start:stop, : group.prefix // PAGE_SIZE] = case.block_tables[
            start : start + 1, : group.prefix // PAGE_SIZE
        ]
    return PrefixCase(*case[:5], starts, prefix_lens, case.scaling)
