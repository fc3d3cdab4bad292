"""Training a prompt with transformers' own Trainer and our callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import make_prompt
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokenizer
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments, set_seed

from ruprompt_fast import (
    FreezeTransformerUnfreezePrompt,
    LSTMPromptProvider,
    MultiPrompt,
    Prompt,
    PromptFormat,
    ReduceCheckpoint,
    SavePretrainedPrompt,
    TensorPromptProvider,
    Text2TextPreprocessor,
)
from ruprompt_fast.callbacks import WBLogHydraConfig
from ruprompt_fast.errors import MissingDependencyError

ITEMS = [
    {"text": text, "target": text[::-1]} for text in ("привет", "мир", "да", "как дела", "ура", "снег", "лес", "я")
]


def train(
    folder: Path, prompt: Prompt, callbacks: list[Any], resume: bool = False, **settings: Any
) -> tuple[Trainer, dict[str, torch.Tensor]]:
    set_seed(0)
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    prompt.patch(model, tokenizer)
    preprocess = Text2TextPreprocessor(prompt.format, tokenizer, target_field="target")
    arguments = {"max_steps": 8, "save_steps": 4, "learning_rate": 0.05, "per_device_train_batch_size": 4, **settings}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), report_to=[], disable_tqdm=True, use_cpu=True, seed=0, **arguments
        ),
        train_dataset=[preprocess(item) for item in ITEMS],
        eval_dataset=[preprocess(item) for item in ITEMS],
        data_collator=preprocess.collate_fn(),
        callbacks=[FreezeTransformerUnfreezePrompt(), *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, frozen


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("provider", [TensorPromptProvider, LSTMPromptProvider])
def test_only_the_prompt_trains(tmp_path: Path, provider: type) -> None:
    prompt = Prompt(PromptFormat("<P*4>{text}<P*2>"), provider())
    trainer, frozen = train(
        tmp_path, prompt, [SavePretrainedPrompt(prompt)], logging_steps=4, max_steps=24, learning_rate=0.02
    )
    assert losses(trainer)[-1] < losses(trainer)[0]
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in prompt.provider.parameters()}
    saved = Prompt.from_pretrained(tmp_path / "checkpoint-24")
    assert torch.equal(saved.rows(), prompt.rows())


@pytest.mark.parametrize("more", [[], [ReduceCheckpoint()]], ids=["whole", "reduced"])
def test_checkpoints_resume_exactly(tmp_path: Path, more: list[Any]) -> None:
    whole = Prompt(PromptFormat("<P*4>{text}"), TensorPromptProvider(init="random", seed=1))
    trainer, _ = train(tmp_path / "whole", whole, more)
    weights = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert any("prompt_provider" in name for name in weights)
    assert (len(weights) == 1) == bool(more)
    trainer.model.save_pretrained(tmp_path / "base")
    assert not any("prompt" in name for name in load_file(tmp_path / "base" / "model.safetensors"))
    resumed = Prompt(PromptFormat("<P*4>{text}"), TensorPromptProvider(init="random", seed=2))
    (tmp_path / "whole" / "checkpoint-8").rename(tmp_path / "final")
    train(tmp_path / "whole", resumed, more, resume=True)
    assert torch.equal(resumed.rows(), whole.rows())


@pytest.mark.parametrize("more", [[], [ReduceCheckpoint()]], ids=["whole", "reduced"])
def test_best_checkpoint_is_reloaded(tmp_path: Path, more: list[Any]) -> None:
    prompt = Prompt(PromptFormat("<P*4>{text}"), TensorPromptProvider(init="random", seed=1))
    trainer, _ = train(
        tmp_path,
        prompt,
        more,
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        learning_rate=0.05,
    )
    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert torch.equal(prompt.rows(), next(value for name, value in best.items() if "prompt_provider" in name))


def test_evaluation_sees_every_update(tmp_path: Path) -> None:
    prompt = Prompt(PromptFormat("<P*4>{text}"), LSTMPromptProvider(seed=1))
    trainer, _ = train(tmp_path, prompt, [], eval_strategy="steps", eval_steps=2, learning_rate=0.05)
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(set(evaluated)) == len(evaluated) > 1


def test_multi_prompt_is_saved_by_key(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    prompts = {key: make_prompt("<P*3>{text}", model, tokenizer, seed) for seed, key in enumerate(["one", "two"])}
    callback = SavePretrainedPrompt(MultiPrompt(prompts))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_save(arguments, TrainerState(global_step=3), TrainerControl())
    for key, prompt in prompts.items():
        assert torch.equal(Prompt.from_pretrained(tmp_path / "checkpoint-3" / key).rows(), prompt.rows())


def test_missing_packages_are_named() -> None:
    with pytest.raises(MissingDependencyError, match="pip install"):
        WBLogHydraConfig({})
