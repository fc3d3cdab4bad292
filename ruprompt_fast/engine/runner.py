"""One forward pass over packed tokens of many sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast.backends.cpu.kv_pool import KVPool
from ruprompt_fast.integration import AttentionSwitch
from ruprompt_fast.ops import AttentionPlan, paged_attention, write_kv

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding

_EXACT_TOKENS = 16


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
        model: a decoder that passed :func:`~ruprompt_fast.integration.compatibility`, with ``embedding`` attached.
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
        num_tokens = len(batch.input_ids)
        padding = (0, padded_len(num_tokens) - num_tokens)
        attending = _PagedAttending(self._pool, batch.attention, num_tokens, padding[1])
        model: Any = self._model
        with torch.inference_mode(), self._embedding.rows_for_call(batch.rows), self._switch.ours():
            output = model(
                input_ids=F.pad(batch.input_ids, padding).unsqueeze(0),
                position_ids=F.pad(batch.position_ids, padding).unsqueeze(0),
                use_cache=False,
                logits_to_keep=batch.logits_at,
                attending=attending,
            )
        return cast(Tensor, output.logits[0])


def padded_len(num_tokens: int) -> int:
    """How many tokens a step of ``num_tokens`` is run as; the others are padding that nobody looks at.

    oneDNN generates code for every number of rows that it meets and keeps it: 0.5 to 2 MB for each shape of a matrix,
    and 0.5 to 10 ms when it first comes. Steps of 1 to 512 tokens are run in 56 sizes, at the price of 2 to 6% of the
    tokens per second where inputs of all lengths are read.
    """
    if num_tokens <= _EXACT_TOKENS:
        return num_tokens
    step = 1 << ((num_tokens - 1).bit_length() - 4)
    return -(-num_tokens // step) * step


class _PagedAttending:
    """Attention of one step over the pages of a pool; what stands behind ``num_tokens`` attends to nothing."""

    __slots__ = ("_num_tokens", "_padding", "_plan", "_pool")

    def __init__(self, pool: KVPool, plan: AttentionPlan, num_tokens: int, padding: int) -> None:
        self._pool = pool
        self._plan = plan
        self._num_tokens = num_tokens
        self._padding = padding

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
        if self._padding:
            query, key, value = (part[: self._num_tokens] for part in (query, key, value))
        write_kv(key, value, key_pages, value_pages, self._plan.write_slots)
        out = paged_attention(
            query, key_pages, value_pages, self._plan, scaling=scaling, sliding_window=sliding_window, softcap=softcap
        )
        return F.pad(out, (0, 0, 0, 0, 0, self._padding)) if self._padding else out
