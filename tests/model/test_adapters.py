"""Models with adapters in their layers, and the wrappers that hold such models."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model.change_cases import inject, projection
from model.test_changed_models import answers, check_same, prompts_for, serve
from tiny_models import sharp_model, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import UnsupportedModelError

FAMILIES = ["gpt2", "llama", "gpt_neox"]
# What the activation of a block reads is among them: a packed layer computes it in its own pass.
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "gate_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
}


class Wrapper(nn.Module):
    """A wrapper of a model, as PEFT has one."""

    def __init__(self, model: nn.Module, is_prompt_learning: bool) -> None:
        super().__init__()
        self.model = model
        self.active_peft_config = SimpleNamespace(is_prompt_learning=is_prompt_learning)

    def get_base_model(self) -> nn.Module:
        return self.model


def test_a_wrapper_with_adapters_is_served_through_the_model_in_it() -> None:
    model = sharp_model("gpt2")
    prompts = prompts_for(model)
    plain = answers(serve(sharp_model("gpt2"), prompts))
    inject(model)
    expected = answers(served := serve(model, prompts))
    assert expected != plain
    served.detach()
    for make in (FastPromptModel, FastPromptModel.from_pretrained):
        served = make(Wrapper(model, False), tokenizer=tiny_tokenizer())
        for name, prompt in prompts.items():
            served.add_prompt(name, prompt)
        check_same(answers(served), expected)
        assert served.detach() is model


def test_a_wrapper_with_a_prompt_is_refused_with_the_way_out() -> None:
    wrapped = Wrapper(sharp_model("gpt2"), True)
    for make in (FastPromptModel, FastPromptModel.from_pretrained):
        with pytest.raises(UnsupportedModelError, match=r"Wrapper.*Prompt\.from_pretrained.*get_base_model\(\)"):
            make(wrapped, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_layers_are_of_the_kind_that_they_stand_for(family: str) -> None:
    model = sharp_model(family)
    kind, weight = type(projection(model)), projection(model).weight.detach().clone()
    served = FastPromptModel.from_pretrained(model, tokenizer=tiny_tokenizer())
    packed = projection(served.model)
    assert type(packed) is not kind
    assert [isinstance(packed, one) for one in (nn.Linear, Conv1D)] == [kind is one for one in (nn.Linear, Conv1D)]
    assert torch.equal(packed.weight, weight)
    assert str(packed.out_features) in repr(packed)


def _randomize(model: nn.Module, adapter: str) -> None:
    generator = torch.Generator().manual_seed(len(adapter))
    for name, parameter in model.named_parameters():
        if f".{adapter}" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + ("ia3" in name))


def _peft_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _add(family: str, kind: str, name: str) -> Callable[[PreTrainedModel], None]:
    def add(model: PreTrainedModel) -> None:
        peft = pytest.importorskip("peft", reason="PEFT is not installed")
        targets = TARGETS[family]
        if kind == "lora":
            config = peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=targets)
        else:
            inputs = [target for target in targets if target.startswith(("down", "dense", "c_fc"))]
            config = peft.IA3Config(target_modules=targets, feedforward_modules=inputs)
        model.add_adapter(config, name)
        _randomize(model, name)

    return add


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapters_that_come_and_go_while_a_model_is_served(family: str, kind: str) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    model = sharp_model(family)
    prompts = prompts_for(model)
    served = serve(model, prompts)
    found = {"none": answers(served)}

    def check(name: str, change: Callable[[PreTrainedModel], Any]) -> None:
        change(served.model)
        actual = answers(served)
        if name not in found:
            assert all(actual[1] != pytest.approx(other[1], rel=1e-3) for other in found.values())
        expected = found.setdefault(name, actual)
        assert actual[0] == expected[0]
        assert actual[1] == pytest.approx(expected[1], rel=1e-3, abs=1e-6)

    check("first", _add(family, kind, "first"))
    check("second", _add(family, kind, "second-one"))
    check("first", lambda model: model.set_adapter("first"))
    check("none", lambda model: model.disable_adapters())
    check("first", lambda model: model.enable_adapters())
    check("first", lambda model: [layer.merge(adapter_names=["first"]) for layer in _peft_layers(model)])
    check("first", lambda model: [layer.unmerge() for layer in _peft_layers(model)])
    if kind == "lora":
        check("larger", lambda model: [layer.set_scale("first", 3.0) for layer in _peft_layers(model)])
        check("both", lambda model: model.set_adapter(["first", "second-one"]))
    check("second", lambda model: (model.set_adapter("second-one"), model.delete_adapter("first")))
    check_same(answers(serve(served.detach(), prompts)), found["second"])


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_models(family: str) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model = sharp_model(family)
    prompts = prompts_for(model)
    plain = answers(serve(sharp_model(family), prompts))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS[family]))
    _randomize(wrapped, "default")
    served = serve(wrapped, prompts)
    adapted = answers(served)
    assert adapted[1] != pytest.approx(plain[1], rel=1e-3)
    with wrapped.disable_adapter():
        check_same(answers(served), plain)
    check_same(answers(served), adapted)
    wrapped.merge_adapter()
    merged = answers(served)
    assert merged[1] == pytest.approx(adapted[1], rel=1e-3, abs=1e-6)
    assert served.detach() is wrapped.get_base_model()
    fresh = serve(wrapped.merge_and_unload(), prompts)
    assert answers(fresh)[1] == pytest.approx(adapted[1], rel=1e-3, abs=1e-6)
    fresh.detach()
    learner = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UnsupportedModelError, match=r"Prompt\.from_pretrained"):
        serve(learner, prompts)


class AdaptedTable(nn.Module):
    """A token table with an adapter beside it."""

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base_layer, self.adapter = base, nn.Embedding(*base.weight.shape)

    @property
    def weight(self) -> nn.Parameter:
        return self.base_layer.weight

    def forward(self, ids: Any) -> Any:
        return self.base_layer(ids) + self.adapter(ids)


def test_adapters_of_the_token_table_have_to_be_merged_first() -> None:
    model = sharp_model("gpt2")
    [prompt, *_] = prompts_for(model).values()
    table = model.get_input_embeddings()
    model.set_input_embeddings(AdaptedTable(table))
    with pytest.raises(UnsupportedModelError, match=r"AdaptedTable.*Merge it"):
        FastPromptModel.from_pretrained(model, tokenizer=tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match=r"AdaptedTable.*Merge it"):
        prompt.patch(model, tiny_tokenizer())
    assert isinstance(model.get_input_embeddings(), AdaptedTable)
    model.set_input_embeddings(table)
    assert FastPromptModel.from_pretrained(model, tokenizer=tiny_tokenizer()).stats().path == "engine"


def test_a_peft_adapter_of_the_token_table_is_served_when_it_is_merged() -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    wrapped = peft.get_peft_model(sharp_model("llama"), peft.LoraConfig(r=4, target_modules=["embed_tokens"]))
    with pytest.raises(UnsupportedModelError, match=r"merge_and_unload\(\)"):
        FastPromptModel.from_pretrained(wrapped, tokenizer=tiny_tokenizer())
    assert FastPromptModel.from_pretrained(wrapped.merge_and_unload(), tokenizer=tiny_tokenizer())
