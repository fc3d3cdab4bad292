"""From a plan of the scheduler to the tensors of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.engine.runner import StepBatch
from ruprompt_fast.ops import AttentionPlan

if TYPE_CHECKING:
    from ruprompt_fast._C import Plan
    from ruprompt_fast.embedding import SplicedEmbedding

TokenIds = npt.NDArray[np.int64]


class TokenSource(Protocol):
    """Something whose tokens run through the model: a request's branches, or a prompt's prefix."""

    @property
    def prompt_rows(self) -> Tensor | None:
        """[num_rows, width], the rows that ids from the first row's on stand for; None if there are none."""
        ...

    def ids(self, branch: int, start: int, stop: int) -> TokenIds:
        """The ids at positions ``start`` to ``stop``; row k of the prompt is ``first_row_id + k``."""
        ...

    def id_at(self, branch: int, position: int) -> int:
        """One id of :meth:`ids`."""
        ...


SourceOf: TypeAlias = Callable[[int], TokenSource]
"""From a plan's id to the tokens behind it."""


class BatchBuilder:
    """Packs the tokens that a plan asks for.

    A step gets a table of its own with the rows of the prompts it reads. Rows stand in prefixes and in inputs only, so
    a step that decodes has none.

    Args:
        embedding: the model's input embedding.
        first_row_id: the id of row 0 in a source's ids.
    """

    def __init__(self, embedding: SplicedEmbedding, first_row_id: int) -> None:
        self._embedding = embedding
        self._first_row_id = first_row_id
        self._no_rows = embedding.weight.new_empty((0, embedding.row_width))

    def build(self, plan: Plan, source_of: SourceOf) -> tuple[StepBatch, list[int]]:
        """The tensors of a step, and for every row of logits that it gives, the id of the request it belongs to.

        Args:
            plan: the scheduler's plan.
            source_of: from a plan's id, a request's or ``-1 - prefix_id``, to its tokens.
        """
        num_rows, num_tokens = plan.num_rows, plan.num_tokens
        starts = plan.query_starts[: num_rows + 1]
        query_lens = np.diff(starts)
        contexts = plan.context_lens[:num_rows]
        computed = contexts - query_lens
        ids = plan.request_ids[:num_rows].tolist()
        branches = plan.sequence_indices[:num_rows].tolist()
        input_ids, rows = self._tokens(ids, branches, computed, contexts, source_of)
        positions = np.arange(num_tokens) + np.repeat(computed - starts[:-1], query_lens)
        sampled = np.flatnonzero(plan.samples[:num_rows])
        device = self._embedding.weight.device
        batch = StepBatch(
            input_ids=torch.from_numpy(input_ids).to(device),
            position_ids=torch.from_numpy(positions.astype(np.int64)).to(device),
            rows=rows,
            attention=AttentionPlan(
                query_starts=torch.from_numpy(starts).to(device),
                context_lens=torch.from_numpy(contexts).to(device),
                page_tables=torch.from_numpy(plan.page_tables[:num_rows]).to(device),
                write_slots=torch.from_numpy(plan.write_slots[:num_tokens]).to(device),
                max_query_len=int(query_lens.max()),
                max_context_len=int(contexts.max()),
            ),
            logits_at=torch.from_numpy(starts[1:][sampled].astype(np.int64) - 1).to(device),
        )
        return batch, [ids[row] for row in sampled.tolist()]

    def _tokens(
        self,
        ids: list[int],
        branches: list[int],
        computed: npt.NDArray[np.int32],
        contexts: npt.NDArray[np.int32],
        source_of: SourceOf,
    ) -> tuple[TokenIds, Tensor]:
        """The packed ids, and the prompt rows that they name."""
        starts, stops = computed.tolist(), contexts.tolist()
        if all(stop - start == 1 for start, stop in zip(starts, stops, strict=True)):  # the common step: all decode
            single = [source_of(key).id_at(*place) for key, *place in zip(ids, branches, starts, strict=True)]
            if max(single) < self._first_row_id:
                return np.array(single, dtype=np.int64), self._no_rows
        table = _RowTable(self._embedding.first_prompt_id, self._first_row_id)
        parts = []
        for key, *place in zip(ids, branches, starts, stops, strict=True):
            source = source_of(key)
            parts.append(table.place(source.ids(*place), source.prompt_rows))
        return np.concatenate(parts), table.rows(self._no_rows)


class _RowTable:
    """The prompt rows of one step, each prompt's once."""

    def __init__(self, first_prompt_id: int, first_row_id: int) -> None:
        self._first_prompt_id = first_prompt_id
        self._first_row_id = first_row_id
        self._starts: dict[int, int] = {}
        self._parts: list[Tensor] = []
        self._total = 0

    def place(self, ids: TokenIds, rows: Tensor | None) -> TokenIds:
        """The ids as they read in this table."""
        if rows is None or not (is_row := ids >= self._first_row_id).any():
            return ids
        if id(rows) not in self._starts:
            self._starts[id(rows)] = self._total
            self._parts.append(rows)
            self._total += rows.shape[0]
        shift = self._first_prompt_id + self._starts[id(rows)] - self._first_row_id
        return np.where(is_row, ids + shift, ids)

    def rows(self, empty: Tensor) -> Tensor:
        """The table, [num_rows, width] like ``empty``."""
        if not self._parts:
            return empty
        return torch.cat([part.to(empty.device, empty.dtype) for part in self._parts])
