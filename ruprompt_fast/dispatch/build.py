"""Building an engine for a model: the probe, the packed layers, the pool and what works on them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ruprompt_fast._C import Scheduler
from ruprompt_fast.backends.cpu.kv_pool import KVPool, LayerShape
from ruprompt_fast.backends.cpu.memory import available_bytes
from ruprompt_fast.backends.cpu.packing import PackedModel, pack_model
from ruprompt_fast.cache import PrefixCache
from ruprompt_fast.engine.batch import BatchBuilder
from ruprompt_fast.engine.engine import Engine
from ruprompt_fast.engine.prefixes import PromptPrefixes
from ruprompt_fast.engine.runner import ModelRunner
from ruprompt_fast.errors import SettingError, UnsupportedModelError, shown
from ruprompt_fast.integration import context_length, probe
from ruprompt_fast.integration.watch import Watch
from ruprompt_fast.ops import PAGE_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding

MAX_BATCH_SIZE = 1 << 14
MAX_STEP_TOKENS = 1 << 20
MAX_THREADS = 1 << 10
"""Largest sizes: a step makes arrays of so many entries before anything is asked for."""

_MOST_BYTES = 1 << 62
_UNBOUNDED_CONTEXT = 8192
# A quarter leaves room for the weights of a second model and for everybody else on the machine.
_FREE_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class EngineOptions:
    """How much an engine may take.

    Attributes:
        max_batch_size: sequences that run together at most.
        max_step_tokens: tokens of one step at most; longer inputs are computed in chunks between the others' tokens.
        kv_cache_bytes: memory for keys and values; None takes what ``max_batch_size`` full contexts need, but at most
            a quarter of the free memory.
        prefix_cache_bytes: of that, for the prefixes of prompts, all together; None sets no limit of its own. A request
            whose prefix alone is larger is refused.
        host_cache_bytes: host memory for prefixes that had to leave the pages.
        int8: quantize the frozen matrices to 8 bits (weights only).
        threads: how many threads compute; None takes the caller's ``torch.get_num_threads()``, and fewer for as long as
            other programs take processors.

    Raises:
        SettingError: a size that cannot work.
    """

    max_batch_size: int = 64
    max_step_tokens: int = 512
    kv_cache_bytes: int | None = None
    prefix_cache_bytes: int | None = None
    host_cache_bytes: int = 1 << 30
    int8: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        bounds = {
            "max_batch_size": (1, MAX_BATCH_SIZE),
            "max_step_tokens": (1, MAX_STEP_TOKENS),
            "kv_cache_bytes": (1, _MOST_BYTES),
            "prefix_cache_bytes": (0, _MOST_BYTES),
            "host_cache_bytes": (0, _MOST_BYTES),
            "threads": (1, MAX_THREADS),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is None and name in ("kv_cache_bytes", "prefix_cache_bytes", "threads"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise SettingError(
                    f"{name} must be an integer of at least {least} and at most {most}; found {shown(value)}."
                )
        if self.max_step_tokens < self.max_batch_size:
            raise SettingError(
                f"max_step_tokens={self.max_step_tokens} must be at least max_batch_size={self.max_batch_size}: every "
                "running sequence decodes one token in a step."
            )


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, the model's packed layers, and what both were made from."""

    engine: Engine
    packed: PackedModel
    watch: Watch

    def is_outdated(self) -> bool:
        """Whether anything that the model computes from has changed since."""
        return self.watch.sees_change() or self.packed.sees_write()


def build_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embedding: SplicedEmbedding,
    options: EngineOptions,
    packed: PackedModel | None = None,
    thorough: bool = False,
) -> BuiltEngine:
    """Probe the model, pack its layers, and set up an engine for it.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        embedding: its input embedding.
        options: what the engine may take.
        packed: the model as an engine before this one has packed it; what has not changed is not packed again.
        thorough: pack again what nobody can tell to be unchanged.

    Raises:
        UnsupportedModelError: the model cannot run on the engine; the message says why. It has its own layers then.
        SettingError: the memory does not hold one page for every layer.
        FrozenLayerError: see :meth:`PackedModel.packed_anew`.
    """
    try:
        if embedding.weight.device.type != "cpu":
            where = embedding.weight.device
            raise UnsupportedModelError(f"the engine's attention runs on CPUs; the model is on {where}.")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UnsupportedModelError("weights of the model are offloaded, and brought in anew at every call.")
        if packed is not None:
            packed = packed.packed_anew(thorough)
        layers = probe(model, embedding)
        engine = _engine(model, tokenizer, embedding, options, layers)
        if packed is None:
            packed = pack_model(model, int8=options.int8)
        return BuiltEngine(engine, packed, Watch(model, packed.released))
    except BaseException:
        if packed is not None:
            packed.unpack()
        raise


def _engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embedding: SplicedEmbedding,
    options: EngineOptions,
    layers: list[LayerShape],
) -> Engine:
    dtype = embedding.weight.dtype
    pool = KVPool(layers, _num_pages(model, layers, dtype, options), dtype, embedding.weight.device)
    # One more than the positions: the last token of a full context is never run.
    max_model_len = (context_length(model.config) or _UNBOUNDED_CONTEXT) + 1
    prefix_bytes = options.prefix_cache_bytes
    scheduler = Scheduler(
        num_pages=pool.num_pages,
        page_size=PAGE_SIZE,
        max_sequences=options.max_batch_size,
        max_model_len=max_model_len,
        max_prefix_pages=-1 if prefix_bytes is None else min(prefix_bytes // pool.page_bytes, pool.num_pages),
        max_step_tokens=options.max_step_tokens,
    )
    cache = PrefixCache(scheduler, pool, host_budget_bytes=options.host_cache_bytes)
    first_row_id = embedding.first_row_id
    # Pages never outlive their engine, nor an engine what it was made from: any name of its own is the model's.
    identity = secrets.token_bytes(32)
    return Engine(
        scheduler,
        pool,
        cache,
        PromptPrefixes(cache, pool, identity, dtype, tokenizer, first_row_id),
        BatchBuilder(embedding, first_row_id),
        ModelRunner(model, embedding, pool),
        options.max_step_tokens,
    )


def _num_pages(model: PreTrainedModel, layers: list[LayerShape], dtype: torch.dtype, options: EngineOptions) -> int:
    budget = options.kv_cache_bytes
    if budget is None:
        pages_per_sequence = -(-(context_length(model.config) or _UNBOUNDED_CONTEXT) // PAGE_SIZE)
        enough = options.max_batch_size * pages_per_sequence * KVPool.bytes_per_page(layers, dtype)
        budget = min(enough, int(available_bytes() * _FREE_MEMORY_SHARE))
    elif budget > (available := available_bytes()):
        raise SettingError(f"kv_cache_bytes={budget} is more than the {available} bytes of memory that there are.")
    try:
        return KVPool.pages_for_budget(layers, dtype, budget)
    except SettingError as error:
        raise SettingError(f"kv_cache_bytes={budget}: {error}") from error
