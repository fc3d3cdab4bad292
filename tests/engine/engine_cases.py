"""A tiny model on the engine, faults injected through the model itself, and what must hold afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from model_cases import TEMPLATES, make_prompt
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ruprompt_fast import FastPromptModel

PAGE_BYTES = 4096
"""Bytes of 16 tokens of the tiny Llama, a page of the CPU's: two layers, keys and values of one head of 16, float32."""

REQUESTS: list[tuple[Any, str | None]] = [
    ("привет, как дела", "short"),
    ("да", "around"),
    ({"question": "где ключ", "answer": "под ковром"}, "fields"),
    ("просто текст без подсказки", None),
    ("жили были", "bare"),
    ("ещё один пример, подлиннее остальных!", "around"),
]
INPUTS = [item for item, _ in REQUESTS]
NAMES = [name for _, name in REQUESTS]
ENDLESS = {"eos_token_id": None, "do_sample": False}


def serve(family: str = "llama", num_pages: int | None = None, **options: Any) -> FastPromptModel:
    """A tiny model with the prompts of ``TEMPLATES``, and memory for so many pages of 16 tokens."""
    base, tokenizer = tiny_model(family), tiny_tokenizer()
    for index in range(2):
        open_to_hooks(block(base, index))
    prompts = {
        name: make_prompt(template, base, tokenizer, seed) for seed, (name, template) in enumerate(TEMPLATES.items())
    }
    if num_pages is not None:
        options["kv_cache_bytes"] = num_pages * PAGE_BYTES
    return FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer, **options)


def counts(model: FastPromptModel) -> dict[str, int]:
    """The scheduler's counts."""
    engine = model.stats().engine
    assert engine is not None
    return engine.scheduler


def assert_nothing_left(model: FastPromptModel) -> None:
    """No request is in the engine, and every page is free, a cached text's or a prefix's."""
    model.check_integrity()
    found = counts(model)
    assert {name: found[name] for name in ("running", "waiting", "sequences", "computing_prefixes")} == {
        "running": 0,
        "waiting": 0,
        "sequences": 0,
        "computing_prefixes": 0,
    }
    assert found["free_pages"] + found["cached_pages"] + found["prefix_pages"] == found["num_pages"]


def block(model: PreTrainedModel, index: int = 1) -> nn.Module:
    """A layer of the decoder."""
    layers = next(
        module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList) and len(module)
    )
    return layers[index]


class Fault:
    """A pre-hook of a layer that raises at given calls, counted from 1; at all of them if none are given."""

    def __init__(self, error: BaseException | Callable[[], None], at: tuple[int, ...] = ()) -> None:
        self._error = error
        self._at = at
        self.calls = 0

    def __call__(self, module: nn.Module, arguments: Any) -> None:
        self.calls += 1
        if self._at and self.calls not in self._at:
            return
        if isinstance(self._error, BaseException):
            raise self._error
        self._error()


_Hook = Callable[[nn.Module, Any], Any]
_HOOKS: WeakKeyDictionary[nn.Module, list[_Hook]] = WeakKeyDictionary()


def _run_hooks(layer: nn.Module, arguments: Any) -> Any:
    for hook in tuple(_HOOKS[layer]):
        changed = hook(layer, arguments)
        arguments = arguments if changed is None else changed
    return arguments


def open_to_hooks(layer: nn.Module) -> None:
    """Give a layer one hook for good, which runs those of :func:`hooked`: another one would change the model."""
    _HOOKS[layer] = []
    layer.register_forward_pre_hook(_run_hooks)


@contextmanager
def hooked(model: FastPromptModel, hook: _Hook, index: int = 1) -> Iterator[None]:
    """Within the block, the hook runs before a layer of the model, which does not count as a change of it."""
    layer = block(model.model, index)
    if layer not in _HOOKS:
        open_to_hooks(layer)
        model.stats()
    _HOOKS[layer].append(hook)
    try:
        yield
    finally:
        _HOOKS[layer].remove(hook)


def poison(model: FastPromptModel, character: str) -> Callable[[nn.Module, Any], Any]:
    """A pre-hook of the first layer that makes every token of that character NaN."""
    (token,) = model.tokenizer(character, add_special_tokens=False)["input_ids"]
    row = model.model.get_input_embeddings().weight[token].detach().clone()

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden.masked_fill((hidden == row).all(-1, keepdim=True), torch.nan), *arguments[1:])

    return hook


def tokens_in_child(queue: Any) -> None:
    """What a process of its own generates; here, because a spawned process imports it by name."""
    queue.put(serve().generate("да", "short", max_new_tokens=4, **ENDLESS)[0].token_ids)


def num_orders(model: FastPromptModel) -> int:
    """How many orders wait for the step that runs: every request is one when it arrives."""
    return model._dispatcher._loop._orders.qsize()
