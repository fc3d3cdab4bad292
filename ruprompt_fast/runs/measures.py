"""The figures of a run: losses, accuracy, time and speed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerCallback

from ruprompt_fast.runs.data.rows import Rows
from ruprompt_fast.training.manifest import step_of

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.training.datasets import EncodedDataset
    from ruprompt_fast.training.trainer import PromptTrainer

_SHOWN_BEFORE = ("eval_loss", "eval_accuracy")

TRAIN_LOSS_FRACTION = 0.1
"""The training loss of a run is the mean over this last part of its steps."""


class Clock(TrainerCallback):
    """Adds the seconds since the beginning of the run to every entry of the log, over interruptions.

    Attributes:
        seconds: those of the last entry, in a finished run of its end.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count, from what the log of an interrupted run says."""
        self._started = time.monotonic() - seconds_of(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time of an entry."""
        if self._started is not None:
            self.seconds = time.monotonic() - self._started
            state.log_history[-1]["seconds"] = round(self.seconds, 3)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop: what is evaluated later is not training."""
        if self._started is not None:
            self.seconds = time.monotonic() - self._started
            self._started = None


class FirstSteps(TrainerCallback):
    """Logs every step before the first regular entry of the log, where a prompt changes most."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for an entry."""
        if state.global_step < state.logging_steps:
            control.should_log = True


def seconds_of(state: TrainerState) -> float:
    """The seconds up to the last entry of the log."""
    return max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)


def figures_of(
    trainer: PromptTrainer, seconds: float, train_rows: Rows, validation_rows: Rows | None
) -> dict[str, float]:
    """The figures of a run whose training is over; evaluates the prompt as it is now, unless the run did so.

    Returns:
        ``train_loss``, the mean over the last steps, and ``eval_loss``, in nats per token (per sample for a
        classification, with ``eval_accuracy``), and these before the first step as ``eval_loss_before`` and
        ``eval_accuracy_before``; ``steps``, ``seconds`` of training, validations included;
        ``tokens_per_second`` of data, which prompt rows are not; ``train_rows``, ``validation_rows``, ``skipped_rows``.
    """
    state = trainer.state
    losses = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
    first = (1 - TRAIN_LOSS_FRACTION) * state.global_step
    last = [loss for step, loss in losses if step > first]
    tokens = _tokens_of_an_epoch(trainer) * float(state.epoch or 0.0)
    figures = {"train_loss": sum(last) / len(last)} if last else {}
    if validation_rows is not None:
        before = _quality(_validation(trainer, 0) or {})
        figures |= _quality(_validation(trainer, _step_of_prompt(trainer)) or trainer.evaluate())
        figures |= {f"{name}_before": before[name] for name in _SHOWN_BEFORE if name in before}
    return figures | {
        "steps": state.global_step,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "train_rows": len(train_rows.rows),
        "validation_rows": 0 if validation_rows is None else len(validation_rows.rows),
        "skipped_rows": num_skipped(train_rows, validation_rows),
    }


def _step_of_prompt(trainer: PromptTrainer) -> int | None:
    """The step that the prompt is of now: the best one that was saved, or the last."""
    best = trainer.state.best_model_checkpoint
    return step_of(Path(best)) if trainer.args.load_best_model_at_end and best else trainer.state.global_step


def _validation(trainer: PromptTrainer, step: int | None) -> dict[str, Any] | None:
    """What the log says of the validation at a step, if there was one."""
    return next((entry for entry in trainer.state.log_history if entry["step"] == step and "eval_loss" in entry), None)


def _quality(measured: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if name.endswith(("_loss", "_accuracy"))}


def num_skipped(train_rows: Rows, validation_rows: Rows | None) -> int:
    """How many broken rows were left out."""
    return len(train_rows.bad) + (0 if validation_rows is None else len(validation_rows.bad))


def _tokens_of_an_epoch(trainer: PromptTrainer) -> int:
    """Tokens of all rows of the data, each counted once however many prompts train on it."""
    embedding = cast("SplicedEmbedding", cast(Any, trainer.model).get_input_embeddings())
    dataset = cast("EncodedDataset", trainer.train_dataset)
    return sum(sum(token < embedding.first_prompt_id for token in item[0]["input_ids"]) for item in dataset.items)
