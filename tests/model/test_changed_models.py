"""A served model that is changed answers as one that is loaded after the change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from model.change_cases import (
    BIASES,
    CODE,
    CONVERSIONS,
    PACKED,
    WEIGHTS,
    Adapter,
    Change,
    attention,
    find,
    inject,
    norm,
    projection,
)
from model_cases import TEMPLATES, make_prompt
from tiny_models import sharp_model, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel

from ruprompt_fast import FastPromptModel, Prompt, errors
from ruprompt_fast.ops.packed_linear import can_pack

FAMILIES = ["gpt2", "llama", "gpt_neox", "opt", "gemma3"]
TEXT = "мороз и солнце, день чудесный, ещё ты дремлешь"  # more than two pages, so that its pages are shared
REQUESTS: list[tuple[Any, str | None]] = [
    (TEXT, None),
    (TEXT, "around"),
    ({"question": TEXT, "answer": "да"}, "fields"),
    ("привет", "bare"),
]
INPUTS, NAMES = [item for item, _ in REQUESTS], [name for _, name in REQUESTS]
LABELS = ["а", "б", "в", "да", "нет"]
DTYPES = [*(["bfloat16"] if can_pack(torch.bfloat16, torch.device("cpu")) else []), "int8"]
# A page of the tiny models; one prefix is on the device at a time, the others' copies in host memory.
ROOM = {"prefix_cache_bytes": 1 << 14}

Answers = tuple[list[list[int]], list[float]]


def prompts_for(model: PreTrainedModel) -> dict[str, Prompt]:
    tokenizer = tiny_tokenizer()
    return {
        name: make_prompt(template, model, tokenizer, seed) for seed, (name, template) in enumerate(TEMPLATES.items())
    }


def serve(model: PreTrainedModel, prompts: dict[str, Prompt], int8: bool = False) -> FastPromptModel:
    dtype = "int8" if int8 else None
    return FastPromptModel.from_pretrained(model, prompts=prompts, tokenizer=tiny_tokenizer(), dtype=dtype, **ROOM)


def answers(served: FastPromptModel) -> Answers:
    """Greedy ids, and the probabilities of labels."""
    outputs = served.generate(INPUTS, NAMES, max_new_tokens=4, eos_token_id=None, do_sample=False)
    classes = served.classify(INPUTS, NAMES, labels=LABELS)
    return [output.token_ids for output in outputs], [p for each in classes for p in each.probabilities.values()]


def check_same(found: Answers, expected: Answers) -> None:
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-6)


def check_follows(served: FastPromptModel, prompts: dict[str, Prompt], change: Change, int8: bool = False) -> None:
    """Caches are warm before the change; the answers differ after it, and are those of the model loaded anew."""
    before = answers(served)
    check_same(answers(served), before)
    change(served.model)
    after = answers(served)
    assert after[1] != pytest.approx(before[1], rel=1e-3)
    check_same(answers(served), after)
    check_same(after, answers(serve(served.detach(), prompts, int8)))


def cases(changes: dict[str, Change]) -> Any:
    return pytest.mark.parametrize("change", changes.values(), ids=[name.replace(" ", "_") for name in changes])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cases(WEIGHTS)
def test_weights_that_are_not_packed(family: str, change: Change) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    check_follows(serve(model, prompts), prompts, change)


@cases(PACKED)
def test_packed_weights(family: str, change: Change) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    check_follows(serve(model, prompts), prompts, change)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@cases(PACKED)
def test_packed_weights_of_other_dtypes(change: Change, family: str, dtype: str) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    if dtype == "bfloat16":
        model.to(torch.bfloat16)
    check_follows(serve(model, prompts, dtype == "int8"), prompts, change, dtype == "int8")


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt"])
@cases(BIASES)
def test_biases_of_packed_layers(family: str, change: Change) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    check_follows(serve(model, prompts), prompts, change)


@cases(CODE)
def test_layers_hooks_and_attributes(family: str, change: Change) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    check_follows(serve(model, prompts), prompts, change)


@cases(CONVERSIONS)
def test_conversions(family: str, change: Change) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    served = serve(model, prompts)
    answers(served)
    change(served.model)
    found = answers(served)
    check_same(found, answers(serve(served.detach(), prompts)))


POSITIONS: dict[str, Callable[[PreTrainedModel], Any]] = {
    "gpt2": lambda model: model.transformer.wpe.weight.data.mul_(3),
    "opt": lambda model: model.model.decoder.embed_positions.weight.data.mul_(3),
    "llama": lambda model: model.model.rotary_emb.inv_freq.mul_(3),
    "gpt_neox": lambda model: model.gpt_neox.rotary_emb.inv_freq.data.mul_(3),
    "gemma3": lambda model: model.model.rotary_emb.sliding_attention_inv_freq.mul_(3),
}


def test_positions(family: str) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    check_follows(serve(model, prompts), prompts, POSITIONS[family])


CONFIGS: dict[str, tuple[str, Change]] = {
    "softcap of logits": ("gemma2", lambda model: setattr(model.config, "final_logit_softcapping", 0.3)),
    "softcap of attention": ("gemma2", lambda model: setattr(attention(model), "attn_logit_softcapping", 0.05)),
    "window": ("gemma2", lambda model: setattr(attention(model), "sliding_window", 3)),
    "epsilon": ("llama", lambda model: setattr(norm(model), "variance_epsilon", 0.5)),
    "scale of the table": ("gemma3", lambda model: model.get_input_embeddings().original.embed_scale.mul_(2)),
}


@pytest.mark.parametrize("case", CONFIGS.values(), ids=[name.replace(" ", "_") for name in CONFIGS])
def test_configs_and_attributes(case: tuple[str, Change]) -> None:
    family, change = case
    model = sharp_model(family)
    prompts = prompts_for(model)
    check_follows(serve(model, prompts), prompts, change)
