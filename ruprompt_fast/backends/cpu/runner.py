"""One forward pass over packed tokens of many sequences, and the tokens that are chosen from it, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast.backends.cpu.kv_pool import KVPool
from ruprompt_fast.integration import AttentionCall, AttentionSwitch, refuse_position_bias
from ruprompt_fast.ops import write_kv
from ruprompt_fast.ops.cpu.paged_attention import AttentionTables, paged_attention_cpu
from ruprompt_fast.sampling.sampler import SampledOnHost, Sampler
from ruprompt_fast.sampling.sampling_rows import SamplingRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.backends.base import StepBatch
    from ruprompt_fast.embedding import SplicedEmbedding

_EXACT_TOKENS = 16


class CpuRunner:
    """Runs the transformers module itself, with its attention over the pages of a pool.

    Nothing of a batch is copied: the device reads the host's arrays.

    Args:
        model: a decoder that passed :func:`~ruprompt_fast.integration.check_compatibility`.
        embedding: the model's input embedding, attached to it.
        pages: the KV cache, with the model's layers.
        banned_ids: token ids that are never generated.
    """

    def __init__(
        self, model: PreTrainedModel, embedding: SplicedEmbedding, pages: KVPool, banned_ids: Sequence[int]
    ) -> None:
        self._model = model
        self._embedding = embedding
        self.pages = pages
        self._switch = AttentionSwitch(model)
        self._sampler = Sampler(model.config.get_text_config().vocab_size, banned_ids)

    def launch(
        self, batch: StepBatch, rows: Sequence[SamplingRow | None], in_flight: Sequence[int] | None = None
    ) -> SampledOnHost:
        """Compute a step; its tokens are chosen when they are asked for."""
        num_tokens = len(batch.input_ids)
        padding = padded_len(num_tokens) - num_tokens
        model: Any = self._model
        with torch.inference_mode(), self._embedding.rows_for_call(batch.rows), self._switch.ours():
            output = model(
                input_ids=_padded(batch.input_ids, padding),
                position_ids=_padded(batch.position_ids, padding),
                use_cache=False,
                logits_to_keep=torch.from_numpy(batch.logits_at),
                attending=_PagedAttending(self.pages, batch, padding),
            )
        return SampledOnHost(cast(Tensor, output.logits[0]), rows, self._sampler)

    def stats(self) -> None:
        """None: every step runs in the same way."""

    def close(self) -> None:
        """Nothing: pages take memory when they are written, and give it back with this object."""


def padded_len(num_tokens: int) -> int:
    """The size that a step of ``num_tokens`` is padded to.

    oneDNN generates code for every number of rows and keeps it: this takes 0.5 to 2 MB for each shape of a matrix, and
    0.5 to 10 ms the first time. So steps of 1 to 512 tokens run in 56 sizes, which costs 2 to 6% of the tokens per
    second where inputs of all lengths are read.
    """
    if num_tokens <= _EXACT_TOKENS:
        return num_tokens
    step = 1 << ((num_tokens - 1).bit_length() - 4)
    return -(-num_tokens // step) * step


def _padded(values: npt.NDArray[np.int64], padding: int) -> Tensor:
    """The values [num_tokens] and zeros after them, as one row [1, num_tokens + padding]."""
    row = torch.from_numpy(values).unsqueeze(0)
    return F.pad(row, (0, padding)) if padding else row


class _PagedAttending:
    """Attention of one step over the pages of a pool; the padding at its end attends to nothing."""

    __slots__ = ("_num_tokens", "_padding", "_pages", "_tables", "_write_slots")

    def __init__(self, pages: KVPool, batch: StepBatch, padding: int) -> None:
        self._pages = pages
        self._num_tokens = len(batch.input_ids)
        self._padding = padding
        self._tables = AttentionTables.of(batch.query_starts, batch.context_lens, batch.block_tables)
        self._write_slots = torch.from_numpy(batch.write_slots)

    def attend(self, call: AttentionCall) -> Tensor:
        refuse_position_bias(call)
        query, key, value = call.query, call.key, call.value
        if self._padding:
            query, key, value = (part[: self._num_tokens] for part in (query, key, value))
        key_pages, value_pages = self._pages.keys[call.layer], self._pages.values[call.layer]
        write_kv(key, value, key_pages, value_pages, self._write_slots)
        out = paged_attention_cpu(
            query,
            key_pages,
            value_pages,
            self._tables,
            scaling=call.scaling,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
        )
        return F.pad(out, (0, 0, 0, 0, 0, self._padding)) if self._padding else out
