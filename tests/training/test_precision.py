"""PromptTrainer over models in half precision: every kind of provider trains in float32, as over a float32 model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import sharp_model
from training.trainer_cases import TEMPLATE, logged, make_prompt, make_trainer

from ruprompt_fast import LSTMPromptProvider, MLPPromptProvider, PrefixTuningProvider, PromptEnsemble, Task
from ruprompt_fast.prompts import TensorPromptProvider

DEEP = "<P*4>{text}"

PROMPTS: dict[str, Callable[[], Any]] = {
    "tensor": make_prompt,
    "lstm": lambda: make_prompt(provider=LSTMPromptProvider(seed=1)),
    "residual": lambda: make_prompt(provider=MLPPromptProvider(residual=True, seed=1)),
    "prefix": lambda: make_prompt(template=DEEP, provider=PrefixTuningProvider(seed=1)),
    "prefix_mlp": lambda: make_prompt(template=DEEP, provider=PrefixTuningProvider(seed=1, hidden_dim=8)),
    "ensemble": lambda: PromptEnsemble.of(TEMPLATE, lambda seed: TensorPromptProvider(seed=seed), seeds=(1, 2)),
}


def losses(folder: Path, kind: str, dtype: torch.dtype, **settings: Any) -> list[float]:
    task = Task(DEEP if kind.startswith("prefix") else TEMPLATE, target="{target}")
    model = sharp_model("llama").to(dtype)
    trainer = make_trainer(folder, PROMPTS[kind](), model, task, learning_rate=0.005, max_steps=8, **settings)
    trainer.train()
    assert {value.dtype for value in trainer.trained.values()} == {torch.float32}
    return logged(trainer)


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_curves_are_those_over_a_float32_model(tmp_path: Path, kind: str) -> None:
    exact = losses(tmp_path / "exact", kind, torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert losses(tmp_path / str(dtype), kind, dtype) == pytest.approx(exact, rel=0.03)
    assert losses(tmp_path / "autocast", kind, torch.float32, bf16=True) == pytest.approx(exact, rel=0.03)
