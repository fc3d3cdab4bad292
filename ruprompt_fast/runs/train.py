"""Training a prompt from a configuration: everything is checked first, then trained, then written to a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from ruprompt_fast.embedding import detach_prompts
from ruprompt_fast.file_writer import write_text
from ruprompt_fast.prompts import Prompt
from ruprompt_fast.prompts.ensemble import PromptEnsemble, load_prompt, members_of
from ruprompt_fast.runs.artifacts import (
    CARD_FILE,
    begin,
    check_output,
    claimed_output,
    draw_curve,
    is_extended,
    is_finished,
    read_metrics,
    write_history,
    write_metrics,
)
from ruprompt_fast.runs.card import TrainedPrompt, model_card
from ruprompt_fast.runs.config import TrainConfig
from ruprompt_fast.runs.data.rows import Rows
from ruprompt_fast.runs.measures import Clock, FirstSteps, figures_of, seconds_of
from ruprompt_fast.runs.settings import check_packages, recipe_of, training_arguments
from ruprompt_fast.runs.start import fitting_data, load_data, load_frozen, make_prompt
from ruprompt_fast.training.trainer import PromptTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """A finished run.

    Attributes:
        folder: the output folder.
        prompt: the prompt, or the ensemble.
        metrics: the figures, see :func:`~ruprompt_fast.runs.measures.figures_of`.
        seconds: how long training took, that of interrupted parts included.
    """

    folder: Path
    prompt: Prompt | PromptEnsemble
    metrics: dict[str, float]
    seconds: float


def train(config: TrainConfig) -> TrainOutcome:
    """Train a prompt and write it to a folder, with its figures, its curve and its card.

    Whatever can be checked without the model is checked before it is loaded, and the rest before anything is computed.
    An interrupted run is continued with ``config.resume``, to the same prompt; for a finished one its result is
    returned, unless the configuration has more steps: then training goes on from its last step, with a schedule of the
    learning rate for all of them.

    Raises:
        OutputExistsError: the folder exists, and ``resume`` is not set.
        OutputInUseError: another run writes there now.
        ConfigError, PromptInitError, TemplateError: the configuration cannot work.
        TrainingDataError, MissingFieldError, LabelError, ContextLengthError: the rows, or one of them, cannot be used.
        CheckpointError: the folder to resume is of another run.
        DivergenceError: the loss is not a number, or ran away.
        MissingDependencyError: a package of the extra ``train`` is not installed.
    """
    return _in_its_folder(config, partial(_load_and_train, config))


def train_prompt(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Rows,
    validation_rows: Rows | None = None,
    *,
    is_quiet: bool = False,
) -> TrainOutcome:
    """The part of :func:`train` after loading, for runs that share a model and its data.

    Args:
        config: the configuration; its ``model`` and ``data`` are only written down.
        model: the frozen model; when the function returns or raises, no prompt is attached to it.
        tokenizer: its tokenizer.
        train_rows: what to train on.
        validation_rows: what to validate on.
        is_quiet: whether to show no progress bars and print no logs.

    Raises:
        See :func:`train`.
    """
    return _in_its_folder(config, partial(_train, config, model, tokenizer, train_rows, validation_rows, is_quiet))


def load_to_train(config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen model and its tokenizer, on the first GPU that the process sees or, under torchrun, on its own.

    Raises:
        ConfigError: see :func:`~ruprompt_fast.runs.start.load_frozen`.
    """
    device = config.model.device
    if device != "cpu" and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return load_frozen(replace(config.model, device=device))


def _in_its_folder(config: TrainConfig, run: Callable[[], TrainOutcome]) -> TrainOutcome:
    """What a run gives in a folder that is its own; of one that was finished before, what it left there."""
    with _claimed(config):
        return finished_run(config) if _is_known(config) else run()


def _load_and_train(config: TrainConfig) -> TrainOutcome:
    check_packages(config)
    make_prompt(config)
    train_rows, validation_rows = load_data(config.data, config.task)
    model, tokenizer = load_to_train(config)
    if config.data.on_bad_row == "skip":
        train_rows, validation_rows = fitting_data(config, model, tokenizer, train_rows, validation_rows)
    return _train(config, model, tokenizer, train_rows, validation_rows)


def _train(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Rows,
    validation_rows: Rows | None,
    is_quiet: bool = False,
) -> TrainOutcome:
    """:func:`train_prompt` in a folder that is its own."""
    folder = Path(config.output)
    prompt = make_prompt(config)
    recipe = recipe_of(config, members_of(prompt)[0].provider)
    clock = Clock()
    callbacks: list[TrainerCallback] = [clock, FirstSteps()]
    if config.optimization.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(config.optimization.early_stopping_patience))
    try:
        trainer = PromptTrainer(
            model,
            training_arguments(
                config,
                recipe,
                is_on_cpu=model.device.type == "cpu",
                validates=validation_rows is not None,
                is_quiet=is_quiet,
            ),
            prompt=prompt,
            task=config.task,
            tokenizer=tokenizer,
            train_dataset=train_rows.rows,
            eval_dataset=None if validation_rows is None else validation_rows.rows,
            callbacks=callbacks,
        )
        if is_quiet:
            trainer.remove_callback(PrinterCallback)
        if is_main_process():
            begin(folder, config)
        trainer.train(resume_from_checkpoint=config.resume)
        history = list(trainer.state.log_history)
        metrics = figures_of(trainer, clock.seconds or seconds_of(trainer.state), train_rows, validation_rows)
        if config.optimization.eval_steps is None:
            history = trainer.state.log_history  # with the last validation
        if is_main_process():
            num_parameters = sum(parameter.numel() for parameter in trainer.trained.values())
            _write(TrainedPrompt(config, recipe, metrics, num_parameters, trainer.runner.name, prompt), history)
    finally:
        detach_prompts(model)
    if metrics["skipped_rows"] and is_main_process():
        _logger.warning("%s: %d broken rows of the data were skipped.", folder, metrics["skipped_rows"])
    return TrainOutcome(folder, prompt, metrics, metrics["seconds"])


def finished_run(config: TrainConfig) -> TrainOutcome:
    """What a finished run left in its folder.

    Raises:
        PromptFileError: the prompt's files are missing or malformed.
        ConfigError: the folder is not of a finished run.
    """
    folder = Path(config.output)
    metrics = read_metrics(folder)
    return TrainOutcome(folder, load_prompt(folder), metrics, metrics["seconds"])


def _write(trained: TrainedPrompt, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the results, the figures last: they make the run a finished one."""
    folder = Path(trained.config.output)
    trained.prompt.save_pretrained(folder)
    write_history(folder, history)
    draw_curve(folder, history, trained.name)
    write_text(folder / CARD_FILE, model_card(trained))
    write_metrics(folder, trained.metrics)


def _is_known(config: TrainConfig) -> bool:
    """Whether the run to resume was finished before, and has no further steps to take."""
    folder = Path(config.output)
    return config.resume and is_finished(folder) and not is_extended(folder, config)


def _claimed(config: TrainConfig) -> AbstractContextManager[None]:
    """The run's folder as this process's own; of several that torchrun started, the first owns it for all."""
    if not is_main_process():
        return nullcontext()
    folder = Path(config.output)
    if _is_known(config):  # nothing will be written: it may be on a medium that is only read
        check_output(folder, config)
        return nullcontext()
    return claimed_output(folder, config)


def is_main_process() -> bool:
    """Whether this process writes and reports: the first of those that torchrun started; others find its folder."""
    return int(os.environ.get("RANK", "0")) == 0
