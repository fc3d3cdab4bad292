"""Recipes: every provider and optimizer has one, and it becomes training arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import sharp_model, tiny_tokenizer
from torch import nn
from training.trainer_cases import ROWS, TASK, logged, make_prompt, make_trainer
from transformers import TrainingArguments

from ruprompt_fast import LSTMPromptProvider, MLPPromptProvider, TensorPromptProvider
from ruprompt_fast.errors import SettingError, UnknownArgumentError
from ruprompt_fast.prompts import PrefixTuningProvider
from ruprompt_fast.training import RECIPES, PromptTrainer, Recipe, recipe_for
from ruprompt_fast.training.recipes import provider_kind

PROVIDERS: dict[str, nn.Module] = {
    "tensor": TensorPromptProvider(),
    "lstm": LSTMPromptProvider(),
    "mlp": MLPPromptProvider(),
    "mlp_residual": MLPPromptProvider(residual=True),
    "prefix": PrefixTuningProvider(),
    "prefix_mlp": PrefixTuningProvider(hidden_dim=16),
    "module": nn.Linear(2, 2),
}


@pytest.mark.parametrize("kind", PROVIDERS)
def test_every_provider_has_recipes(kind: str, tmp_path: Path) -> None:
    assert provider_kind(PROVIDERS[kind]) == kind
    for optim in ("adamw", "adafactor"):
        recipe = recipe_for(PROVIDERS[kind], optim)
        assert recipe is RECIPES[kind, optim]
        args = TrainingArguments(str(tmp_path), use_cpu=True, **recipe.arguments(max_steps=200))
        assert args.learning_rate == recipe.learning_rate
        assert args.get_warmup_steps(200) == 10


@pytest.mark.parametrize("optim", ["adamw", "adafactor"])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_recipes_train(tmp_path: Path, optim: str, schedule: str) -> None:
    settings = Recipe(0.05, optim=optim, schedule=schedule).arguments(max_steps=30, per_device_train_batch_size=5)
    settings.pop("report_to")
    trainer = make_trainer(tmp_path, make_prompt(), **settings)
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]
    rates = logged(trainer, "learning_rate")
    assert max(rates) == pytest.approx(0.05)
    assert rates[0] < rates[2]  # warm-up
    assert (rates[-1] == pytest.approx(0.05)) == (schedule == "constant")


def test_without_arguments_the_recipe_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer, prompt = sharp_model("gpt2"), tiny_tokenizer(), make_prompt()
    trainer = PromptTrainer(model, prompt=prompt, task=TASK, tokenizer=tokenizer, train_dataset=ROWS)
    assert trainer.args.learning_rate == recipe_for(prompt.provider).learning_rate
    assert trainer.args.max_steps == 400


def test_bad_requests_are_named() -> None:
    recipe = recipe_for(TensorPromptProvider())
    with pytest.raises(UnknownArgumentError, match="learning_rates.*'learning_rate'"):
        recipe.arguments(learning_rates=1)
    with pytest.raises(SettingError, match="max_steps"):
        recipe.arguments(max_steps=0)
    with pytest.raises(SettingError, match="num_train_epochs"):
        recipe.arguments(num_train_epochs=3)
    with pytest.raises(SettingError, match="adagrad"):
        recipe_for(TensorPromptProvider(), "adagrad")
