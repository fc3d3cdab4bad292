"""A served model that is changed answers as one that is loaded after the change."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model.change_cases import (
    BIASES,
    CODE,
    CONVERSIONS,
    PACKED,
    WEIGHTS,
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
from transformers.pytorch_utils import Conv1D

from ruprompt_fast import FastPromptModel, Prompt, errors
from ruprompt_fast.ops.cpu.packed_linear import can_pack

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
    options: dict[str, Any] = {**ROOM, "quantization": "int8" if int8 else None}
    return FastPromptModel.from_pretrained(model, prompts=prompts, tokenizer=tiny_tokenizer(), **options)


def answers(served: FastPromptModel) -> Answers:
    """Greedy ids, and the probabilities of labels."""
    outputs = served.generate(INPUTS, NAMES, max_new_tokens=4, eos_token_id=None, do_sample=False)
    classes = served.classify(INPUTS, NAMES, labels=LABELS)
    return [output.token_ids for output in outputs], [p for each in classes for p in each.probabilities.values()]


def check_same(found: Answers, expected: Answers) -> None:
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-6)


def check_follows(
    served: FastPromptModel, prompts: dict[str, Prompt], change: Change, int8: bool = False
) -> FastPromptModel:
    """Caches are warm before the change; the answers differ after it, and are those of the model loaded again.

    Returns:
        The model loaded again.
    """
    before = answers(served)
    check_same(answers(served), before)
    change(served.model)
    after = answers(served)
    assert after[1] != pytest.approx(before[1], rel=1e-3)
    check_same(answers(served), after)
    fresh = serve(served.detach(), prompts, int8)
    check_same(after, answers(fresh))
    return fresh


def cases(changes: dict[str, Change]) -> Any:
    return pytest.mark.parametrize("change", changes.values(), ids=[name.replace(" ", "_") for name in changes])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cases(WEIGHTS)
def test_weights_that_are_not_packed(family: str, change: Change) -> None:
    model = sharp_model(family)
    norm(model).weight.data += torch.linspace(-0.3, 0.6, 32)  # Gemma's start at zero, and one scale is no change for it
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


def _narrow_window(model: PreTrainedModel) -> None:
    model.config.sliding_window = attention(model).sliding_window = 3


CONFIGS: dict[str, tuple[str, Change]] = {
    "softcap of logits": ("gemma2", lambda model: setattr(model.config, "final_logit_softcapping", 0.3)),
    "softcap of attention": ("gemma2", lambda model: setattr(attention(model), "attn_logit_softcapping", 0.05)),
    "window": ("gemma2", _narrow_window),
    "epsilon": ("llama", lambda model: setattr(norm(model), "variance_epsilon", 0.5)),
    "scale of the table": ("gemma3", lambda model: model.get_input_embeddings().original.embed_scale.mul_(2)),
}


@pytest.mark.parametrize("case", CONFIGS.values(), ids=[name.replace(" ", "_") for name in CONFIGS])
def test_configs_and_attributes(case: tuple[str, Change]) -> None:
    family, change = case
    model = sharp_model(family)
    prompts = prompts_for(model)
    check_follows(serve(model, prompts), prompts, change)


def test_every_mode_is_the_evaluation_mode(family: str) -> None:
    served = serve(model := sharp_model(family), prompts_for(model))
    before = answers(served)
    served.model.train()
    check_same(answers(served), before)
    assert not any(module.training for module in served.model.modules())


@pytest.mark.parametrize("int8", [False, True])
def test_an_adapter_is_switched_scaled_and_merged(family: str, int8: bool) -> None:
    model = sharp_model(family)
    adapter, prompts = inject(model), prompts_for(model)
    served = serve(model, prompts, int8)
    plain_weight = adapter.base_layer.weight.detach().clone()
    # Merging rounds, and int8 rounds what is merged.
    near = {"rel": 0.5, "abs": 0.02} if int8 else {"rel": 1e-3, "abs": 1e-4}
    found: dict[str, Answers] = {"on": answers(served)}
    adapter._disable_adapters = True
    found["off"] = answers(served)
    adapter._disable_adapters = False
    check_same(answers(served), found["on"])
    adapter.scaling["default"] = 3.0
    found["scaled"] = answers(served)
    adapter.merge()
    assert answers(served)[1] == pytest.approx(found["scaled"][1], **near)
    adapter.merge(-1.0)
    assert answers(served)[1] == pytest.approx(found["scaled"][1], **near)
    adapter.active_adapters.clear()
    assert answers(served)[1] == pytest.approx(found["off"][1], **near)
    assert len({tuple(probabilities) for _, probabilities in found.values()}) == 3
    if not int8:
        served.detach()
        assert torch.allclose(adapter.base_layer.weight, plain_weight, atol=1e-5)


def test_an_adapter_injected_while_served_stands_around_the_models_own_layer(family: str) -> None:
    served = serve(model := sharp_model(family), prompts_for(model))
    answers(served)
    adapter = inject(served.model)
    answers(served)
    served.detach()
    assert isinstance(adapter.base_layer, (nn.Linear, Conv1D))
    assert torch.isfinite(adapter.base_layer.weight).all()


def test_hooks_of_a_packed_layer_come_and_go(family: str) -> None:
    served = serve(model := sharp_model(family), prompts_for(model))
    before = answers(served)
    handle = projection(served.model).register_forward_pre_hook(lambda module, arguments: (arguments[0].roll(1, -1),))
    assert answers(served)[1] != pytest.approx(before[1], rel=1e-3)
    handle.remove()
    check_same(answers(served), before)


def test_a_hook_of_every_module(family: str) -> None:
    served = serve(model := sharp_model(family), prompts_for(model))
    before = answers(served)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, arguments, output: output.roll(1, -1) if module is norm(served.model) else None
    )
    try:
        assert answers(served)[1] != pytest.approx(before[1], rel=1e-3)
    finally:
        handle.remove()
    check_same(answers(served), before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_that_were_held_before_the_model_was_served(family: str) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    parameter, alias = projection(model).weight, projection(model).weight.detach()
    served = check_follows(serve(model, prompts), prompts, lambda _: alias.mul_(-1.5))
    before = answers(served)
    with pytest.raises(RuntimeError), torch.no_grad():
        parameter.mul_(2)
    check_same(answers(served), before)
    parameter.data.fill_(2.0)
    with pytest.raises(errors.FrozenWeightsError, match=r"held since before"):
        answers(served)
    check_same(answers(served), before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_weight_that_is_held_counts_whenever_it_is_written(family: str) -> None:
    served = serve(model := sharp_model(family), prompts_for(model))
    weight = projection(served.model).weight
    found = [answers(served)]
    for factor in (-1.5, 0.5, 3.0):
        weight.data.mul_(factor)
        found.append(answers(served))
    assert len({tuple(probabilities) for _, probabilities in found}) == 4
    weight.data.div_(-2.25)
    assert answers(served)[1] == pytest.approx(found[0][1], rel=1e-3, abs=1e-5)


def test_single_numbers_written_without_a_trace_need_refresh() -> None:
    served = serve(model := sharp_model("llama"), prompts_for(model))
    before = answers(served)
    served.model.get_input_embeddings().weight.data[20] += 2.0
    served.refresh()
    assert answers(served)[1] != pytest.approx(before[1], rel=1e-3)


def test_nothing_is_computed_twice_without_a_change(family: str) -> None:
    served = serve(model := sharp_model(family), prompts_for(model))
    answers(served)
    first = served.stats()
    assert first.engine is not None
    served.generate("да", "short", max_new_tokens=3, num_beams=2)
    served.generate("да", "short", max_new_tokens=3, repetition_penalty=1.3, no_repeat_ngram_size=2)
    dict(served.model.named_parameters())
    served.model.state_dict()
    answers(served)
    second = served.stats()
    assert second.engine is not None
    assert second.engine.scheduler["steps"] > first.engine.scheduler["steps"]


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 9, "encoder_no_repeat_ngram_size": 30}])
def test_a_request_that_runs_fails_when_the_model_changes(settings: dict[str, Any]) -> None:
    served = serve(model := sharp_model("llama"), prompts_for(model))
    stream = served.stream(TEXT, "short", max_new_tokens=60, eos_token_id=None, do_sample=False, **settings)
    next(stream)
    norm(served.model).weight.data.mul_(1.9)
    with pytest.raises(errors.ModelChangedError, match="make the request again"):
        list(stream)
    check_same(answers(served), answers(serve(served.detach(), prompts_for(model))))


def test_a_provider_that_is_trained_while_it_is_served(family: str) -> None:
    model = sharp_model(family)
    prompts = prompts_for(model)
    served = serve(model, prompts)
    before = answers(served)
    parameters = list(prompts["around"].provider.parameters())
    for parameter in parameters:
        parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
    torch.optim.AdamW(parameters, lr=0.5, fused=True).step()
    after = answers(served)
    assert after[1] != pytest.approx(before[1], rel=1e-3)
    fresh = serve(served.detach(), prompts)
    check_same(after, answers(fresh))
    parameters[0].data.fill_(torch.nan)
    with pytest.raises(errors.NonFiniteRowsError, match="'around'"):
        answers(fresh)


@pytest.mark.parametrize("family", ["t5", "gptj", "falcon"])
def test_the_fallback_reads_the_weights_as_they_are(family: str) -> None:
    model = sharp_model(family)
    prompts = {name: prompt for name, prompt in prompts_for(model).items() if name != "bare"}
    served = serve(model, prompts)

    def outputs(served: FastPromptModel) -> list[float]:
        classes = served.classify([TEXT, TEXT], [None, "around"], labels=LABELS)
        return [p for each in classes for p in each.probabilities.values()]

    before = outputs(served)
    find(served.model, "wo", "mlp", "dense_4h_to_h").register_forward_hook(lambda m, a, output: -output)
    served.model.train()
    after = outputs(served)
    assert after != pytest.approx(before, rel=1e-3)
    assert after == pytest.approx(outputs(serve(served.detach(), prompts)), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_any_changes_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    model = sharp_model(chance.choice(FAMILIES))
    prompts = prompts_for(model)
    served = serve(model, prompts)
    changes = [*WEIGHTS.values(), *PACKED.values(), *CODE.values()]
    for _ in range(3):
        for change in chance.sample(changes, chance.randrange(3)):
            change(served.model)
        if chance.random() < 0.7:
            answers(served)
    after = answers(served)
    check_same(after, answers(serve(served.detach(), prompts)))
