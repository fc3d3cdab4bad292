"""From a plan of the scheduler to the tokens of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ruprompt_fast.backends.base import StepBatch
from ruprompt_fast.embedding import RowTable
from ruprompt_fast.sampling.history import TokenIds

if TYPE_CHECKING:
    from ruprompt_fast._C import Plan
    from ruprompt_fast.embedding import SplicedEmbedding


class TokenSource(Protocol):
    """Something whose tokens run through the model: a request's sequences, or a prompt's prefix."""

    @property
    def prompt_rows(self) -> Tensor | None:
        """[num_rows, width], the rows that ids from the first row's on are of; None if there are none."""
        ...

    def ids(self, sequence: int, start: int, stop: int) -> TokenIds:
        """The ids at positions ``start`` to ``stop``; row k of the prompt is ``first_row_id + k``."""
        ...

    def id_at(self, sequence: int, position: int) -> int:
        """One id of :meth:`ids`."""
        ...


SourceOf: TypeAlias = Callable[[int], TokenSource]
"""From a plan's id to the tokens that it is of."""


class BatchBuilder:
    """Packs the tokens that a plan asks for.

    A step gets a table of its own with the rows of the prompts it reads. Rows are in prefixes and in inputs only, so a
    step that decodes has none.

    Args:
        embedding: the model's input embedding.
    """

    def __init__(self, embedding: SplicedEmbedding) -> None:
        self._embedding = embedding
        self._no_rows = RowTable(embedding).rows()

    def build(self, plan: Plan, source_of: SourceOf) -> tuple[StepBatch, list[int]]:
        """The tokens of a step, and for every row of logits that it gives, the id of the request it belongs to.

        Args:
            plan: the scheduler's plan.
            source_of: from a plan's id, a request's or ``-1 - prefix_id``, to its tokens.
        """
        num_rows, num_tokens = plan.num_rows, plan.num_tokens
        starts = plan.query_starts[: num_rows + 1]
        contexts = plan.context_lens[:num_rows]
        ids = plan.request_ids[:num_rows].tolist()
        sequences = plan.sequence_indices[:num_rows].tolist()
        is_decode = num_tokens == num_rows  # one token of every sequence, the common step
        if is_decode:
            computed = contexts - 1
            positions = computed.astype(np.int64)
        else:
            query_lens = np.diff(starts)
            computed = contexts - query_lens
            positions = np.arange(num_tokens) + np.repeat(computed - starts[:-1], query_lens)
        input_ids, rows = self._tokens(ids, sequences, computed, contexts, source_of, is_decode)
        sampled = np.flatnonzero(plan.samples[:num_rows])
        batch = StepBatch(
            input_ids=input_ids,
            position_ids=positions,
            rows=rows,
            query_starts=starts,
            context_lens=contexts,
            block_tables=plan.block_tables[:num_rows],
            write_slots=plan.write_slots[:num_tokens],
            logits_at=starts[1:][sampled].astype(np.int64) - 1,
        )
        return batch, [ids[row] for row in sampled.tolist()]

    def _tokens(
        self,
        ids: list[int],
        sequences: list[int],
        computed: npt.NDArray[np.int32],
        contexts: npt.NDArray[np.int32],
        source_of: SourceOf,
        is_decode: bool,
    ) -> tuple[TokenIds, Tensor]:
        """The packed ids, and the prompt rows that they name."""
        starts, stops = computed.tolist(), contexts.tolist()
        if is_decode:
            single = [source_of(key).id_at(*place) for key, *place in zip(ids, sequences, starts, strict=True)]
            if max(single) < self._embedding.first_row_id:
                return np.array(single, dtype=np.int64), self._no_rows
        table = RowTable(self._embedding)
        parts = []
        for key, *place in zip(ids, sequences, starts, stops, strict=True):
            source = source_of(key)
            parts.append(table.place(source.ids(*place), source.prompt_rows))
        return np.concatenate(parts), table.rows()
