"""Prompts know the model that they were made for by what it is."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file
from tiny_models import tiny_model
from tiny_models import tiny_tokenizer as letters
from torch import Tensor
from transformers import PreTrainedModel

from ruprompt_fast import (
    FastPromptModel,
    LSTMPromptProvider,
    MultiPrompt,
    PrefixTuningProvider,
    Prompt,
    PromptEnsemble,
    PromptFormat,
    TensorPromptProvider,
)
from ruprompt_fast.errors import PromptFileError, PromptMismatchError, UnknownBaseModelWarning
from ruprompt_fast.prompts.files.base_model import BaseModel

TEMPLATE = "<P*3>{text}"
NAMES = [
    "ai-forever/rugpt3small_based_on_gpt2",
    "models/rugpt3",
    "./models/rugpt3",
    "C:\\models\\rugpt3",
    "/models/Other",
    "rugpt3/",
]


def named(model: PreTrainedModel, name: str) -> PreTrainedModel:
    model.config.name_or_path = model.name_or_path = name
    return model


def make(model: PreTrainedModel, provider: Any = None) -> Prompt:
    prompt = Prompt(PromptFormat(TEMPLATE), provider or TensorPromptProvider(seed=0))
    prompt.initialize(model, letters())
    return prompt


def base_of(model: PreTrainedModel) -> BaseModel:
    base = BaseModel.of(model.config, model.get_input_embeddings().weight)
    assert base is not None
    return base


def from_file(prompt: Prompt, folder: Path, with_base: bool = True) -> Prompt:
    """The prompt as another process reads it; without ``with_base`` as ruPrompts and older versions wrote it."""
    prompt.save_pretrained(folder)
    if not with_base:
        content = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
        content.pop("base_model")
        (folder / "prompt.json").write_text(json.dumps(content), encoding="utf-8")
    return Prompt.from_pretrained(folder)


@pytest.fixture(autouse=True)
def _no_other_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownBaseModelWarning)
        yield


def serve(model: PreTrainedModel, prompt: Prompt) -> None:
    FastPromptModel(model, letters()).add_prompt("p", prompt)


def patch(model: PreTrainedModel, prompt: Prompt) -> None:
    prompt.patch(model, letters())


def attach(model: PreTrainedModel, prompt: Prompt) -> None:
    prompt.attach(model, letters())


def mix(model: PreTrainedModel, prompt: Prompt) -> None:
    MultiPrompt({"p": prompt}).patch(model, letters())


def join(model: PreTrainedModel, prompt: Prompt) -> None:
    prompts = MultiPrompt({"first": Prompt(PromptFormat(TEMPLATE), TensorPromptProvider())})
    prompts.patch(model, letters())
    prompts.add_prompt("p", prompt)


USES = [serve, patch, attach, mix, join]


class TestFingerprint:
    @pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "opt", "t5", "bloom", "gptj"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_the_same_in_every_dtype(self, family: str, dtype: torch.dtype) -> None:
        model = tiny_model(family)
        with torch.no_grad():  # also numbers that float16 hardly has
            model.get_input_embeddings().weight.mul_(10.0 ** torch.randint(-6, 1, (60, 1)))
        base = base_of(model)
        other = base_of(model.to(dtype))
        assert base.compare(other) == other.compare(base) == "same"

    @pytest.mark.parametrize("size", [61, 64, 128, 50])
    def test_the_same_after_the_table_was_padded_or_cut(self, size: int) -> None:
        model = tiny_model("llama")
        base = base_of(model)
        model.resize_token_embeddings(size)
        assert base.compare(base_of(model)) == base_of(model).compare(base) == "same"

    def test_models_that_were_trained_apart_differ(self) -> None:
        bases = [base_of(tiny_model(family, seed)) for family in ("gpt2", "llama") for seed in range(8)]
        assert all(a.compare(b) == "other" for a in bases for b in bases if a is not b)

    def test_also_where_all_rows_have_much_in_common(self) -> None:
        config = tf.GPT2Config()
        torch.manual_seed(0)
        tables = [torch.randn(50257, 64) * 0.3 + torch.randn(64) for _ in range(8)]
        bases = [BaseModel.of(config, table) for table in tables]
        assert all(a.compare(b) == "other" for a in bases for b in bases if a is not b)

    @pytest.mark.parametrize("change", ["trained", "quantized", "architecture", "two rows"])
    def test_what_is_alike_is_not_sure(self, change: str) -> None:
        torch.manual_seed(0)
        table, config = torch.randn(50257, 64), tf.GPT2Config()
        base = BaseModel.of(config, table)
        if change == "trained":
            table = table + 0.05 * torch.randn_like(table)
        elif change == "quantized":
            table = (table * 3).round().clamp(-7, 7) / 3
        elif change == "architecture":
            config = tf.LlamaConfig()
        else:
            base, table = BaseModel.of(config, table[:6]), table[:6]
        assert base.compare(BaseModel.of(config, table)) == "unsure"

    def test_tables_that_say_nothing(self) -> None:
        config = tf.GPT2Config()
        zeros, broken = BaseModel.of(config, torch.zeros(60, 8)), BaseModel.of(config, torch.full((60, 8), torch.nan))
        assert zeros.compare(broken) == broken.compare(zeros) == broken.compare(broken) == "unsure"
        assert zeros.compare(BaseModel.of(config, torch.zeros(60, 9))) == "other"
        assert BaseModel.of(config, torch.zeros(60, 8, device="meta")) is None
        assert BaseModel.of(config, torch.zeros(60, 8, dtype=torch.int8)) is None

    def test_is_short(self) -> None:
        base = BaseModel.of(tf.GPT2Config(), torch.randn(300_000, 8))
        assert len(base.fingerprint) < 500
        assert BaseModel.from_dict(json.loads(json.dumps(base.as_dict()))) == base


class TestPrompts:
    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("name", NAMES)
    def test_names_do_not_matter_where_the_model_is_known(self, tmp_path: Path, use: Any, name: str) -> None:
        prompt = from_file(make(named(tiny_model("gpt2"), "models/rugpt3")), tmp_path)
        use(named(tiny_model("gpt2").bfloat16(), name), prompt)

    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("name", ["models/rugpt3", "other", ""])
    def test_another_model_is_refused_whatever_it_is_called(self, tmp_path: Path, use: Any, name: str) -> None:
        prompt = from_file(make(named(tiny_model("gpt2"), "models/rugpt3")), tmp_path)
        model = named(tiny_model("gpt2", seed=1), name)
        embedding = model.get_input_embeddings()
        with pytest.raises(PromptMismatchError, match="token table is another one"):
            use(model, prompt)
        if use in (patch, attach, mix):
            assert model.get_input_embeddings() is embedding

    @pytest.mark.parametrize("use", USES)
    def test_what_cannot_be_told_is_said_once(self, tmp_path: Path, use: Any) -> None:
        prompt = from_file(make(named(tiny_model("gpt2"), "models/rugpt3")), tmp_path, with_base=False)
        model = named(tiny_model("gpt2"), "ai-forever/rugpt3small_based_on_gpt2")
        with pytest.warns(UnknownBaseModelWarning, match="models/rugpt3.*rugpt3small.*cannot be told") as caught:
            use(model, prompt)
        assert len(caught) == 1
        prompt.detach()
        patch(tiny_model("gpt2"), prompt)

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("sberbank-ai/rugpt3large_based_on_gpt2", "ai-forever/rugpt3large_based_on_gpt2"),
            ("models/rugpt3", "/home/me/models/RuGPT3/"),
            ("C:\\models\\rugpt3", "models/rugpt3"),
            ("openai/gpt2", "/cache/hub/models--openai--gpt2/snapshots/0123abc"),
            ("gpt2", "/cache/hub/models--gpt2/snapshots/0123abc/"),
            ("", "gpt2"),
            ("gpt2", ""),
        ],
    )
    def test_names_that_say_the_same(self, tmp_path: Path, theirs: str, ours: str) -> None:
        prompt = from_file(make(named(tiny_model("gpt2"), theirs)), tmp_path, with_base=False)
        serve(named(tiny_model("gpt2"), ours), prompt)

    def test_peft_prompts_are_compared_alike(self, tmp_path: Path) -> None:
        config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "base_model_name_or_path": "./base"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file({"prompt_embeddings": torch.zeros(3, 32)}, tmp_path / "adapter_model.safetensors")
        serve(named(tiny_model("gpt2"), "owner/base"), Prompt.from_pretrained(tmp_path))
        with pytest.warns(UnknownBaseModelWarning, match=r"\./base"):
            serve(named(tiny_model("gpt2"), "owner/model"), Prompt.from_pretrained(tmp_path))

    def test_deep_prompts(self, tmp_path: Path) -> None:
        prompt = from_file(make(tiny_model("llama"), PrefixTuningProvider(seed=0)), tmp_path)
        serve(tiny_model("llama").bfloat16(), prompt)
        with pytest.raises(PromptMismatchError, match="another one"):
            serve(tiny_model("llama", seed=1), prompt)

    def test_members_of_an_ensemble_share_a_model(self, tmp_path: Path) -> None:
        first, second, other = (make(tiny_model("gpt2", seed)) for seed in (0, 0, 1))
        PromptEnsemble([first, second])
        with pytest.raises(PromptMismatchError, match="member of the ensemble.*another one"):
            PromptEnsemble([first, other])
        make_one = PromptEnsemble.of(TEMPLATE, lambda seed: LSTMPromptProvider(seed=seed), seeds=range(2))
        make_one.initialize(tiny_model("gpt2"), letters())
        make_one.save_pretrained(tmp_path)
        assert PromptEnsemble.from_pretrained(tmp_path).members[1].config.base_model == base_of(tiny_model("gpt2"))


class TestFiles:
    def test_ruprompts_finds_its_own_entries_only(self, tmp_path: Path) -> None:
        """It makes its config of everything that is in ``config``, and reads nothing beside ``format``."""
        make(named(tiny_model("gpt2"), "gpt2")).save_pretrained(tmp_path)
        content = json.loads((tmp_path / "prompt.json").read_text(encoding="utf-8"))
        assert set(content["config"]) == {"embedding_dim", "prompt_length", "pretrained_model_name", "is_safe"}
        assert content["base_model"].keys() == {"model_type", "width", "vocab_size", "fingerprint"}

    def test_saved_again_as_it_was_read(self, tmp_path: Path) -> None:
        prompt = from_file(make(named(tiny_model("gpt2"), "gpt2")), tmp_path / "first")
        assert prompt.config.base_model == base_of(tiny_model("gpt2"))
        assert from_file(prompt, tmp_path / "second").as_dict() == prompt.as_dict()

    @pytest.mark.parametrize(
        "base",
        [
            3,
            {},
            {"model_type": "gpt2", "width": 32, "vocab_size": 60},
            {"model_type": "gpt2", "width": True, "vocab_size": 60, "fingerprint": ""},
            {"model_type": "gpt2", "width": 0, "vocab_size": 60, "fingerprint": ""},
            {"model_type": "gpt2", "width": 32, "vocab_size": 60, "fingerprint": "abc"},
            {"model_type": "gpt2", "width": 32, "vocab_size": 60, "fingerprint": "zzzz"},
            {"model_type": "gpt2", "width": 32, "vocab_size": 60, "fingerprint": "abcd" * 1000},
        ],
    )
    def test_a_broken_entry_is_named(self, tmp_path: Path, base: object) -> None:
        make(tiny_model("gpt2")).save_pretrained(tmp_path)
        content = json.loads((tmp_path / "prompt.json").read_text(encoding="utf-8"))
        (tmp_path / "prompt.json").write_text(json.dumps({**content, "base_model": base}), encoding="utf-8")
        with pytest.raises(PromptFileError, match="base_model"):
            Prompt.from_pretrained(tmp_path)


def test_training_says_which_model_it_was_on(tmp_path: Path) -> None:
    from tiny_models import sharp_model
    from training.trainer_cases import TEMPLATE as template
    from training.trainer_cases import make_trainer

    rows: Tensor = torch.randn(6, 32)
    prompt = Prompt(PromptFormat(template), TensorPromptProvider.from_pretrained(rows))
    prompt.initialize(sharp_model("gpt2"), letters())
    assert prompt.config.base_model is None
    make_trainer(tmp_path, prompt, max_steps=1).train()
    assert prompt.config.base_model == base_of(sharp_model("gpt2"))


def test_a_table_with_numbers_that_are_none_is_the_same_as_itself() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[5:9] = torch.nan
    assert base_of(model).compare(base_of(model)) == "same"
    assert base_of(model).compare(base_of(tiny_model("llama"))) == "same"
    assert base_of(model).compare(base_of(tiny_model("llama", 1))) == "other"
