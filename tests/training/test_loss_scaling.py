"""PromptTrainer in float16 with a scaled loss, as on a GPU; on the CPU accelerate's scaler is put in by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import sharp_model
from training.trainer_cases import logged, make_prompt, make_trainer
from transformers import TrainerCallback

from ruprompt_fast import LSTMPromptProvider
from ruprompt_fast.errors import DivergenceError
from ruprompt_fast.training import PromptTrainer

Scaled = Callable[..., PromptTrainer]


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Scaled:
    """Makes a trainer run as with ``fp16=True``, which accelerate refuses without a GPU."""

    def apply(trainer: PromptTrainer, scale: float = 2.0**16, growth_interval: int = 2000) -> PromptTrainer:
        accelerator = trainer.accelerator
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval)
        accelerator.native_amp = True
        monkeypatch.setitem(vars(accelerator.state), "_mixed_precision", "fp16")
        return trainer

    return apply


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("provider", [None, "lstm"])
def test_losses_are_those_of_float32(tmp_path: Path, scaled: Scaled, dtype: torch.dtype, provider: str | None) -> None:
    def prompt() -> Any:
        return make_prompt(provider=LSTMPromptProvider(seed=1) if provider else None)

    exact = make_trainer(tmp_path / "exact", prompt(), sharp_model("gpt2"), learning_rate=0.01)
    exact.train()
    half = scaled(make_trainer(tmp_path / "half", prompt(), sharp_model("gpt2").to(dtype), learning_rate=0.01))
    half.train()
    assert logged(half) == pytest.approx(logged(exact), rel=0.01)
    assert logged(half) != logged(exact)
    assert logged(half, "grad_norm") == pytest.approx(logged(exact, "grad_norm"), rel=0.1)
    assert {value.dtype for value in half.trained.values()} == {torch.float32}


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_a_step_that_overflows_is_skipped(tmp_path: Path, scaled: Scaled, optim: str, max_grad_norm: float) -> None:
    prompt = make_prompt()
    settings = {"max_steps": 16, "max_grad_norm": max_grad_norm, "optim": optim}
    trainer = scaled(make_trainer(tmp_path, prompt, **settings), scale=2.0**24)
    rows = [prompt.rows().clone()]
    trainer.add_callback(_AfterStep(lambda: rows.append(prompt.rows().clone())))
    trainer.train()
    skipped = sum(torch.equal(one, other) for one, other in pairwise(rows))
    assert 0 < skipped < 16
    assert trainer.accelerator.scaler.get_scale() == 2.0 ** (24 - skipped)
    assert all(one.isfinite().all() for one in rows)
    assert logged(trainer)[-1] < logged(trainer)[0]
    # A fused optimizer skips in its kernel, of which accelerate does not know.
    assert trainer.lr_scheduler.last_epoch == (16 if optim.endswith("fused") else 16 - skipped)


def test_evaluation_sees_the_rows_of_the_last_update(tmp_path: Path, scaled: Scaled) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    trainer = scaled(make_trainer(tmp_path, make_prompt(), eval_dataset=[{"text": "да", "target": "ад"}], **settings))
    trainer.train()
    assert len(set(logged(trainer, "eval_loss"))) == 3


def test_a_resumed_run_keeps_the_scale(tmp_path: Path, scaled: Scaled) -> None:
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}

    def trainer(prompt: Any, folder: Path) -> PromptTrainer:
        return scaled(make_trainer(folder, prompt, **settings), scale=2.0**10, growth_interval=3)

    whole, again = make_prompt(), make_prompt(2)
    trainer(whole, tmp_path).train()
    second = tmp_path / "checkpoint-8"
    second.rename(tmp_path / "other")
    resumed = trainer(again, tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.accelerator.scaler.get_scale() == 2.0**12
    assert torch.equal(again.rows(), whole.rows())


def test_a_loss_that_is_no_number_names_the_range_of_float16(tmp_path: Path, scaled: Scaled) -> None:
    model = sharp_model("gpt2").to(torch.float16)
    model.transformer.ln_f.weight.data.fill_(6e4)
    trainer = make_trainer(tmp_path, make_prompt(), model)
    with pytest.raises(DivergenceError, match=r"the loss is (nan|inf), and float16 ends at 65,504: .*float32"):
        scaled(trainer).train()


class _AfterStep(TrainerCallback):
    """Does something after every step."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()
