"""A tiny task that the trainer's tests share: writing a text backwards."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from tiny_models import sharp_model, tiny_tokenizer
from transformers import PreTrainedModel, TrainingArguments

from ruprompt_fast import Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.training import PromptTrainer, Task

# accelerate collects garbage at the beginning of every run; the libraries' objects take it 0.4 s each time.
gc.freeze()

TEMPLATE = "<P*4>{text}<P*2>"
TASK = Task(TEMPLATE, target="{target}")
WORDS = ("привет", "мир", "да", "как дела", "ура", "снег", "лес", "я", "год", "дом у реки")
ROWS = [{"text": word, "target": word[::-1]} for word in WORDS]

CLASSES = {"1": " да", "0": "нет"}
CLASSIFICATION = Task(TEMPLATE, "classification", label_field="label", labels=CLASSES)
LABELLED = [{"text": word, "label": str(len(word) % 2)} for word in WORDS]


def make_prompt(seed: int = 1, template: str = TEMPLATE, provider: Any = None) -> Prompt:
    return Prompt(PromptFormat(template), TensorPromptProvider(seed=seed) if provider is None else provider)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    """Six steps of three rows, no checkpoints."""
    values = {
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
        **settings,
    }
    return TrainingArguments(str(folder), report_to=[], disable_tqdm=True, use_cpu=True, **values)


def make_trainer(
    folder: Path, prompt: Any, model: PreTrainedModel | None = None, task: Any = TASK, rows: Any = ROWS, **settings: Any
) -> PromptTrainer:
    """A trainer; ``settings`` are its own keywords, or training arguments."""
    own = {
        name: settings.pop(name)
        for name in ("eval_dataset", "callbacks", "divergence", "optimizers")
        if name in settings
    }
    return PromptTrainer(
        sharp_model("gpt2") if model is None else model,
        arguments(folder, **settings),
        prompt=prompt,
        task=task,
        tokenizer=tiny_tokenizer(),
        train_dataset=rows,
        **own,
    )


def logged(trainer: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
