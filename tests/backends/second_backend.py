"""A second backend, so that the tests see whether the engine knows anything of the first.

It computes on the CPU, but in the way of a device that replays recorded graphs: a page has 8 tokens and lies token by
token; a step's inputs are copied to buffers of a few sizes that stay where they are, and its logits lie in such a
buffer; padding writes to a page of its own and attends to nothing. Attention is plain PyTorch, no layer is replaced,
and tokens are chosen on the host. After staging a batch's arrays are overwritten, so that whoever relies on them, or on
views of the plan, fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from backends.second_pages import PAGE_SIZE, TokenMajorPages, page_bytes
from torch import Tensor
from transformers import PreTrainedModel

from ruprompt_fast.backends import Backend, PreparedModel, Quantization, Runner, RunnerLimits, StepBatch
from ruprompt_fast.cache import PagePool, num_pages_of
from ruprompt_fast.embedding import SplicedEmbedding
from ruprompt_fast.errors import UnsupportedModelError
from ruprompt_fast.integration import AttentionCall, AttentionSwitch, refuse_position_bias
from ruprompt_fast.prompts import KVShape
from ruprompt_fast.sampling.sampler import SampledOnHost, Sampler
from ruprompt_fast.sampling.sampling_rows import SamplingRow

_MEMORY = 1 << 29
_OVERWRITTEN = -(1 << 30)


class SecondBackend:
    """A :class:`~ruprompt_fast.backends.Backend` for the tests; see the module."""

    page_size = PAGE_SIZE
    shares_memory = True

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def page_bytes(self, shapes: Sequence[KVShape]) -> int:
        return page_bytes(shapes, self._dtype)

    def available_bytes(self) -> int:
        return _MEMORY

    def prepare(self, model: PreTrainedModel, quantization: Quantization | None) -> PreparedModel:
        if quantization is not None:
            raise UnsupportedModelError(f"this backend has no layers for quantization={quantization!r}.")
        return OwnLayers()

    def runner(
        self,
        model: PreTrainedModel,
        embedding: SplicedEmbedding,
        shapes: Sequence[KVShape],
        limits: RunnerLimits,
        banned_ids: Sequence[int],
    ) -> Runner:
        return SecondRunner(model, embedding, TokenMajorPages(shapes, limits.num_pages, self._dtype), banned_ids)


class OwnLayers:
    """A :class:`~ruprompt_fast.backends.PreparedModel` with the model's own layers."""

    watched: Sequence[Tensor] = ()

    def is_outdated(self) -> bool:
        return False

    def prepare_again(self, *, thorough: bool) -> PreparedModel:
        return self

    def undo(self) -> None:
        pass


class SecondRunner:
    """A :class:`~ruprompt_fast.backends.Runner` over static buffers."""

    def __init__(
        self, model: PreTrainedModel, embedding: SplicedEmbedding, pages: TokenMajorPages, banned_ids: Sequence[int]
    ) -> None:
        self._model = model
        self._embedding = embedding
        self._token_pages = pages
        self.pages: PagePool = pages
        self._switch = AttentionSwitch(model)
        self._sampler = Sampler(model.config.get_text_config().vocab_size, banned_ids)
        self._buffers: dict[tuple[int, int, int], StepBuffers] = {}
        self._logits: dict[int, Tensor] = {}

    def launch(
        self, batch: StepBatch, rows: Sequence[SamplingRow | None], in_flight: Sequence[int] | None = None
    ) -> SampledOnHost:
        return SampledOnHost(self._computed(batch), rows, self._sampler)

    def stats(self) -> None:
        return None

    def close(self) -> None:
        pass

    def _computed(self, batch: StepBatch) -> Tensor:
        num_logits, rows = len(batch.logits_at), batch.rows.clone()
        buffers = self._staged(batch)
        _overwrite(batch)
        for logits in self._logits.values():
            logits.fill_(torch.nan)
        model: Any = self._model
        with torch.inference_mode(), self._embedding.rows_for_call(rows), self._switch.ours():
            output = model(
                input_ids=buffers.input_ids[None],
                position_ids=buffers.position_ids[None],
                use_cache=False,
                logits_to_keep=buffers.logits_at,
                attending=_Attending(self._token_pages, buffers),
            )
        found: Tensor = output.logits[0]
        logits = self._logits.setdefault(len(found), torch.empty_like(found))
        return logits.copy_(found)[:num_logits]

    def _staged(self, batch: StepBatch) -> StepBuffers:
        num_blocks = num_pages_of(int(batch.context_lens.max()), PAGE_SIZE)
        size = (_bucket(len(batch.input_ids)), _bucket(len(batch.context_lens)), _bucket(num_blocks))
        buffers = self._buffers.get(size)
        if buffers is None:
            buffers = self._buffers[size] = StepBuffers(*size, trash_page=self._token_pages.num_pages)
        buffers.fill(batch)
        return buffers


class StepBuffers:
    """The inputs of steps of up to so many tokens, sequences, and pages of a sequence.

    Sequences that there are not have no tokens and an empty context. One more follows them, which has the padding as
    its tokens and an empty context too.
    """

    def __init__(self, num_tokens: int, num_sequences: int, num_blocks: int, trash_page: int) -> None:
        self._trash_page = trash_page
        self.input_ids = torch.zeros(num_tokens, dtype=torch.int64)
        self.position_ids = torch.zeros(num_tokens, dtype=torch.int64)
        self.write_slots = torch.zeros(num_tokens, dtype=torch.int64)
        self.query_starts = torch.zeros(num_sequences + 2, dtype=torch.int32)
        self.context_lens = torch.zeros(num_sequences + 1, dtype=torch.int32)
        self.block_tables = torch.zeros(num_sequences + 1, num_blocks, dtype=torch.int32)
        self.logits_at = torch.zeros(num_sequences, dtype=torch.int64)

    def fill(self, batch: StepBatch) -> None:
        """Take a step's inputs; nothing of the batch is needed afterwards."""
        _fill(self.input_ids, batch.input_ids, 0)
        _fill(self.position_ids, batch.position_ids, 0)
        _fill(self.write_slots, batch.write_slots, self._trash_page * PAGE_SIZE)
        _fill(self.query_starts, batch.query_starts, len(batch.input_ids))
        self.query_starts[-1] = len(self.input_ids)
        _fill(self.context_lens, batch.context_lens, 0)
        _fill(self.logits_at, batch.logits_at, 0)
        num_sequences, num_blocks = len(batch.context_lens), self.block_tables.shape[1]
        tables = torch.tensor(batch.block_tables[:, :num_blocks])
        self.block_tables.fill_(self._trash_page)
        self.block_tables[:num_sequences, : tables.shape[1]] = tables
        place = torch.arange(num_blocks) * PAGE_SIZE
        self.block_tables[place >= self.context_lens[:, None]] = self._trash_page  # what lies there is stale


class _Attending:
    """Attention of one step: every token over the gathered pages of its sequence, in float32."""

    def __init__(self, pages: TokenMajorPages, buffers: StepBuffers) -> None:
        self._pages = pages
        self._write_slots = buffers.write_slots
        token = torch.arange(len(buffers.input_ids))
        sequence = torch.searchsorted(buffers.query_starts[1:].long(), token, right=True)
        self._tables = buffers.block_tables[sequence].long()
        self._end = buffers.context_lens[sequence] - buffers.query_starts[sequence + 1] + token + 1

    def attend(self, call: AttentionCall) -> Tensor:
        refuse_position_bias(call)
        keys, values = self._pages.keys[call.layer], self._pages.values[call.layer]
        keys.flatten(0, 1)[self._write_slots] = call.key
        values.flatten(0, 1)[self._write_slots] = call.value
        key, value = (pages[self._tables].flatten(1, 2).float() for pages in (keys, values))
        seen = self._seen(key.shape[1], call.sliding_window)
        query = call.query.float().unflatten(1, (key.shape[2], -1)) * call.scaling
        scores = torch.einsum("tkgd,tckd->tkgc", query, key)
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        weights = weights.masked_fill(~seen.any(-1)[:, None, None, None], 0.0)
        value = value.masked_fill(~seen[:, :, None, None], 0.0)  # zero times what is not a number is none either
        return torch.einsum("tkgc,tckd->tkgd", weights, value).flatten(1, 2).to(call.query.dtype)

    def _seen(self, num_slots: int, sliding_window: int | None) -> Tensor:
        """Which token sees which slot of its sequence: bool [tokens, slots]."""
        distance = self._end[:, None] - 1 - torch.arange(num_slots)
        return (distance >= 0) & (distance < (sliding_window or num_slots))


def _bucket(count: int) -> int:
    """The next power of two."""
    return 1 << (max(1, count) - 1).bit_length()


def _fill(buffer: Tensor, values: np.ndarray[Any, Any], padding: int) -> None:
    buffer[: len(values)] = torch.tensor(values)
    buffer[len(values) :] = padding


def _overwrite(batch: StepBatch) -> None:
    """Leave nothing to those who would still read a batch's arrays; views of the plan are the scheduler's."""
    for array in (batch.input_ids, batch.position_ids, batch.logits_at):
        array.fill(_OVERWRITTEN)


MAKE: Callable[[torch.dtype], Backend] = SecondBackend  # as the table of backends has it, for the type checker
