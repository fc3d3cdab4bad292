"""What the engine is compared with: transformers' own eager model, on embeddings put together by hand."""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import pytest
import torch
from tiny_models import sharp_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.backends import BACKENDS
from ruprompt_fast.cache import num_pages_of
from ruprompt_fast.dispatch.engine_options import EngineOptions

P = ParamSpec("P")
T = TypeVar("T")

ROUTED = ["gpt2", "gpt_neox", "llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "opt"]
"""The families of tiny models that run on the engine."""

END = 2
"""The id that ends a text in these tests; by default the tiny tokenizer's padding would, too."""

TEMPLATES = {
    "leading": "<P*17>{text}",
    "page": "<P*16>{text}",
    "around": "<P*7>{text}<P*4>",
    "trailing": "{text}<P*5>",
    "inner": "<P*2>{text}? <P*31>ответ:<P>",
    "literal": "кто там <P*20>и {text}<P>",
}

# After their prompts these end on both sides of page borders, and beyond the sliding windows.
REQUESTS: list[tuple[str, str | None]] = [
    ("привет, как дела", "leading"),
    ("да", "around"),
    ("ещё один пример, подлиннее остальных! и ещё", None),
    ("привет, как дела", "page"),
    ("где ключ", "inner"),
    ("а", None),
    ("под ковром лежит", "literal"),
    ("под ковром лежит ключ", "trailing"),
    ("жили были старик со старухой", "leading"),
    ("а", "page"),
    ("как дела", "around"),
]
if os.environ.get("FEW_REQUESTS") == "1":  # under an interpreter, in which a step takes a hundred times as long
    del REQUESTS[3:]
TEXTS = [text for text, _ in REQUESTS]
NAMES = [name for _, name in REQUESTS]


def make_prompts(tokenizer: PreTrainedTokenizerFast, width: int, seed: int = 0) -> dict[str, Prompt]:
    """A prompt of random rows for every template."""
    generator = torch.Generator().manual_seed(seed)
    prompts = {}
    for name, template in TEMPLATES.items():
        format = PromptFormat(template, tokenizer=tokenizer)
        rows = torch.randn(format.prompt_length, width, generator=generator)
        prompts[name] = Prompt(format, TensorPromptProvider.from_pretrained(rows))
    return prompts


class Reference:
    """Transformers' eager forward and generate of one request at a time.

    Args:
        model: a model without prompts; a copy of it is used.
        tokenizer: its tokenizer.
        prompts: the prompts by name.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: dict[str, Prompt]) -> None:
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.unused = list(range(len(tokenizer), self.model.config.vocab_size))

    def embeds(self, text: str, name: str | None, new_ids: Sequence[int] = ()) -> Tensor:
        """[tokens, width]: the template's pieces one after another, and generated tokens."""
        prompt = None if name is None else self.prompts[name]
        template = "{text}" if prompt is None else prompt.format.template
        rows = None if prompt is None else prompt.rows().detach()
        parts, used = [], 0
        for piece in re.split(r"(<P(?:\*\d+)?>)", template):
            if match := re.fullmatch(r"<P(?:\*(\d+))?>", piece):
                count = int(match[1] or 1)
                parts.append(rows[used : used + count])
                used += count
            elif piece:
                parts.append(self._embed(self.tokenizer(piece.replace("{text}", text))["input_ids"]))
        return torch.cat([*parts, self._embed(list(new_ids))])

    def _embed(self, ids: list[int]) -> Tensor:
        with torch.no_grad():
            return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    def logits(self, text: str, name: str | None, new_ids: Sequence[int] = ()) -> Tensor:
        """After the input and after every generated token, [1 + new, vocabulary]."""
        embeds = self.embeds(text, name, new_ids)[None]
        with torch.no_grad():
            return self.model(inputs_embeds=embeds, use_cache=False).logits[0, -len(new_ids) - 1 :].float()

    def logprobs(self, text: str, name: str | None, new_ids: Sequence[int]) -> list[float]:
        """Of generated tokens, where nothing narrows the choice but the ids that no token has."""
        logits = self.logits(text, name, new_ids[:-1])
        logits[:, self.unused] = -torch.inf
        return logits.log_softmax(-1)[range(len(new_ids)), list(new_ids)].tolist()

    def generate(self, text: str, name: str | None, **settings: Any) -> list[list[int]]:
        """Token ids of all returned sequences, up to their end of text."""
        embeds = self.embeds(text, name)[None]
        ids = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            suppress_tokens=self.unused or None,
            eos_token_id=END,
            pad_token_id=self.tokenizer.pad_token_id,
            **{"do_sample": False, **settings},
        )
        end = settings.get("eos_token_id", END)
        return [row[: row.index(end) + 1] if end in row else row for row in ids.tolist()]


class Case:
    """A sharp tiny model with its prompts, its reference, and engines of any size over it."""

    def __init__(self, family: str) -> None:
        self.base = sharp_model(family)
        self.tokenizer = tiny_tokenizer()
        self.prompts = make_prompts(self.tokenizer, self.base.get_input_embeddings().embedding_dim)
        self.reference = Reference(self.base, self.tokenizer, self.prompts)
        self._page_bytes = 0

    def serve(self, num_pages: int | None = None, prefix_pages: int | None = None, **options: Any) -> FastPromptModel:
        """The model on an engine with the memory of so many pages of 16 tokens; idle prefixes may keep some of it."""
        options.setdefault("max_batch_size", min(16, options.get("max_step_tokens", 16)))
        if num_pages is not None:
            options["kv_cache_bytes"] = num_pages * self.page_bytes
        elif "kv_cache_bytes" not in options:
            options["kv_cache_bytes"] = 1 << 21
        if prefix_pages is not None:
            options["prefix_cache_bytes"] = prefix_pages * self.page_bytes
        model = copy.deepcopy(self.base)
        served = FastPromptModel(model, self.tokenizer, options=EngineOptions(**options))
        for name, prompt in self.prompts.items():
            served.add_prompt(name, prompt)
        assert served.stats().path == "engine", served.stats().reason
        return served

    @property
    def page_bytes(self) -> int:
        """Bytes of 16 tokens, on every backend."""
        if not self._page_bytes:
            found = counts(self.serve(kv_cache_bytes=1 << 20))
            self._page_bytes = found.page_bytes * 16 // found.page_size
        return self._page_bytes


def cpu_only(values: Sequence[Any], why: str) -> list[Any]:
    """Parameters that a test of every backend has on the CPU's alone."""
    return [pytest.param(value, marks=pytest.mark.cpu_backend(why)) for value in values]


def cached_by_backend(function: Callable[P, T]) -> Callable[P, T]:
    """``functools.cache`` for what holds an engine: apart for each backend that engines are made on."""
    caches: dict[Any, Callable[P, T]] = {}

    @functools.wraps(function)
    def cached(*args: P.args, **kwargs: P.kwargs) -> T:
        return caches.setdefault(BACKENDS["cpu"], functools.cache(function))(*args, **kwargs)

    return cached


def counts(served: FastPromptModel) -> Any:
    """The engine's counts."""
    engine = served.stats().engine
    assert engine is not None
    return engine


def num_pages(served: FastPromptModel, num_tokens: int) -> int:
    """Pages of its engine that so many tokens take."""
    return num_pages_of(num_tokens, counts(served).page_size)


def assert_at_rest(served: FastPromptModel) -> None:
    """Nothing runs, all is consistent, and every page is free or holds what may be used again."""
    served.check_integrity()
    found = counts(served).scheduler
    assert (found["running"], found["waiting"], found["sequences"]) == (0, 0, 0)
    assert found["free_pages"] + found["cached_pages"] + found["prefix_pages"] == found["num_pages"]
