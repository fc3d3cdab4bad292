"""On how many threads steps and evaluations compute, and that what is learnt does not depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import sharp_model
from tolerances import relative_error
from training.trainer_cases import ROWS, logged, make_prompt, make_trainer
from transformers import TrainerCallback

STEPS_ERROR = 1e-5


@pytest.fixture(autouse=True)
def own_number() -> Iterator[int]:
    """torch's number of threads, which every test gives back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


class Between(TrainerCallback):
    """Notes the number of threads between steps, and sets another before each if numbers are given."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.found: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.numbers:
            torch.set_num_threads(self.numbers[state.global_step % len(self.numbers)])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found.append(torch.get_num_threads())


@pytest.mark.parametrize("number", [1, 3])
def test_steps_take_no_more_than_the_callers_number_and_leave_it_alone(tmp_path: Path, number: int) -> None:
    model, between = sharp_model("gpt2"), Between()
    inside: list[int] = []
    trainer = make_trainer(
        tmp_path, make_prompt(), model, eval_dataset=ROWS, callbacks=[between], per_device_eval_batch_size=4
    )
    with model.register_forward_hook(lambda *_: inside.append(torch.get_num_threads())):
        torch.set_num_threads(number)
        trainer.train()
        trainer.evaluate()
    assert len(inside) == 6 + 3
    assert all(1 <= found <= number for found in inside)
    assert [*between.found, torch.get_num_threads()] == [number] * 7


def test_what_is_learnt_does_not_depend_on_the_number(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone, changing = make_prompt(), make_prompt()
    expected = make_trainer(tmp_path / "alone", alone)
    expected.train()
    trainer = make_trainer(tmp_path / "changing", changing, callbacks=[Between(1, 2, 3)])
    trainer.train()
    assert logged(trainer) == pytest.approx(logged(expected), rel=STEPS_ERROR)
    assert relative_error(changing.rows(), alone.rows()) < STEPS_ERROR


def test_a_step_that_fails_gives_the_number_back(tmp_path: Path) -> None:
    model = sharp_model("gpt2")

    def fail(*_: Any) -> None:
        raise ValueError("no")

    trainer = make_trainer(tmp_path, make_prompt(), model)
    torch.set_num_threads(2)
    with model.register_forward_hook(fail), pytest.raises(ValueError, match="no"):
        trainer.train()
    assert torch.get_num_threads() == 2
