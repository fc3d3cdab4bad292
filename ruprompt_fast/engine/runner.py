"""One forward pass over packed tokens of many sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ruprompt_fast.cache import KVPool
from ruprompt_fast.ops import AttentionPlan, paged_attention, write_kv
from ruprompt_fast.routing import AttentionSwitch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The tokens of one step, those of one sequence after those of another.

    Attributes:
        input_ids: int64 [N]; rows of prompts have ids from the embedding's ``first_prompt_id`` on.
        position_ids: int64 [N], of each token in its own sequence.
        rows: [num_rows, width], the prompt rows that ``input_ids`` name.
        attention: where the sequences' keys and values are and go.
        logits_at: int64 [S], the tokens whose logits are wanted.
    """

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    attention: AttentionPlan
    logits_at: Tensor


class ModelRunner:
    """Runs the transformers module itself, with its attention over the pages of a pool.

    Args:
        model: a decoder that passed :func:`~ruprompt_fast.routing.probe`, with ``embedding`` attached.
        embedding: the model's input embedding.
        pool: keys and values, one layer for each of the model's.
    """

    def __init__(self, model: PreTrainedModel, embedding: SplicedEmbedding, pool: KVPool) -> None:
        self._model = model
        self._embedding = embedding
        self._pool = pool
        self._switch = AttentionSwitch(model)

    def forward(self, batch: StepBatch) -> Tensor:
        """Write the step's keys and values, and return the logits [S, vocabulary] that are wanted."""
        attending = _PagedAttending(self._pool, batch.attention)
        model: Any = self._model
        with torch.inference_mode(), self._embedding.rows_for_call(batch.rows), self._switch.ours():
            output = model(
                input_ids=batch.input_ids.unsqueeze(0),
                position_ids=batch.position_ids.unsqueeze(0),
                use_cache=False,
                logits_to_keep=batch.logits_at,
                attending=attending,
            )
        return cast(Tensor, output.logits[0])


class _PagedAttending:
    """Attention of one step over the pages of a pool."""

    __slots__ = ("_plan", "_pool")

    def __init__(self, pool: KVPool, plan: AttentionPlan) -> None:
        self._pool = pool
        self._plan = plan

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        key_pages, value_pages = self._pool.keys[layer], self._pool.values[layer]
        write_kv(key, value, key_pages, value_pages, self._plan.write_slots)
        return paged_attention(
            query, key_pages, value_pages, self._plan, scaling=scaling, sliding_window=sliding_window, softcap=softcap
        )
