"""Steps of one model on a CUDA device: decoding as graphs, everything else as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ruprompt_fast.backends.base import RunnerLimits, RunnerStats, StepBatch
from ruprompt_fast.backends.cuda.ahead import RunAhead
from ruprompt_fast.backends.cuda.attending import Decoding, Prefilling
from ruprompt_fast.backends.cuda.buckets import Bucket, Buckets
from ruprompt_fast.backends.cuda.choices import Choices, LaunchedOnDevice
from ruprompt_fast.backends.cuda.device import Device, Launches
from ruprompt_fast.backends.cuda.graphs import DecodeGraphs
from ruprompt_fast.backends.cuda.kv_pool import DevicePages
from ruprompt_fast.backends.cuda.options import CudaOptions
from ruprompt_fast.backends.cuda.prefix_sharing import PrefixSharing
from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.backends.cuda.staging import Staging, StepInputs, StepShape
from ruprompt_fast.cache import num_pages_of
from ruprompt_fast.integration import Attending, AttentionSwitch
from ruprompt_fast.ops import step_ids
from ruprompt_fast.ops.paged_prefill import HostLens
from ruprompt_fast.ops.prefix_decode import SharedPrefixes
from ruprompt_fast.sampling.sampling_rows import SamplingRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding

_SET_UP_ROWS, _SET_UP_TOKENS = 3, 19


class CudaRunner:
    """Runs the transformers module itself, with its attention over the pages on the device.

    A step that decodes one token of each of its sequences replays the graph of its size: the model, the sampler, and
    the buffer of chosen tokens that the next step may read. The host waits once, for what was chosen.

    Args:
        model: a decoder that passed :func:`~ruprompt_fast.integration.check_compatibility`.
        embedding: the model's input embedding, attached to it.
        device: where the model is.
        pages: the KV cache, with the model's layers.
        limits: the sizes of what it is given.
        banned_ids: token ids that are never generated.
        options: what it does not decide by itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        embedding: SplicedEmbedding,
        device: Device,
        pages: DevicePages,
        limits: RunnerLimits,
        banned_ids: Sequence[int],
        options: CudaOptions,
    ) -> None:
        self._model = model
        self._embedding = embedding
        self._device = device
        self.pages = pages
        self._switch = AttentionSwitch(model)
        self._sampler = DeviceSampler(model.config.get_text_config().vocab_size, banned_ids, device.torch_device)
        self._buckets = Buckets(limits.max_sequences, num_pages_of(limits.max_model_len, pages.page_size))
        self._staging = Staging(device, self._largest_shape(limits), self._sampler)
        max_rows = self._buckets.largest.num_rows
        self._carried = torch.zeros(max_rows, dtype=torch.int32, device=device.torch_device)
        self._choices = Choices(device, self._sampler, max_rows, RunAhead(options.runs_ahead))
        self._no_rows = embedding.weight.new_empty((0, embedding.row_width))
        self._graphs = DecodeGraphs(device, self._decode_of, self._stage_rehearsal)
        self._prefix_sharing = PrefixSharing(model, pages, device.card, options.shares_prefixes)
        self._num_replayed = self._num_eager = self._num_ahead = 0
        refusal = _why_eager(model) if options.graphs else "graphs are switched off."
        if refusal is not None:
            self._graphs.refuse_all(refusal)
        elif device.captures_ahead:
            self._set_up(limits)

    def launch(
        self, batch: StepBatch, rows: Sequence[SamplingRow | None], in_flight: Sequence[int] | None = None
    ) -> LaunchedOnDevice:
        """Start a step.

        Raises:
            OutOfMemoryError: the device has no memory for it.
        """
        try:
            return self._launched(batch, rows, in_flight)
        except torch.OutOfMemoryError as error:
            message = (
                f"the memory does not hold a step of {len(batch.input_ids)} tokens in {len(batch.context_lens)} "
                "sequences. Load the model with a smaller max_step_tokens, max_batch_size, kv_cache_bytes or "
                f"gpu_memory_fraction. {error}"
            )
        # Not while the first error is handled: it holds the model's frames, and their tensors with them.
        raise torch.OutOfMemoryError(message)

    def _launched(
        self, batch: StepBatch, rows: Sequence[SamplingRow | None], in_flight: Sequence[int] | None
    ) -> LaunchedOnDevice:
        self._num_ahead += bool(in_flight and any(in_flight))
        with torch.inference_mode():
            logits, result = self._replayed(batch, rows, in_flight) or self._eager(batch, rows, in_flight)
            return self._choices.of(rows, logits, result, self._staging.is_for_device)

    def stats(self) -> RunnerStats:
        """Counts so far."""
        return RunnerStats(
            num_graphs=len(self._graphs),
            num_replayed_steps=self._num_replayed,
            num_eager_steps=self._num_eager,
            num_ahead_steps=self._num_ahead,
            num_host_rows=self._choices.num_host_rows,
            eager_reasons=self._graphs.reasons(),
        )

    def close(self) -> None:
        """Give back the memory of pages and graphs, which a card does not have twice."""
        self._graphs.clear()
        self.pages.close()

    def _replayed(
        self, batch: StepBatch, rows: Sequence[SamplingRow | None], in_flight: Sequence[int] | None
    ) -> tuple[Tensor, Tensor] | None:
        """Replay a graph; None for a step that has none."""
        num_rows = len(batch.context_lens)
        if not num_rows == len(batch.input_ids) == len(rows) or len(batch.rows):
            return None
        shared = self._prefix_sharing.of(batch)
        num_blocks = num_pages_of(int(batch.context_lens.max()), self.pages.page_size)
        bucket = self._buckets.of(num_rows, num_blocks, shared is not None)
        carried = None if bucket in self._graphs else self._carried.clone()  # capturing writes to it
        graph = self._graphs.of(bucket)
        if carried is not None:
            self._carried.copy_(carried)
        if graph is None:
            return None
        self._staging.stage(batch, rows, in_flight, self._shape_of(bucket), shared)
        graph.replay()
        self._num_replayed += 1
        logits, result = graph.outputs
        return logits, result

    def _eager(
        self, batch: StepBatch, rows: Sequence[SamplingRow | None], in_flight: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        num_blocks = num_pages_of(int(batch.context_lens.max()), self.pages.page_size)
        shape = self._shape(len(batch.input_ids), len(batch.context_lens), len(rows), num_blocks)
        self._staging.stage(batch, rows, in_flight, shape)
        inputs = self._staging.inputs(shape)
        self._num_eager += 1
        attending = Prefilling(self.pages, inputs, HostLens(batch.query_starts, batch.context_lens))
        return self._computed(inputs, batch.rows, attending, inputs.logits_at.long())

    def _computed(
        self, inputs: StepInputs, prompt_rows: Tensor, attending: Attending, logits_at: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The logits that are wanted, of all tokens for None, and the sampler's result for them."""
        ids, positions = step_ids(inputs.input_ids, inputs.position_ids, self._carried)
        model: Any = self._model
        with self._embedding.rows_for_call(prompt_rows), self._switch.ours():
            output = model(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=0 if logits_at is None else logits_at,
                attending=attending,
            )
        logits = cast(Tensor, output.logits[0])
        last_ids = ids if logits_at is None else ids[logits_at]
        result = self._sampler.launch(logits, inputs.settings, inputs.seen, last_ids)
        torch.clamp(result[:, 0], min=0, out=self._carried[: len(result)])
        return logits, result

    def _decode_of(self, bucket: Bucket) -> Launches:
        inputs = self._staging.inputs(self._shape_of(bucket))
        return partial(
            self._computed, inputs, self._no_rows, Decoding(self.pages, inputs, bucket.shares_prefixes), None
        )

    def _stage_rehearsal(self, bucket: Bucket) -> None:
        """Put inputs into a bucket's buffers."""
        count = bucket.num_rows
        alone = SharedPrefixes(np.array([0, count], dtype=np.int32), np.zeros(count, dtype=np.int32))
        batch = self._rehearsal_batch([1] * count)
        self._staging.stage(batch, [None] * count, None, self._shape_of(bucket), alone)

    def _rehearsal_batch(self, lens: Sequence[int]) -> StepBatch:
        """A step of new sequences on the trash page, where all attend to the tokens of the first one, the longest."""
        starts = np.cumsum([0, *lens]).astype(np.int32)
        slots = np.full(starts[-1], -1)
        slots[: lens[0]] = self.pages.trash_page * self.pages.page_size + np.arange(lens[0])
        return StepBatch(
            input_ids=np.arange(starts[-1]) % self._embedding.num_embeddings,
            position_ids=np.concatenate([np.arange(length) for length in lens]),
            rows=self._no_rows,
            query_starts=starts,
            context_lens=np.array(lens, dtype=np.int32),
            block_tables=np.full((len(lens), 1), self.pages.trash_page, dtype=np.int32),
            write_slots=slots,
            logits_at=starts[1:].astype(np.int64) - 1,
        )

    def _set_up(self, limits: RunnerLimits) -> None:
        """Capture the graphs, and have the kernels of other steps compiled."""
        lens = _set_up_lens(limits, self.pages.page_size)
        with torch.inference_mode():
            for bucket in self._buckets.largest_first():
                self._graphs.of(bucket)
            self.launch(self._rehearsal_batch(lens), [None] * len(lens))
        self._num_eager = self._num_replayed = 0

    def _shape_of(self, bucket: Bucket) -> StepShape:
        return self._shape(bucket.num_rows, bucket.num_rows, bucket.num_rows, bucket.num_blocks)

    def _shape(self, num_tokens: int, num_rows: int, num_logits: int, num_blocks: int) -> StepShape:
        words = self._sampler.words_per_row, self._sampler.seen_words
        return StepShape(num_tokens, num_rows, num_logits, num_blocks, *words)

    def _largest_shape(self, limits: RunnerLimits) -> StepShape:
        largest = self._buckets.largest
        # As many prefixes may be computed in a step as sequences run.
        return self._shape(
            max(limits.max_step_tokens, largest.num_rows), 2 * largest.num_rows, largest.num_rows, largest.num_blocks
        )


def _set_up_lens(limits: RunnerLimits, page_size: int) -> list[int]:
    """The sequences of a step that reads an input while others decode, as far as the limits and one page allow."""
    count = min(_SET_UP_ROWS, limits.max_sequences, limits.max_step_tokens)
    rest = min(_SET_UP_TOKENS, limits.max_step_tokens) - count
    return [1 + min(rest, limits.max_model_len - 2, page_size - 1)] + [1] * (count - 1)


def _why_eager(model: PreTrainedModel) -> str | None:
    """Why a model's decode steps cannot be captured, or None."""
    if not getattr(model, "_can_compile_fullgraph", True):
        return f"what {type(model).__name__} computes depends on its data, as a mixture of experts does."
    hooked = next((name for name, module in model.named_modules() if _has_hooks(module)), None)
    if hooked is not None:
        return f"a graph would not call the hooks of {hooked or type(model).__name__}."
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
