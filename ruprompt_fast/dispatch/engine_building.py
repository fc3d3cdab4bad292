"""Makes the engine of one model as it is now."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ruprompt_fast._C import Scheduler
from ruprompt_fast.backends import Backend, PreparedModel, RunnerLimits, backend_for
from ruprompt_fast.cache import PrefixCache, num_pages_of
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.dispatch.model_engine import ModelEngine, NoEngine
from ruprompt_fast.engine.batch import BatchBuilder
from ruprompt_fast.engine.engine import Engine
from ruprompt_fast.engine.loop import StepLoop
from ruprompt_fast.engine.prefixes import PromptPrefixes
from ruprompt_fast.errors import SettingError, UnsupportedModelError
from ruprompt_fast.integration import check_compatibility, context_length
from ruprompt_fast.integration.watch import Watch
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.stopping import unused_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.prompts import KVShape

_UNBOUNDED_CONTEXT = 8192
# A quarter leaves room for the weights of a second model and for everybody else on the machine.
_FREE_MEMORY_SHARE = 0.25


def build_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embedding: SplicedEmbedding,
    options: EngineOptions,
    loop: StepLoop,
    prepared: PreparedModel | None = None,
    *,
    thorough: bool = False,
) -> ModelEngine | NoEngine:
    """Check a model, set up an engine for it, and prepare its layers; or say why there is none.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        embedding: its input embedding.
        options: what the engine may take.
        loop: runs the engine's steps.
        prepared: the model as the engine before this one has prepared it; what has not changed is kept.
        thorough: keep nothing that nobody can tell to be unchanged.

    Raises:
        UnsupportedModelError: the model is to be quantized and cannot run on the engine.
        SettingError: the memory does not hold one page for every layer.
        FrozenWeightsError: something has written to a weight whose memory was given back.
    """
    try:
        return _built(model, tokenizer, embedding, options, loop, prepared, thorough)
    except UnsupportedModelError as error:
        if options.quantization is not None:
            asked = f'quantization="{options.quantization}"'
            raise UnsupportedModelError(
                f"{asked} needs the engine, and this model cannot run on it: {error} Leave {asked} out."
            ) from error
        return NoEngine(str(error), model, Watch(embedding))


def _built(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embedding: SplicedEmbedding,
    options: EngineOptions,
    loop: StepLoop,
    prepared: PreparedModel | None,
    thorough: bool,
) -> ModelEngine:
    """The engine; where there is none, the model has its own layers."""
    try:
        backend = backend_for(embedding.weight.device, embedding.weight.dtype)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UnsupportedModelError("weights of the model are offloaded, and brought in again at every call.")
        cards = sorted({str(parameter.device) for parameter in model.parameters() if parameter.is_cuda})
        if len(cards) > 1:
            raise UnsupportedModelError(f"the model's weights are on {', '.join(cards)}; the engine runs on one.")
        if prepared is not None:
            prepared = prepared.prepare_again(thorough=thorough)
        shapes = check_compatibility(model, embedding)
        if prepared is None:
            prepared = backend.prepare(model, options.quantization)
        banned_ids = unused_ids(model, tokenizer)
        # After the layers are prepared: that frees memory, and graphs record the layers that there are.
        engine = _engine(backend, model, tokenizer, embedding, options, shapes, banned_ids)
        vocab_size = model.config.get_text_config().vocab_size
        decoder, watch = TextDecoder(tokenizer, vocab_size), Watch(model, prepared.watched)
        return ModelEngine(engine, loop, prepared, watch, decoder, vocab_size, banned_ids)
    except BaseException:
        if prepared is not None:
            prepared.undo()
        raise


def _engine(
    backend: Backend,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embedding: SplicedEmbedding,
    options: EngineOptions,
    shapes: Sequence[KVShape],
    banned_ids: Sequence[int],
) -> Engine:
    positions = context_length(model.config) or _UNBOUNDED_CONTEXT
    page_bytes = backend.page_bytes(shapes)
    num_pages = _num_pages(backend, page_bytes, positions, options)
    # A sequence has one token more than the model has positions: the last of a full context is never run.
    limits = RunnerLimits(num_pages, options.max_step_tokens, options.max_batch_size, max_model_len=positions + 1)
    runner = backend.runner(model, embedding, shapes, limits, banned_ids)
    prefix_bytes = options.prefix_cache_bytes
    scheduler = Scheduler(
        page_size=backend.page_size,
        max_prefix_pages=-1 if prefix_bytes is None else min(prefix_bytes // page_bytes, num_pages),
        **asdict(limits),
    )
    cache = PrefixCache(scheduler, runner.pages, host_budget_bytes=options.host_cache_bytes)
    # Pages never outlive their engine, nor an engine what it was made from: any name of its own is the model's.
    identity = secrets.token_bytes(32)
    prefixes = PromptPrefixes(cache, runner.pages, identity, embedding.weight.dtype, tokenizer, embedding.first_row_id)
    return Engine(scheduler, cache, prefixes, BatchBuilder(embedding), runner, options.max_step_tokens)


def _num_pages(backend: Backend, page_bytes: int, positions: int, options: EngineOptions) -> int:
    """Pages for keys and values.

    Raises:
        SettingError: there is not so much memory, or a page does not fit.
    """
    budget, available = options.kv_cache_bytes, backend.available_bytes()
    if budget is None:
        enough = options.max_batch_size * num_pages_of(positions, backend.page_size) * page_bytes
        share = _FREE_MEMORY_SHARE if backend.shares_memory else options.gpu_memory_fraction
        budget = min(enough, int(available * share))
    elif budget > available:
        raise SettingError(f"kv_cache_bytes={budget} is more than the {available} bytes of memory that there are.")
    if budget < page_bytes:
        raise SettingError(
            f"kv_cache_bytes={budget}: that holds no page of keys and values; one page ({backend.page_size} tokens) "
            f"takes {page_bytes} bytes. Give a larger budget."
        )
    return budget // page_bytes
