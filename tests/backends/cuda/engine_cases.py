"""Engines on a rehearsed device, and what the CPU's engine makes of the same requests."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from engine.reference import NAMES, TEXTS, Case
from torch import Tensor, nn
from transformers import GenerationConfig

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends import BACKENDS, RunnerStats
from ruprompt_fast.backends.cuda import CudaBackend, sampler
from ruprompt_fast.backends.cuda.device import Graph, Launches
from ruprompt_fast.backends.cuda.options import CudaOptions
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice
from ruprompt_fast.ops.sample import Undecided

# What the device decides by itself, one kind for each of the first requests.
KINDS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 0, "top_p": 0.8},
    {"do_sample": True, "top_k": 0, "min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"do_sample": True, "top_k": 20, "top_p": 0.95, "temperature": 1.3, "repetition_penalty": 1.2},
]
NUM_NEW = 12

_ON_CPU = BACKENDS["cpu"]


class WatchedDevice(RehearsalDevice):
    """Knows which of its graphs are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: weakref.WeakSet[Any] = weakref.WeakSet()

    def capture(self, launches: Launches) -> Graph:
        graph = super().capture(launches)
        self.graphs.add(graph)
        return graph


@contextmanager
def engines_on(device: RehearsalDevice, options: CudaOptions | None = None) -> Iterator[None]:
    """Within the block, engines are made on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "cpu", lambda _, dtype: CudaBackend(device, dtype, options))
        yield


@functools.cache
def case(family: str = "llama") -> Case:
    """A model, before anything is done to it."""
    return Case(family)


def changed(change: Callable[[nn.Module], object], family: str = "llama") -> Case:
    """A :func:`case` of which every engine has a model that was changed before."""
    other = copy.copy(case(family))
    other.base = copy.deepcopy(other.base)
    change(other.base)
    return other


@functools.cache
def on_cpu() -> FastPromptModel:
    """The CPU's engine of the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "cpu", _ON_CPU)
        return case().serve()


def config(kind: int, max_new_tokens: int = NUM_NEW) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, **KINDS[kind])


@functools.cache
def endless(index: int, kind: int, seed: int) -> list[int]:
    """The tokens that a request gets on the CPU if nothing ends it."""
    (output,) = on_cpu().generate(TEXTS[index], NAMES[index], config(kind), seed=seed, eos_token_id=None)
    return output.token_ids


def ended(ids: Sequence[int], max_new_tokens: int, end: int | None) -> list[int]:
    """What is left of them if a token ends the text."""
    ids = list(ids[:max_new_tokens])
    return ids[: ids.index(end) + 1] if end in ids else ids


def mixed(model: FastPromptModel, num: int = len(KINDS), **settings: Any) -> list[list[int]]:
    """The tokens of a batch of all kinds."""
    configs = [config(kind) for kind in range(num)]
    settings = {"seed": list(range(num)), "eos_token_id": None, **settings}
    return [output.token_ids for output in model.generate(TEXTS[:num], NAMES[:num], configs, **settings)]


def expected(num: int = len(KINDS)) -> list[list[int]]:
    """What :func:`mixed` gives."""
    return [endless(index, index, index) for index in range(num)]


def stats(model: FastPromptModel) -> RunnerStats:
    engine = model.stats().engine
    assert engine is not None
    assert engine.runner is not None
    return engine.runner


@contextmanager
def disputes(every: int) -> Iterator[None]:
    """Within the block, the device is wrong about one in so many tokens, and knows that it might be."""
    sample = sampler.sample

    def disputed(logits: Tensor, settings: Tensor, seen: Tensor, last_ids: Tensor, **options: Any) -> Tensor:
        result = sample(logits, settings, seen, last_ids, **options)
        token, wrong = result[:, 0], (result[:, 0] * 7 + last_ids) % every == 0
        columns = [torch.where(wrong, (token + 1) % 50, token), result[:, 1] | wrong * int(Undecided.AMBIGUOUS)]
        return torch.stack([*(column.int() for column in columns), result[:, 2], result[:, 3]], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "sample", disputed)
        yield


@dataclass
class Trouble:
    """What happens in a :class:`Troubled` layer, at which of its calls from now on."""

    happens: Callable[[], object] | None = None
    at: int = 1
    calls: int = 0
    seen: list[weakref.ref[Tensor]] = field(default_factory=list)

    def come(self, hidden: Tensor) -> None:
        self.calls += 1
        if self.happens is not None and self.calls == self.at:
            mine = hidden + 1.0
            self.seen.append(weakref.ref(mine))
            self.happens()


TROUBLE = Trouble()  # not the layer's own: that would be a change of the model


class Troubled(nn.Module):
    """A layer in which something happens, without a hook, which no graph would call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        TROUBLE.come(hidden)
        return self.layer(hidden)


@contextmanager
def trouble(happens: Callable[[], object], at: int = 1) -> Iterator[list[weakref.ref[Tensor]]]:
    """Within the block, something happens at a step, counted from 1; a tensor that the step has made until then."""
    TROUBLE.happens, TROUBLE.at, TROUBLE.calls, TROUBLE.seen = happens, at, 0, []
    try:
        yield TROUBLE.seen
    finally:
        TROUBLE.happens = None


@functools.cache
def troubled() -> Case:
    """The case of a model with a :class:`Troubled` layer."""

    def put_in(model: Any) -> None:
        model.model.norm = Troubled(model.model.norm)

    return changed(put_in)


class Reading(nn.Module):
    """Reads a number on the host, which no graph can."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden) if hidden.abs().max().item() >= 0 else hidden
