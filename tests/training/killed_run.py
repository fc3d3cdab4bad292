"""A training run that is killed again and again, and always resumed; a program, so that it may die.

    killed_run.py FOLDER SEED KILLS

It trains once undisturbed into FOLDER/whole. Then it trains into FOLDER/killed, where every attempt but the last is
killed with SIGKILL, half of them at a random operation on a file, half after a random time, and prints how many were.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_models import sharp_model, tiny_tokenizer
from torch import nn
from training.trainer_cases import ROWS, TASK, arguments

from ruprompt_fast import LSTMPromptProvider, Prompt, PromptFormat
from ruprompt_fast.prompts import ModulePromptProvider
from ruprompt_fast.training import PromptTrainer

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


class NoisyRows(nn.Module):
    """Rows with dropout, which draws from the global generator at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(6, 32))
        self.dropout = nn.Dropout(0.2)

    def forward(self) -> torch.Tensor:
        return self.dropout(self.rows + 1.0)


def train(folder: Path) -> None:
    """The run: two prompts, shuffled, accumulated, evaluated, the best one kept."""
    prompts = {
        "lstm": Prompt(PromptFormat(TASK.template), LSTMPromptProvider(hidden_dim=8)),
        "noisy": Prompt(PromptFormat(TASK.template), ModulePromptProvider(NoisyRows())),
    }
    args = arguments(
        folder,
        max_steps=9,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        learning_rate=0.1,
    )
    rows: dict[str, Any] = dict.fromkeys(prompts, ROWS)
    trainer = PromptTrainer(
        sharp_model("gpt2"),
        args,
        prompt=prompts,
        task=TASK,
        tokenizer=tiny_tokenizer(),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(folder / "final"))


def die_at(folder: Path, event: int) -> None:
    """Have this process killed at its ``event``-th operation on a file in ``folder``."""
    count = 0

    def hook(name: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        if name in FILE_EVENTS and str(values[0]).startswith(str(folder)):
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(folder: Path, event: int | None = None, seconds: float | None = None) -> bool:
    """Train in a child of this process; returns whether it got to the end.

    Args:
        folder: where it trains.
        event: it kills itself at this file event.
        seconds: the system kills it after so much processor time of its own, whatever else the machine does.
    """
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        if event is not None:
            die_at(folder, event)
        if seconds is not None:
            signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            train(folder)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("the run failed by itself")
    return os.WIFEXITED(status)


def main() -> None:
    folder, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    attempt(folder / "whole")
    used = os.times()
    seconds = used.children_user + used.children_system
    rng = random.Random(seed)
    killed = 0
    for number in range(kills):
        if number % 2:
            done = attempt(folder / "killed", seconds=rng.uniform(0.1, 0.5) * seconds)
        else:
            done = attempt(folder / "killed", event=rng.randint(1, 60))
        killed += not done
        if done and number + 1 < kills:  # it was faster than thought: there is nothing left to kill
            shutil.rmtree(folder / "killed")
    if not attempt(folder / "killed"):
        raise SystemExit("the last attempt was killed")
    print(killed)


if __name__ == "__main__":
    main()
