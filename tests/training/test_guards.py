"""What must stop a run: frozen weights that train, numbers that are none, losses that run away, bad settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import sharp_model, tiny_tokenizer
from torch import nn
from training.trainer_cases import (
    CLASSIFICATION,
    LABELLED,
    ROWS,
    TASK,
    make_prompt,
    make_trainer,
)
from transformers import TrainerCallback

from ruprompt_fast import Prompt
from ruprompt_fast.embedding import SplicedEmbedding
from ruprompt_fast.errors import (
    ContextLengthError,
    DetachedModelError,
    DivergenceError,
    DuplicatePromptError,
    FrozenWeightsError,
    MissingFieldError,
    PromptInitError,
    PromptMismatchError,
    SettingError,
    TaskError,
    TrainingDataError,
    UnsupportedModelError,
)
from ruprompt_fast.prompts import PrefixTuningProvider
from ruprompt_fast.training import DivergenceGuard, PromptTrainer, Task
from ruprompt_fast.training.arguments import CHECKPOINTING


class At(TrainerCallback):
    """Does something at the beginning of a step."""

    def __init__(self, step: int, action: Callable[[nn.Module], object]) -> None:
        self.step = step
        self.action = action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action(kwargs["model"])


def final_norm(model: Any) -> nn.LayerNorm:
    return model.transformer.ln_f


@pytest.mark.parametrize(
    "unfreeze",
    [
        lambda model: final_norm(model).weight.requires_grad_(True),
        lambda model: setattr(final_norm(model).bias, "grad", torch.zeros(32)),
    ],
    ids=["set to train", "gradient"],
)
def test_an_unfrozen_weight_stops_the_run(tmp_path: Path, unfreeze: Callable[[nn.Module], object]) -> None:
    trainer = make_trainer(tmp_path, make_prompt(), callbacks=[At(2, unfreeze)])
    with pytest.raises(FrozenWeightsError, match=r"transformer\.ln_f\."):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_foreign_optimizer_is_refused(tmp_path: Path) -> None:
    model, prompt = sharp_model("gpt2"), make_prompt()
    prompt.initialize(model, tiny_tokenizer())
    good = torch.optim.SGD(prompt.provider.parameters(), lr=0.5)
    start = prompt.rows()
    make_trainer(tmp_path, prompt, model, optimizers=(good, None)).train()
    assert not torch.equal(prompt.rows(), start)
    bad = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(FrozenWeightsError, match="optimizer"):
        make_trainer(tmp_path, prompt, model, optimizers=(bad, None))


def poison_loss(model: Any) -> None:
    with torch.no_grad():
        final_norm(model).weight.fill_(math.nan)


def poison_gradient(model: Any) -> None:
    rows = next(value for name, value in model.named_parameters() if "prompt_provider" in name)
    rows.register_hook(lambda grad: grad * math.inf)


@pytest.mark.parametrize(
    ("poison", "problem"), [(poison_loss, "the loss is nan"), (poison_gradient, "a gradient")], ids=["loss", "gradient"]
)
def test_numbers_that_are_none_stop_the_run(
    tmp_path: Path, poison: Callable[[nn.Module], object], problem: str
) -> None:
    prompt, before = make_prompt(), []
    remember = At(3, lambda _: before.append(prompt.rows()))
    trainer = make_trainer(tmp_path, prompt, callbacks=[remember, At(3, poison)], logging_nan_inf_filter=True)
    with pytest.raises(DivergenceError, match=f"step 3: {problem}.*last_good.*learning_rate"):
        trainer.train()
    assert bool(torch.isfinite(prompt.rows()).all())
    assert torch.equal(Prompt.from_pretrained(tmp_path / "last_good").rows(), prompt.rows())
    assert all(parameter.grad is None for parameter in prompt.provider.parameters())
    assert not any(module.training for module in trainer.network.modules())


def test_a_diverging_loss_brings_the_good_prompt_back(tmp_path: Path) -> None:
    def exaggerate(model: Any) -> None:
        with torch.no_grad():
            final_norm(model).weight.mul_(30)

    class Record(TrainerCallback):
        rows: list[torch.Tensor]

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.rows.append(prompt.rows())

    prompt, record = make_prompt(), Record()
    record.rows = []
    guard = DivergenceGuard(window=4, patience=5)
    callbacks = [record, At(25, exaggerate)]
    trainer = make_trainer(tmp_path, prompt, max_steps=100, callbacks=callbacks, divergence=guard)
    with pytest.raises(DivergenceError, match="run away.*is that of step 2[0-5] again"):
        trainer.train()
    assert 29 <= trainer.state.global_step < 40
    assert any(torch.equal(prompt.rows(), rows) for rows in record.rows[20:26])
    assert torch.equal(Prompt.from_pretrained(tmp_path / "last_good").rows(), prompt.rows())


def test_noise_and_a_rough_start_pass() -> None:
    guard = DivergenceGuard()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1000, generator=generator)
    for step, value in enumerate(noise.tolist()):
        guard.observe(9.0 * math.exp(-step / 50) + 0.01 + value)
        assert not guard.has_diverged
    for _ in range(200):
        guard.observe(9.0)
    assert guard.has_diverged
    guard.reset()
    guard.observe(9.0)
    assert not guard.has_diverged


@pytest.mark.parametrize("values", [{"window": 0}, {"patience": 0}, {"ratio": 0.9}, {"margin": -1}])
def test_guards_that_cannot_work_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(values))):
        DivergenceGuard(**values)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"auto_find_batch_size": True},
        {"push_to_hub": True},
        {"bf16_full_eval": True},
        {"train_sampling_strategy": "batch_rebalance"},
        {"ignore_data_skip": True},
        {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"use_seedable_sampler": False}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_unsupported_arguments_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        make_trainer(tmp_path, make_prompt(), **settings)


def test_what_a_model_cannot_do_is_refused(tmp_path: Path) -> None:
    class NoLayers(nn.Module):
        pass

    with pytest.raises(SettingError, match="GradientCheckpointingLayer"):
        make_trainer(tmp_path, make_prompt(), NoLayers(), **{CHECKPOINTING: True})
    with pytest.raises(SettingError, match="compute_metrics"):
        PromptTrainer(
            sharp_model("gpt2"), prompt=make_prompt(), task=TASK, tokenizer=tiny_tokenizer(), compute_metrics=len
        )


OTHER = Task("<P*3>{text}", target="{target}")
BAD_RUNS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another template": ({"task": OTHER}, TaskError, r"<P\*4>"),
    "no rows": ({"rows": []}, TrainingDataError, "train_dataset"),
    "a stream": ({"rows": iter(ROWS)}, TrainingDataError, "stream"),
    "a missing column": ({"rows": [*ROWS, {"text": "да"}]}, MissingFieldError, "row 10.*'target'"),
    "too long": ({"rows": [{"text": "а" * 200, "target": "б"}]}, ContextLengthError, "row 0"),
    "a bad evaluation row": ({"eval_dataset": [{"target": "да"}]}, MissingFieldError, "'text'"),
    "rows by name": ({"rows": {"x": ROWS}}, TaskError, "train_dataset"),
    "tasks by name": ({"task": {"x": TASK}}, TaskError, "one Task"),
    "no evaluation data": ({"eval_strategy": "steps", "eval_steps": 1}, ValueError, "eval_dataset"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_runs_change_nothing(tmp_path: Path, name: str) -> None:
    settings, error, message = BAD_RUNS[name]
    model = sharp_model("gpt2")
    embedding = model.get_input_embeddings()
    with pytest.raises(error, match=message):
        make_trainer(tmp_path / "run", make_prompt(), model, **settings)
    assert model.get_input_embeddings() is embedding
    assert not (tmp_path / "run").exists()


def test_prompts_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    two = {"a": make_prompt(1), "b": make_prompt(2)}
    with pytest.raises(TaskError, match=r"one objective.*classification.*text2text"):
        make_trainer(tmp_path, two, task={"a": TASK, "b": CLASSIFICATION}, rows={"a": ROWS, "b": LABELLED})
    with pytest.raises(TaskError, match=r"'a', 'b'.*'a'"):
        make_trainer(tmp_path, two, task={"a": TASK}, rows={"a": ROWS, "b": ROWS})
    with pytest.raises(TaskError, match="train_dataset must be a mapping"):
        make_trainer(tmp_path, two)
    with pytest.raises(MissingFieldError, match="prompt 'b'.*row 1"):
        make_trainer(tmp_path, two, rows={"a": ROWS, "b": [ROWS[0], {}]})
    with pytest.raises(DuplicatePromptError, match="share"):
        make_trainer(tmp_path, {"a": two["a"], "b": two["a"]}, rows={"a": ROWS, "b": ROWS})
    for nothing in ({}, [two["a"]], {"a": "folder"}):
        with pytest.raises(PromptInitError):
            make_trainer(tmp_path, nothing)


@pytest.mark.parametrize("name", ["", "../x", "/x", "a//b"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptInitError, match="name"):
        make_trainer(tmp_path, {name: make_prompt()}, task={name: TASK}, rows={name: ROWS})


def test_a_prompt_for_another_model_is_refused(tmp_path: Path) -> None:
    prompt = make_prompt()
    prompt.initialize(sharp_model("gpt2"), tiny_tokenizer())
    narrow = sharp_model("opt")  # its embedding is 16 wide
    with pytest.raises(PromptMismatchError):
        make_trainer(tmp_path, prompt, narrow)
    assert not isinstance(narrow.get_input_embeddings(), SplicedEmbedding)


def test_a_trainer_without_rows_only_evaluates(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_prompt(), rows=None, eval_dataset=ROWS)
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(TrainingDataError, match="train_dataset"):
        trainer.train()
    with pytest.raises(TrainingDataError, match="eval_dataset"):
        make_trainer(tmp_path, make_prompt()).evaluate()
    with pytest.raises(SettingError, match="hyperparameter"):
        make_trainer(tmp_path, make_prompt()).train(trial=object())


def test_a_trainer_whose_place_was_taken_stops(tmp_path: Path) -> None:
    model, prompts = sharp_model("gpt2"), [make_prompt(1), make_prompt(2)]
    first = make_trainer(tmp_path, prompts[0], model, eval_dataset=ROWS)
    second = make_trainer(tmp_path, prompts[1], model, eval_dataset=ROWS)
    before = second.evaluate()["eval_loss"]
    for use in (first.train, first.evaluate):
        with pytest.raises(DetachedModelError, match="another trainer"):
            use()
    assert second.evaluate()["eval_loss"] == before


def test_a_refused_model_keeps_its_cache_setting(tmp_path: Path) -> None:
    model, template = sharp_model("gptj"), "<P*3>{text}"
    with pytest.raises(UnsupportedModelError):
        make_trainer(
            tmp_path,
            make_prompt(template=template, provider=PrefixTuningProvider()),
            model,
            Task(template, target="{target}"),
        )
    assert model.config.use_cache
