"""From a configuration to transformers' ``TrainingArguments``: the provider's recipe, and what replaces it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from ruprompt_fast.errors import ConfigError, MissingDependencyError
from ruprompt_fast.runs.artifacts import CHECKPOINTS, check_can_draw
from ruprompt_fast.runs.config import TrainConfig
from ruprompt_fast.training.arguments import CHECKPOINTING
from ruprompt_fast.training.recipes import Recipe, recipe_for

NUM_LOGS = 100
"""Points of the curve."""

NUM_CHECKPOINTS = 10
"""Checkpoints that a run writes unless told otherwise; only the last and the best stay."""

_OF_THE_RECIPE = ("learning_rate", "schedule", "warmup_fraction", "weight_decay", "max_grad_norm")


def recipe_of(config: TrainConfig, provider: nn.Module) -> Recipe:
    """The provider's recipe, with what the configuration gives in its place."""
    wanted = {name: getattr(config.optimization, name) for name in _OF_THE_RECIPE}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if given:
        given["measured"] = ""  # the recipe's measurement says nothing about other settings
    return replace(recipe_for(provider, config.optimization.optim), **given)


def check_packages(config: TrainConfig) -> None:
    """Check that everything is installed that a run of training needs.

    Raises:
        ConfigError: a tracker is not known.
        MissingDependencyError: a package is not installed.
    """
    check_accelerate("training")
    check_can_draw()
    _check_trackers(config.optimization.report_to)


def check_accelerate(what: str) -> None:
    """Check that accelerate is there, which transformers' Trainer needs.

    Args:
        what: what else needs it, in the message.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs the package accelerate; install it with pip install 'ruprompt-fast[train]'."
        ) from error


def _check_trackers(names: Sequence[str]) -> None:
    """Check that transformers can report to these."""
    try:
        get_reporting_integration_callbacks(list(names))
    except ValueError as error:
        raise ConfigError(f"optimization.report_to={list(names)} cannot work: {error}") from error
    missing = [name for name in names if name not in get_available_reporting_integrations()]
    if missing:
        raise MissingDependencyError(
            f"optimization.report_to={list(names)} needs what is not installed; install {missing[0]}, or leave it out."
        )


def training_arguments(
    config: TrainConfig, recipe: Recipe, is_on_cpu: bool, validates: bool, is_quiet: bool = False
) -> TrainingArguments:
    """What the trainer gets.

    Args:
        config: the configuration.
        recipe: the settings of the optimizer.
        is_on_cpu: whether the model is.
        validates: whether there are rows to validate on; the run begins with them then.
        is_quiet: whether to show no progress bars.
    """
    optimization = config.optimization
    steps = optimization.max_steps
    saves = optimization.save_steps or optimization.eval_steps or math.ceil(steps / NUM_CHECKPOINTS)
    arguments = recipe.arguments(
        max_steps=steps,
        output_dir=str(Path(config.output) / CHECKPOINTS),
        per_device_train_batch_size=optimization.batch_size,
        per_device_eval_batch_size=optimization.batch_size,
        gradient_accumulation_steps=optimization.gradient_accumulation_steps,
        seed=config.seed,
        logging_steps=math.ceil(steps / NUM_LOGS),
        eval_strategy="no" if optimization.eval_steps is None else "steps",
        eval_steps=optimization.eval_steps,
        eval_on_start=validates,
        save_strategy="steps",
        save_steps=saves,
        save_total_limit=2,
        load_best_model_at_end=optimization.eval_steps is not None,
        metric_for_best_model="eval_loss" if optimization.eval_steps is not None else None,
        bf16=optimization.precision == "bf16",
        fp16=optimization.precision == "fp16",
        use_cpu=is_on_cpu,
        dataloader_pin_memory=not is_on_cpu,
        report_to=optimization.report_to,
        disable_tqdm=is_quiet or not sys.stderr.isatty(),
    )
    if optimization.gradient_checkpointing:
        arguments[CHECKPOINTING] = True
    return TrainingArguments(**arguments)
