"""transformers' own Trainer around a patched model: every kind of model, the optimizer, checkpoints, bad numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from tiny_models import CONTEXT, VOCAB, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ruprompt_fast import (
    FreezeTransformerUnfreezePrompt,
    LSTMPromptProvider,
    MultiPrompt,
    Prompt,
    PromptFormat,
    ReduceCheckpoint,
    SavePretrainedPrompt,
    TensorPromptProvider,
)
from ruprompt_fast.errors import CheckpointError, DivergenceError, FrozenWeightsError
from ruprompt_fast.prompts import freeze_model

TEMPLATE = "<P*4>{text}"
WORDS = ("привет", "мир", "да", "как дела", "ура", "снег", "лес", "я")

_BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: tiny_model("gpt2"),
    "llama": lambda: tiny_model("llama"),
    "llama_tied": lambda: tiny_model("llama_tied"),
    "gemma3": lambda: tiny_model("gemma3"),
    "opt": lambda: tiny_model("opt"),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5)),
    "t5_untied": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5, tie_word_embeddings=False)),
    "mt5": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**_T5)),
    "umt5": lambda: tf.UMT5ForConditionalGeneration(tf.UMT5Config(**_T5)),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**_BART)),
    "mbart": lambda: tf.MBartForConditionalGeneration(tf.MBartConfig(**_BART)),
    "pegasus": lambda: tf.PegasusForConditionalGeneration(tf.PegasusConfig(**_BART)),
    "m2m_100": lambda: tf.M2M100ForConditionalGeneration(tf.M2M100Config(**_BART)),
    "marian": lambda: tf.MarianMTModel(tf.MarianConfig(**_BART, decoder_vocab_size=VOCAB)),
}


def make_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]()


def patched(name: str = "gpt2", seed: int = 1, provider: Any = None) -> tuple[Prompt, PreTrainedModel]:
    model = make_model(name)
    prompt = Prompt(PromptFormat(TEMPLATE), provider or TensorPromptProvider("random", seed=seed))
    prompt.patch(model, TOKENIZER := tiny_tokenizer())
    model.tokenizer = TOKENIZER
    return prompt, model


def rows_for(prompt: Any, model: PreTrainedModel) -> list[dict[str, list[int]]]:
    rows = []
    for word in WORDS:
        ids = model.tokenizer(prompt(word))["input_ids"]
        target = model.tokenizer(word[::-1])["input_ids"]
        if not model.config.is_encoder_decoder:
            rows.append({"input_ids": ids + target, "labels": [-100] * len(ids) + target})
        else:
            rows.append({"input_ids": ids, "labels": target})
    return rows


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    batch = {}
    for name, padding in (("input_ids", 0), ("labels", -100)):
        longest = max(len(row[name]) for row in rows)
        batch[name] = torch.tensor([row[name] + [padding] * (longest - len(row[name])) for row in rows])
    return {**batch, "attention_mask": (batch["input_ids"] != 0).long()}


def make_trainer(folder: Path, prompt: Any, model: PreTrainedModel, callbacks: Any = None, **settings: Any) -> Trainer:
    own = {name: settings.pop(name) for name in ("optimizers",) if name in settings}
    values = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.05, "per_device_train_batch_size": 4, **settings}
    data = rows_for(prompt, model)
    return Trainer(
        model,
        TrainingArguments(str(folder), report_to=[], disable_tqdm=True, use_cpu=True, logging_steps=1, **values),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate,
        callbacks=[FreezeTransformerUnfreezePrompt()] if callbacks is None else callbacks,
        **own,
    )


def trainable(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def held_by(trainer: Trainer) -> set[int]:
    return {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}


CASES = [*((name, False) for name in MODELS), *((name, True) for name in ("gpt2", "llama", "t5", "bart"))]


@pytest.mark.parametrize(
    ("name", "reduced"), CASES, ids=lambda value: {True: "reduced", False: "whole"}.get(value, value)
)
def test_checkpoints_of_every_kind_of_model(tmp_path: Path, name: str, reduced: bool) -> None:
    """Saved, resumed exactly, the best one reloaded, the base model alone written afterwards."""
    settings: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # the worse one, which is not the last
    }

    def callbacks() -> list[Any]:
        return [FreezeTransformerUnfreezePrompt(), *([ReduceCheckpoint()] if reduced else [])]

    whole, model = patched(name)
    before = {key: value.clone() for key, value in model.state_dict().items() if "prompt_providers" not in key}
    trainer = make_trainer(tmp_path / "run", whole, model, callbacks(), max_steps=4)
    trainer.train()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    weights = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert sum("prompt_providers" in key for key in weights) == 1
    assert (len(weights) == 1) == reduced

    (tmp_path / "run" / "checkpoint-4").rename(tmp_path / "last")
    resumed, other = patched(name, seed=2)
    make_trainer(tmp_path / "run", resumed, other, callbacks(), max_steps=4).train(resume_from_checkpoint=True)
    assert torch.equal(resumed.rows(), whole.rows())

    best, another = patched(name, seed=3)
    trainer = make_trainer(tmp_path / "best", best, another, callbacks(), **settings)
    trainer.train()
    stored = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    assert torch.equal(best.rows(), next(value for key, value in stored.items() if "prompt_providers" in key))

    trainer.save_model(str(tmp_path / "base"))
    assert not any("prompt" in key for key in load_file(tmp_path / "base" / "model.safetensors"))
    loaded, report = type(another).from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not report["unexpected_keys"]
    original = make_model(name)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in original.state_dict().items())


@pytest.mark.parametrize("reduced", [False, True], ids=["whole", "reduced"])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_network_and_several_prompts_are_checkpointed(tmp_path: Path, name: str, reduced: bool) -> None:
    def run(folder: Path, seed: int, resume: bool = False) -> dict[str, Tensor]:
        model = make_model(name)
        prompts = MultiPrompt(
            {
                "net": Prompt(PromptFormat(TEMPLATE), LSTMPromptProvider(seed=seed)),
                "rows": Prompt(PromptFormat(TEMPLATE), TensorPromptProvider("random", seed=seed)),
            }
        )
        prompts.patch(model, tiny_tokenizer())
        model.tokenizer = prompts.ctx.tokenizer
        callbacks = [FreezeTransformerUnfreezePrompt(), SavePretrainedPrompt(prompts)]
        callbacks += [ReduceCheckpoint()] if reduced else []

        def texts(word: str) -> str:
            return str(prompts("net" if len(word) % 2 else "rows", word))

        make_trainer(folder, texts, model, callbacks).train(resume_from_checkpoint=resume)
        return {key: prompt.rows() for key, prompt in prompts.prompts.items()}

    whole = run(tmp_path, 1)
    for key, rows in whole.items():
        assert torch.equal(Prompt.from_pretrained(tmp_path / "checkpoint-4" / key).rows(), rows)
    (tmp_path / "checkpoint-4").rename(tmp_path / "last")
    assert all(torch.equal(rows, whole[key]) for key, rows in run(tmp_path, 2, resume=True).items())


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_weights_in_several_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save = PreTrainedModel.save_pretrained
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *a, **k: save(*a, max_shard_size="20KB", **k))
    whole, model = patched(name)
    make_trainer(tmp_path, whole, model).train()
    assert len(list((tmp_path / "checkpoint-2").glob("model-*.safetensors"))) > 1
    (tmp_path / "checkpoint-4").rename(tmp_path / "last")
    resumed, other = patched(name, seed=2)
    make_trainer(tmp_path, resumed, other).train(resume_from_checkpoint=True)
    assert torch.equal(resumed.rows(), whole.rows())
    without = make_model(name)
    without.save_pretrained(tmp_path / "checkpoint-2")
    lost, another = patched(name, seed=3)
    with pytest.raises(CheckpointError, match="another prompt"):
        make_trainer(tmp_path, lost, another).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("name", ["t5", "llama_tied"])
def test_weights_only_checkpoints(tmp_path: Path, name: str) -> None:
    prompt, model = patched(name)
    make_trainer(tmp_path, prompt, model, save_only_model=True).train()
    weights = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert torch.equal(next(value for key, value in weights.items() if "prompt_providers" in key), prompt.rows())


def test_the_optimizer_holds_the_prompt_only(tmp_path: Path) -> None:
    """In a first run, in a second trainer of the same process that resumes, and in one made before the first ended."""
    prompt, model = patched("llama")
    before = trainable(model)
    assert len(before) > 1
    ours = {id(parameter) for parameter in prompt.provider.parameters()}
    early = make_trainer(tmp_path / "early", prompt, model)
    for steps in (2, 4):
        trainer = make_trainer(tmp_path / "run", prompt, model, max_steps=steps)
        assert trainable(model) == {name for name in before if "prompt_providers" in name}
        trainer.train(resume_from_checkpoint=steps > 2)
        assert held_by(trainer) == ours
        trainer.train()
    early.train()
    assert held_by(early) == ours
    assert trainable(model) == before


def test_what_was_frozen_before_stays_frozen(tmp_path: Path) -> None:
    prompt, model = patched()
    model.transformer.wpe.weight.requires_grad_(False)
    before = trainable(model)
    make_trainer(tmp_path, prompt, model).train()
    assert trainable(model) == before


@pytest.mark.parametrize("reduced", [False, True], ids=["whole", "reduced"])
@pytest.mark.parametrize("other", ["length", "provider", "several"])
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_checkpoint_of_another_prompt_is_refused(tmp_path: Path, name: str, other: str, reduced: bool) -> None:
    prompt, model = patched(name)
    callbacks = [FreezeTransformerUnfreezePrompt(), *([ReduceCheckpoint()] if reduced else [])]
    make_trainer(tmp_path, prompt, model, callbacks).train()
    if other == "several":
        model = make_model(name)
        texts: Any = MultiPrompt({key: Prompt(PromptFormat(TEMPLATE), TensorPromptProvider()) for key in "ab"})
        texts.patch(model, tiny_tokenizer())
        model.tokenizer, texts = texts.ctx.tokenizer, texts.prompts["a"]
    elif other == "provider":
        texts, model = patched(name, provider=LSTMPromptProvider())
    else:
        model, tokenizer = make_model(name), tiny_tokenizer()
        texts = Prompt(PromptFormat("<P*5>{text}"), TensorPromptProvider())
        texts.patch(model, tokenizer)
        model.tokenizer = tokenizer
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="another prompt.*expected the parameters"):
        make_trainer(tmp_path, texts, model, max_steps=6).train(resume_from_checkpoint=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_without_the_prompt_is_refused(tmp_path: Path) -> None:
    prompt, model = patched()
    make_trainer(tmp_path, prompt, model, callbacks=[]).train()
    with pytest.raises(CheckpointError, match="without FreezeTransformerUnfreezePrompt"):
        make_trainer(tmp_path, prompt, model, max_steps=6).train(resume_from_checkpoint=True)


def test_an_optimizer_that_is_given(tmp_path: Path) -> None:
    prompt, model = patched()
    optimizer = torch.optim.SGD(prompt.provider.parameters(), lr=0.1)
    rows = prompt.rows()
    make_trainer(tmp_path / "ours", prompt, model, optimizers=(optimizer, None)).train()
    assert not torch.equal(prompt.rows(), rows)
    state = trainable(model)
    for parameters in (model.parameters(), [nn.Parameter(torch.zeros(1))]):
        with pytest.raises(FrozenWeightsError, match="provider.parameters"):
            make_trainer(tmp_path / "all", prompt, model, optimizers=(torch.optim.SGD(parameters, lr=0.1), None))
        assert trainable(model) == state


def test_a_late_callback_is_told_from_one_in_time(tmp_path: Path) -> None:
    prompt, model = patched()
    late = make_trainer(tmp_path / "late", prompt, model, callbacks=[])
    late.add_callback(FreezeTransformerUnfreezePrompt())
    with pytest.raises(FrozenWeightsError, match="constructor"):
        late.train()
    freeze_model(model)
    frozen = make_trainer(tmp_path / "frozen", prompt, model, callbacks=[])
    frozen.add_callback(FreezeTransformerUnfreezePrompt())
    frozen.train()


def test_a_model_without_prompts_is_refused(tmp_path: Path) -> None:
    model = make_model("gpt2")
    model.tokenizer = tiny_tokenizer()
    with pytest.raises(FrozenWeightsError, match="no prompts"):
        make_trainer(tmp_path, lambda word: word, model).train()


class Breaking(nn.Module):
    """Rows that become NaN in the forward, or in the backward only, after some calls."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 32))
        self.where = where
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += self.training and torch.is_grad_enabled()
        if self.calls < 3:
            return self.table
        if self.where == "rows":
            return self.table * float("inf")
        rows = self.table * 1.0
        rows.register_hook(lambda gradient: gradient * float("nan"))
        return rows


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("where", ["rows", "gradient"])
def test_bad_numbers_stop_the_run(tmp_path: Path, name: str, where: str) -> None:
    prompt, model = patched(name, provider=Breaking(where))
    before = trainable(model)
    trainer = make_trainer(tmp_path, prompt, model, save_steps=1)
    with pytest.raises(DivergenceError, match="the loss is nan" if where == "rows" else "gradient"):
        trainer.train()
    table = next(prompt.provider.parameters())
    assert bool(torch.isfinite(table).all())
    assert not (tmp_path / f"checkpoint-{trainer.state.global_step + 1}").exists()
    assert trainable(model) == before
    assert not model._forward_hooks


class Spoiling(torch.optim.SGD):
    """An optimizer whose steps end at infinity."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.fill_(float("inf"))


def test_an_update_that_spoils_the_prompt_stops_the_run(tmp_path: Path) -> None:
    prompt, model = patched()
    optimizer = Spoiling(prompt.provider.parameters(), lr=0.1)
    with pytest.raises(DivergenceError, match="the update"):
        make_trainer(tmp_path, prompt, model, optimizers=(optimizer, None)).train()
    with pytest.raises(DivergenceError, match="expected finite rows"):
        SavePretrainedPrompt(prompt).on_save(
            TrainingArguments(str(tmp_path), use_cpu=True), tf.TrainerState(global_step=1), tf.TrainerControl()
        )


def test_labels_that_are_all_left_out_stop_the_run(tmp_path: Path) -> None:
    prompt, model = patched()
    trainer = make_trainer(tmp_path, prompt, model)
    trainer.data_collator = lambda rows: {**(batch := collate(rows)), "labels": batch["labels"].fill_(-100)}
    with pytest.raises(DivergenceError, match="the loss is nan"):
        trainer.train()
