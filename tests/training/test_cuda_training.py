"""PromptTrainer on a CUDA device: loss and gradients are the CPU's, in every precision, without waits in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ops.shared_prefix_cases import MIXED, Case
from tiny_models import sharp_model, tiny_tokenizer
from tolerances import GRADIENT_ERROR, LOSS_ERROR, assert_close, relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from training.trainer_cases import CLASSIFICATION, LABELLED, ROWS, TASK, logged, make_prompt
from transformers import TrainingArguments

from ruprompt_fast import Prompt
from ruprompt_fast.ops import shared_prefix_attention, shared_prefix_attention_reference
from ruprompt_fast.training import PromptTrainer

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

HAS_BF16 = torch.cuda.get_device_capability() >= (8, 0)
HALF = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not HAS_BF16, reason="needs sm_80"))]
# Of attention and its gradients in half precision, against float64: sums of weights that were rounded once more.
HALF_ERROR = {torch.float16: 2**-8, torch.bfloat16: 2**-5}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("dim", [64, 96, 36])
@pytest.mark.parametrize("settings", [{}, {"sliding_window": 7}, {"softcap": 9.0}], ids=str)
@pytest.mark.parametrize("backend", [None, SDPBackend.EFFICIENT_ATTENTION])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_attention_and_its_gradients(
    dtype: torch.dtype, backend: SDPBackend | None, settings: dict[str, float], dim: int, heads: tuple[int, int]
) -> None:
    case, exact = Case(MIXED, heads, dtype, dim, device="cuda"), Case(MIXED, heads, torch.float64, dim)
    for leaf, rounded in zip(exact.leaves, case.leaves, strict=True):
        leaf.data.copy_(rounded)
    expected = exact.run(shared_prefix_attention_reference, **settings)
    with nullcontext() if backend is None else sdpa_kernel([backend, SDPBackend.MATH]):
        actual = case.run(shared_prefix_attention, **settings)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one.cpu(), other, {torch.float32: 1e-5, **HALF_ERROR})


def test_attention_waits_for_nothing() -> None:
    case = Case(MIXED, (4, 4), torch.float16, 64, device="cuda")
    case.run(shared_prefix_attention)
    without_waiting(lambda: case.run(shared_prefix_attention))


def make_trainer(
    folder: Path, device: str, dtype: torch.dtype = torch.float32, prompt: Prompt | None = None, **settings: Any
) -> PromptTrainer:
    task, rows = settings.pop("task", TASK), settings.pop("rows", ROWS)
    values = {"max_steps": 6, "per_device_train_batch_size": 3, "learning_rate": 0.01, "logging_steps": 1, "seed": 3}
    values |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": device == "cpu", **settings}
    return PromptTrainer(
        sharp_model("gpt2").to(dtype),
        TrainingArguments(str(folder), **values),
        prompt=make_prompt() if prompt is None else prompt,
        task=task,
        tokenizer=tiny_tokenizer(),
        train_dataset=rows,
        eval_dataset=rows,
    )


def loss_and_gradient(trainer: PromptTrainer) -> tuple[float, torch.Tensor]:
    batch = trainer.runner.collate([example for item in trainer.train_dataset.items for example in item])
    with trainer.runner.routing():
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        loss.backward()
    return float(loss.detach()), next(iter(trainer.trained.values())).grad.cpu()


@pytest.mark.parametrize("classes", [False, True])
def test_loss_and_gradient_are_those_of_the_cpu(tmp_path: Path, classes: bool) -> None:
    data: dict[str, Any] = {"task": CLASSIFICATION, "rows": LABELLED} if classes else {}
    (loss, grad), (expected, expected_grad) = (
        loss_and_gradient(make_trainer(tmp_path, device, **data)) for device in ("cuda", "cpu")
    )
    assert loss == pytest.approx(expected, rel=LOSS_ERROR[torch.float32])
    assert relative_error(grad, expected_grad) <= 10 * GRADIENT_ERROR[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_float16_trains_with_a_scaled_loss(tmp_path: Path, dtype: torch.dtype) -> None:
    check_half(tmp_path, dtype, fp16=True)


@pytest.mark.skipif(not HAS_BF16, reason="needs sm_80")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_trains(tmp_path: Path, dtype: torch.dtype) -> None:
    check_half(tmp_path, dtype, bf16=True)


def check_half(folder: Path, dtype: torch.dtype, **settings: bool) -> None:
    prompt = make_prompt()
    half = make_trainer(folder / "half", "cuda", dtype, prompt, max_steps=20, **settings)
    half.train()
    exact = make_trainer(folder / "exact", "cpu", max_steps=20)
    exact.train()
    assert half.runner.name == "packed"
    assert logged(half) == pytest.approx(logged(exact), rel=0.03)
    assert {value.dtype for value in half.trained.values()} == {torch.float32}
    assert prompt.rows().isfinite().all()
    assert half.evaluate()["eval_loss"] == pytest.approx(exact.evaluate()["eval_loss"], rel=0.03)


@pytest.mark.parametrize("classes", [False, True])
def test_forward_and_backward_wait_for_nothing(tmp_path: Path, classes: bool) -> None:
    data: dict[str, Any] = {"task": CLASSIFICATION, "rows": LABELLED} if classes else {}
    trainer = make_trainer(tmp_path, "cuda", torch.float16, **data)
    batch = trainer._prepare_inputs(trainer.runner.collate([item[0] for item in trainer.train_dataset.items]))

    def step() -> None:
        with trainer.runner.routing():
            trainer.compute_loss(trainer.model, batch).backward()

    step()
    without_waiting(step)


def without_waiting(run: Callable[[], object]) -> None:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
