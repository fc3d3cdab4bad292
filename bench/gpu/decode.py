"""Tokens per second while decoding, of ours and of all ways in which transformers generates."""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Callable
from typing import Any

import torch
from engine_models import all_words, text_of, word_tokenizer
from peers import Ours, Task, greedy
from transformers import GPT2LMHeadModel

from gpu.clock import Candidate, Timing, in_turns
from gpu.engines import measured_dtype, measured_gpt2, record_steps, served
from gpu.measurement import NotHere, Record, Setting
from ruprompt_fast import FastPromptModel, Prompt

NUM_INPUT_TOKENS, NUM_NEW_TOKENS, NUM_PEER_TOKENS = 548, 128, 24
TOY_INPUT_TOKENS, TOY_NEW_TOKENS, TOY_PEER_TOKENS = 10, 4, 3

MOST_CACHE_BYTES = 10 << 30
"""Enough for 64 contexts of the measured model; what is left is for the peers."""

Peer = Callable[[GPT2LMHeadModel, torch.Tensor, int], Any]


def ours(setting: Setting, prompts: dict[str, Prompt] | None = None, **options: Any) -> FastPromptModel:
    """The measured model on the CUDA engine."""
    options.setdefault("kv_cache_bytes", _cache_bytes(setting))
    return served(
        measured_gpt2(setting),
        "graphs",
        setting,
        dtype=measured_dtype(setting),
        tokenizer=word_tokenizer(),
        prompts=prompts,
        **options,
    )


def _cache_bytes(setting: Setting) -> int:
    if not setting.on_card:
        return 1 << 24
    free, _ = torch.cuda.mem_get_info()
    return min(MOST_CACHE_BYTES, int(0.4 * free))


class AsPeer(Ours):
    """A model that is loaded already, with the peers' method."""

    def __init__(self, model: FastPromptModel) -> None:
        self.model = model


@functools.cache
def our_model(setting: Setting) -> AsPeer:
    """One for all batches: its graphs are captured once."""
    return AsPeer(ours(setting, max_batch_size=4 if setting.toy else 64))


@functools.cache
def their_model(setting: Setting) -> GPT2LMHeadModel:
    """Transformers' own, with the library's attention."""
    return measured_gpt2(setting)


def dynamic(model: GPT2LMHeadModel, input_ids: torch.Tensor, num_new: int) -> None:
    """``generate`` as it comes."""
    model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=greedy(num_new))


def static(model: GPT2LMHeadModel, input_ids: torch.Tensor, num_new: int, compiled: bool = False) -> None:
    """``generate`` with a cache that is allocated once, and where asked for with a compiled forward.

    It keeps the largest cache so far, so that a shorter run after a longer one compiles nothing again.
    """
    config = greedy(num_new)
    config.cache_implementation, config.disable_compile = "static", not compiled
    model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config)


def continuous(model: GPT2LMHeadModel, input_ids: torch.Tensor, num_new: int) -> None:
    """Transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig

    results = model.generate_batch(
        inputs=input_ids.tolist(),
        generation_config=greedy(num_new),
        continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=0.3),
        progress_bar=False,
    )
    lengths = [len(result.generated_tokens) for result in results.values()]
    if len(lengths) != len(input_ids) or min(lengths) < num_new:
        raise RuntimeError(f"generate_batch made texts of {lengths} tokens; {num_new} were asked for")


PEERS: dict[str, Peer] = {"transformers": dynamic, "transformers, static cache": static}

_OUR_STEP_S: dict[int, float] = {}
"""Seconds of our step by batch, as far as this process has measured them."""


class Decoding:
    """N decoding steps around a context of 612: the time for 1 + N tokens less that for one.

    Args:
        batch: sequences.
        setting: the setting.
    """

    def __init__(self, batch: int, setting: Setting) -> None:
        self.batch = batch
        self.setting = setting
        self.num_input = TOY_INPUT_TOKENS if setting.toy else NUM_INPUT_TOKENS
        self.num_new = TOY_NEW_TOKENS if setting.toy else NUM_NEW_TOKENS
        self.num_peer = TOY_PEER_TOKENS if setting.toy else NUM_PEER_TOKENS

    def ours(self) -> Candidate:
        """Our engine. Its texts are the same in every round: it keeps their pages, so that reading them takes less."""
        words, generator, model = all_words(), random.Random(self.batch), our_model(self.setting)
        texts = [text_of(words, self.num_input, generator) for _ in range(self.batch)]
        short, long = ([Task(text, count) for text in texts] for count in (1, 1 + self.num_new))
        return Candidate(lambda _: model.generate(long), lambda _: model.generate(short), rounds=3, budget_s=4.0)

    def peer(self, peer: Peer) -> Candidate:
        """One of the ways of transformers, for fewer steps."""
        model = their_model(self.setting)
        ids = torch.randint(0, model.config.vocab_size, (self.batch, self.num_input), device=self.setting.device)
        return Candidate(
            lambda _: peer(model, ids, 1 + self.num_peer), lambda _: peer(model, ids, 1), rounds=2, budget_s=2.5
        )

    def record(self, timings: dict[str, Timing], record: Record) -> None:
        """Figures of what was timed so far."""
        steps = {name: self.num_new if name == "ours" else self.num_peer for name in timings}
        step_s = {name: timing.median / steps[name] for name, timing in timings.items() if timing.seconds}
        record({f"{name}, tokens/s": self.batch / seconds for name, seconds in step_s.items()})
        if "ours" in step_s:
            _OUR_STEP_S[self.batch] = step_s["ours"]
        ours = _OUR_STEP_S.get(self.batch)
        if ours is not None:
            record({f"times {name}": seconds / ours for name, seconds in step_s.items() if name != "ours"})


def decode(batch: int, setting: Setting, record: Record, bandwidth: float) -> None:
    """Ours and ``generate``, and how far ours is from what the memory allows.

    Args:
        batch: sequences.
        setting: the setting.
        record: takes the figures.
        bandwidth: bytes per second of a large copy.
    """
    decoding = Decoding(batch, setting)
    floor = byte_floor(their_model(setting), batch, decoding.num_input + decoding.num_new / 2) / bandwidth

    def note(timings: dict[str, Timing]) -> None:
        decoding.record(timings, record)
        if ours := _OUR_STEP_S.get(batch):
            record({"of the byte floor": floor / ours, "ms per step": 1e3 * ours})

    makers = {name: functools.partial(decoding.peer, peer) for name, peer in PEERS.items()}
    timings = in_turns({"ours": decoding.ours, **makers}, setting.device, note)
    record_errors(timings, record)
    record_steps(our_model(setting).model, record)


def decode_peer(name: str, peer: Peer, batch: int, setting: Setting, record: Record) -> None:
    """A peer that takes long to begin, beside what ours took before; compiling and capturing do not count."""
    if not setting.on_card:
        raise NotHere("takes too long on a CPU")
    decoding = Decoding(batch, setting)
    timings = in_turns({name: lambda: decoding.peer(peer)}, setting.device)
    decoding.record(timings, record)
    record_errors(timings, record)


def compiled(model: GPT2LMHeadModel, input_ids: torch.Tensor, num_new: int) -> None:
    """The best of transformers: a static cache and a compiled forward."""
    static(model, input_ids, num_new, compiled=True)


def byte_floor(model: GPT2LMHeadModel, batch: int, context: float) -> float:
    """Bytes that a step must read: all weights but the position table, and the keys and values of every context."""
    config, itemsize = model.config, next(model.parameters()).element_size()
    weights = sum(parameter.nbytes for parameter in model.parameters()) - model.transformer.wpe.weight.nbytes
    return weights + batch * context * config.n_layer * 2 * config.n_embd * itemsize


def record_errors(timings: dict[str, Timing], record: Record) -> None:
    """Name the peers that failed; raises if ours did, or all did."""
    errors = {name: timing.error for name, timing in timings.items() if timing.error}
    if errors:
        record(errors=errors)
    bad = errors.get("ours") or (len(errors) == len(timings) and next(iter(errors.values())))
    if bad:
        raise RuntimeError(bad)


def free_memory(setting: Setting) -> None:
    """Let the models of this module go."""
    our_model.cache_clear()
    their_model.cache_clear()
    gc.collect()
    if setting.on_card:
        torch.cuda.empty_cache()
