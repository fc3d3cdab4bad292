"""PrefixTuningProvider: first values, gradients, files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from prompts.tiny import WIDTH
from tiny_models import sharp_model, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import LSTMPromptProvider, MultiPrompt, PrefixTuningProvider, Prompt, PromptFormat
from ruprompt_fast.errors import (
    NonFiniteRowsError,
    NotInitializedError,
    PromptFileError,
    PromptInitError,
    PromptLengthError,
    PromptMismatchError,
    PromptTooLongError,
    RupromptError,
    TemplateError,
    UnsupportedModelError,
)
from ruprompt_fast.prompts import KVShape, kv_shape_of

SHAPE = KVShape(num_layers=3, num_key_value_heads=4, head_dim=WIDTH // 4)
"""Of the GPT-2 in ``prompts.tiny``."""


def make(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, template: str = "<P*6>{text}", **arguments: Any
) -> Prompt:
    prompt = Prompt(PromptFormat(template), PrefixTuningProvider(**{"seed": 0, **arguments}))
    prompt.initialize(model, tokenizer)
    return prompt


def kept_by(model: PreTrainedModel, ids: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Key and value [tokens, heads, width] of every layer in transformers' cache."""
    with torch.no_grad():
        cache = model(torch.tensor([ids]), past_key_values=DynamicCache(), use_cache=True).past_key_values
    return [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in cache.layers]


def assert_keeps(prompt: Prompt, expected: list[tuple[Tensor, Tensor]]) -> None:
    for found, wanted in zip(prompt.provider.keys_values(), expected, strict=True):
        assert all(map(torch.equal, found, wanted))


class TestFirstValues:
    @pytest.mark.parametrize("hidden_dim", [None, 8, -1])
    def test_of_a_text(self, hidden_dim: int | None) -> None:
        """Also through a network: its last layer starts at zero."""
        tokenizer = tiny_tokenizer()
        for family in ("gpt2", "gpt_neox", "llama", "gemma3"):
            model = sharp_model(family)
            prompt = make(model, tokenizer, "<P*20>{text}", init="text", text="да нет", hidden_dim=hidden_dim)
            ids = (tokenizer("да нет")["input_ids"] * 4)[:20]
            assert_keeps(prompt, kept_by(model, ids))
            assert prompt.rows().shape == (20, prompt.provider.kv_shape.row_width)
            assert prompt.provider.num_rows == 20

    def test_of_the_vocabulary(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        one, same, other = (make(model, tokenizer, seed=seed).rows() for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        table = torch.cat([kept_by(model, [token])[0][1] for token in range(len(tokenizer))])
        values = make(model, tokenizer, "<P>{text}").provider.keys_values()[0][1]
        assert (table == values).flatten(1).all(1).sum() == 1  # the value of one real token at the first position

    def test_random(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        rows = make(model, tokenizer, "<P*20>{text}", init="random", std=0.5).rows()
        assert rows.shape == (20, SHAPE.row_width)
        assert float(rows.std()) == pytest.approx(0.5, rel=0.1)
        assert torch.equal(rows, make(model, tokenizer, "<P*20>{text}", init="random", std=0.5).rows())

    def test_rows_of_a_template_text(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = make(model, tokenizer, "<P>one two</P>{text}")
        assert_keeps(prompt, kept_by(model, tokenizer("one two")["input_ids"]))
        with pytest.raises(PromptInitError, match="init='random' draws numbers"):
            make(model, tokenizer, "<P>one two</P>{text}", init="random")

    def test_the_model_is_left_as_it_was(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Its own mode too; dropout would make the values noise."""
        model = sharp_model("gpt2")
        model.train()
        model.transformer.h[0].eval()
        modes = [module.training for module in model.modules()]
        prompt = make(model, tiny_tokenizer(), init="text", text="привет")
        assert [module.training for module in model.modules()] == modes
        assert_keeps(prompt, kept_by(model.eval(), tiny_tokenizer()("привет")["input_ids"]))
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_dtype_and_parameters(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        for mode in ("vocab", "random"):
            assert make(model.bfloat16(), tokenizer, init=mode, hidden_dim=4).rows().dtype == torch.float32
            assert make(model, tokenizer, init=mode).rows().dtype == torch.float32
        direct, network = make(model, tokenizer).provider, make(model, tokenizer, hidden_dim=4).provider
        assert [name for name, _ in direct.named_parameters()] == ["weights"]
        assert {name.partition(".")[0] for name, _ in network.named_parameters()} == {"inputs", "mlp"}
        assert network.mlp[0].out_features == 4
        assert not any(isinstance(module, PreTrainedModel) for module in network.modules())

    def test_a_second_initialization_does_nothing(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        prompt = make(model, tokenizer, seed=None)
        rows = prompt.rows()
        prompt.initialize(model, tokenizer)
        assert torch.equal(prompt.rows(), rows)


class _KeysValues(nn.Module):
    """Keys and values as a function of the parameters."""

    def __init__(self, provider: PrefixTuningProvider) -> None:
        super().__init__()
        self.provider = provider

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(part for pair in self.provider.keys_values() for part in pair)


@pytest.mark.parametrize("hidden_dim", [None, 3])
def test_gradients(hidden_dim: int | None) -> None:
    model = tiny_model("llama")
    module = _KeysValues(make(model, tiny_tokenizer(), "<P*2>{text}", hidden_dim=hidden_dim).provider).double()
    generator = torch.Generator().manual_seed(0)
    values = {
        name: (p + torch.randn(p.shape, generator=generator, dtype=p.dtype)).detach().requires_grad_()
        for name, p in module.named_parameters()
    }

    def keys_values(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(module, dict(zip(values, tensors, strict=True)))

    assert torch.autograd.gradcheck(keys_values, tuple(values.values()), fast_mode=True)
    sum(part.square().sum() for part in module()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


class TestFiles:
    @pytest.mark.parametrize("hidden_dim", [None, 4])
    def test_round_trip(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        hidden_dim: int | None,
    ) -> None:
        prompt = make(model, tokenizer, hidden_dim=hidden_dim)
        prompt.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "prompt.json").read_text())
        assert stored["config"] == {
            "embedding_dim": SHAPE.row_width,
            "prompt_length": 6,
            "pretrained_model_name": "",
            "is_safe": False,
            "kind": "prefix_tuning",
            "num_layers": 3,
            "num_key_value_heads": 4,
            "head_dim": 5,
        }
        loaded = Prompt.from_pretrained(tmp_path)
        assert isinstance(loaded.provider, PrefixTuningProvider)
        assert loaded.provider.kv_shape == SHAPE
        assert [name for name, _ in loaded.provider.named_parameters()] == ["weights"]
        assert torch.equal(loaded.rows(), prompt.rows())
        assert loaded.as_dict() == prompt.as_dict()
        loaded.initialize(model, tokenizer)
        assert torch.equal(loaded.rows(), prompt.rows())
        with pytest.raises(PromptMismatchError, match="3 layers of 4 heads of 5; this model has 2 layers of 2 heads"):
            Prompt.from_pretrained(tmp_path).initialize(tiny_model("gpt2"), tiny_tokenizer())

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"kind": "something"}, "expected a config of embedding rows, or one with kind='prefix_tuning'"),
            ({"kind": 3}, "config.kind to be str"),
            ({"num_layers": 0}, "'num_layers': 0"),
            ({"num_layers": "3"}, "config.num_layers to be int"),
            ({"head_dim": None}, "positive"),
            ({"head_dim": 6}, r"expected config.embedding_dim to be 144, .*; found 120"),
            ({"head_dim": 6, "embedding_dim": None}, r"expected rows \[6, 144\].*found \[6, 120\]"),
        ],
    )
    def test_configs_that_do_not_fit(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
        changes: dict[str, object],
        found: str,
    ) -> None:
        make(model, tokenizer).save_pretrained(tmp_path)
        path = tmp_path / "prompt.json"
        stored = json.loads(path.read_text())
        stored["config"] |= changes
        path.write_text(json.dumps(stored))
        with pytest.raises(PromptFileError, match=found):
            Prompt.from_pretrained(tmp_path)

    def test_a_template_that_is_no_prefix(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        make(model, tokenizer).save_pretrained(tmp_path)
        path = tmp_path / "prompt.json"
        stored = json.loads(path.read_text())
        stored["format"] = {"template": "{text}<P*6>", "compiled_template": "{text}" + "<|P|>" * 6}
        path.write_text(json.dumps(stored))
        with pytest.raises(PromptFileError, match="one run at the very start"):
            Prompt.from_pretrained(tmp_path)


class TestFormat:
    def test_the_text_after_the_rows(self, tokenizer: PreTrainedTokenizerFast) -> None:
        for template, text in (("<P*3>{text}", "{text}"), ("<P*2><P>a {x}{{}} b", "a {x}{{}} b"), ("<P*3>", "")):
            format = PromptFormat(template, tokenizer=tokenizer).without_leading_rows()
            assert (format.template, format.prompt_length) == (text, 0)
        format = PromptFormat("<P*3>on {text}", tokenizer=tokenizer).without_leading_rows()
        assert format.encode({"text": "two"}, tokenizer).input_ids == tokenizer("on two")["input_ids"]

    @pytest.mark.parametrize("template", ["{text}<P>", "a<P*2>{text}", "<P*2>{text}<P>", "{text}"])
    def test_rows_elsewhere(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
        with pytest.raises(TemplateError, match="one run at the very start"):
            PromptFormat(template, tokenizer=tokenizer).without_leading_rows()
        with pytest.raises(TemplateError):
            make(model, tokenizer, template)


class TestRefusals:
    @pytest.mark.parametrize(
        "arguments",
        [{"init": "labels"}, {"init": "frequent"}, {"init": "text"}, {"text": "on"}, {"hidden_dim": 0}],
    )
    def test_arguments(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(PromptInitError):
            PrefixTuningProvider(**arguments)

    def test_lengths(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(PromptTooLongError, match="distinct tokens"):
            make(model, tokenizer, "<P*22>{text}")
        with pytest.raises(PromptLengthError, match="100 rows leave no room for text in the model's context of 100"):
            make(model, tokenizer, "<P*100>{text}", init="random")

    def test_before_initialization(self, model: PreTrainedModel) -> None:
        provider = PrefixTuningProvider()
        for use in (provider, provider.keys_values, lambda: provider.num_rows):
            with pytest.raises(NotInitializedError):
                use()
        with pytest.raises(PromptInitError, match="through its Prompt"):
            provider.initialize(3, WIDTH, model.get_input_embeddings(), {})

    @pytest.mark.parametrize(
        ("rows", "error"),
        [
            (torch.rand(2, SHAPE.row_width + 1), PromptInitError),
            (torch.rand(SHAPE.row_width), PromptInitError),
            (torch.full((2, SHAPE.row_width), torch.nan), NonFiniteRowsError),
        ],
    )
    def test_rows(self, rows: Tensor, error: type[RupromptError]) -> None:
        with pytest.raises(error):
            PrefixTuningProvider.from_pretrained(rows, SHAPE)

    @pytest.mark.parametrize(
        ("config", "what"),
        [
            (lambda: tf.T5Config(), "t5 is an encoder-decoder"),
            (lambda: tf.MambaConfig(), "mamba has layers of type linear_attention"),
            (
                lambda: tf.LlamaConfig(num_hidden_layers=2, per_layer_config={1: {"num_key_value_heads": 1}}),
                "llama gives some layers sizes of their own",
            ),
        ],
    )
    def test_configs(self, config: Callable[[], tf.PretrainedConfig], what: str) -> None:
        with pytest.raises(UnsupportedModelError, match=what):
            kv_shape_of(config())

    @pytest.mark.parametrize("init", ["vocab", "random"])
    def test_a_model_that_keeps_something_else(self, init: str) -> None:
        """Falcon keeps one head, whatever its config says."""
        with pytest.raises(UnsupportedModelError, match="FalconForCausalLM keeps"):
            make(tiny_model("falcon"), tiny_tokenizer(), init=init)

    def test_an_embedding_has_no_place_for_it(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        embedding, length = model.get_input_embeddings(), len(tokenizer)
        fresh = Prompt(PromptFormat("<P*6>{text}"), PrefixTuningProvider())
        with pytest.raises(PromptInitError, match="FastPromptModel.add_prompt.*PromptTrainer"):
            fresh.patch(model, tokenizer)
        assert not fresh.is_initialized
        prompts = MultiPrompt({"shallow": Prompt(PromptFormat("<P*2>{text}"), LSTMPromptProvider()), "deep": fresh})
        with pytest.raises(PromptInitError, match="is deep"):
            prompts.patch(model, tokenizer)
        assert not prompts.prompts["shallow"].is_initialized
        fresh.initialize(model, tokenizer)
        with pytest.raises(PromptInitError, match="is deep"):
            fresh.attach(model, tokenizer)
        assert model.get_input_embeddings() is embedding
        assert len(tokenizer) == length

    def test_a_patched_multi_prompt(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        prompts = MultiPrompt({"shallow": Prompt(PromptFormat("<P*2>{text}"), LSTMPromptProvider())})
        prompts.patch(model, tokenizer)
        with pytest.raises(PromptInitError, match="is deep"):
            prompts.add_prompt("deep", make(model, tokenizer))
        assert list(prompts.prompts) == ["shallow"]
