"""Inputs of the splice tests: odd sizes, every dtype, tables and ids in every memory layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WIDTHS = [1, 6, 96, 768, 1537]
NUM_IDS = [0, 1, 17, 4097]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOKENS, PROMPT_ROWS, FIRST_PROMPT_ID = 101, 23, 120


class Case(NamedTuple):
    """The operator's arguments."""

    input_ids: Tensor
    token_weight: Tensor
    prompt_weight: Tensor
    first_prompt_id: int


def make_ids(count: int, dtype: torch.dtype = torch.int64, seed: int = 0) -> Tensor:
    """Ids of both tables in random order, the first and last of each among them as far as ``count`` allows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TOKENS, (count,), generator=generator)
    prompts = torch.randint(FIRST_PROMPT_ID, FIRST_PROMPT_ID + PROMPT_ROWS, (count,), generator=generator)
    ids = torch.where(torch.rand(count, generator=generator) < 0.4, prompts, tokens)
    edges = torch.tensor([FIRST_PROMPT_ID + PROMPT_ROWS - 1, 0, TOKENS - 1, FIRST_PROMPT_ID])[:count]
    ids[: len(edges)] = edges
    return ids.to(dtype)


def make_case(count: int, width: int, dtype: torch.dtype = torch.float32, ids: torch.dtype = torch.int64) -> Case:
    """A contiguous case of ``count`` ids."""
    generator = torch.Generator().manual_seed(width)
    tokens = torch.randn(TOKENS, width, generator=generator).to(dtype)
    prompts = torch.randn(PROMPT_ROWS, width, generator=generator).to(dtype)
    return Case(make_ids(count, ids), tokens, prompts, FIRST_PROMPT_ID)


def strided(table: Tensor, gap: int = 5) -> Tensor:
    """The same values with ``gap`` foreign elements after each row."""
    wide = torch.full((table.shape[0], table.shape[1] + gap), float("inf"), dtype=table.dtype)
    wide[:, : table.shape[1]] = table
    return wide[:, : table.shape[1]]
