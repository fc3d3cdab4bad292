"""What a run starts from: the frozen model, the rows, a prompt without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import torch

from ruprompt_fast import bundled
from ruprompt_fast.dispatch.engine_options import MAX_THREADS
from ruprompt_fast.dispatch.model_sources import load_model, load_tokenizer, weight_dtype_of
from ruprompt_fast.errors import ConfigError, ContextLengthError, LabelError, shown
from ruprompt_fast.prompts import LSTMPromptProvider, MLPPromptProvider, Prompt, TensorPromptProvider
from ruprompt_fast.prompts.ensemble import PromptEnsemble, members_of
from ruprompt_fast.prompts.format.layout import Rows as PromptRows
from ruprompt_fast.prompts.format.layout import RowsFromText
from ruprompt_fast.prompts.format.template import parse_template
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider
from ruprompt_fast.prompts.providers.prefix_tuning import PrefixTuningProvider
from ruprompt_fast.prompts.providers.row_init import check_prompt_length
from ruprompt_fast.runs.config import BUNDLED, DataConfig, ModelConfig, ProviderConfig, TrainConfig
from ruprompt_fast.runs.data.row_format import RowFormat
from ruprompt_fast.runs.data.rows import BadRow, Rows, load_rows, nearest, report_bad_rows
from ruprompt_fast.training.examples import ExampleEncoder
from ruprompt_fast.training.prompts import prompt_for
from ruprompt_fast.training.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUNDLED_MODEL_NAME = "ruprompt-fast/ruslit-gpt2-7m"
"""What prompts for the bundled model are said to be made for: its folder means nothing on another machine."""

_PROVIDERS: dict[str, tuple[type[BasePromptProvider], tuple[str, ...]]] = {
    "tensor": (TensorPromptProvider, ("init", "text", "labels", "std")),
    "lstm": (LSTMPromptProvider, ("hidden_dim",)),
    "mlp": (MLPPromptProvider, ("hidden_dim", "residual")),
    "prefix": (PrefixTuningProvider, ("init", "text", "hidden_dim", "std")),
}


def load_frozen(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen model, in evaluation mode and not quantized yet, and its tokenizer.

    This process computes on ``config.threads`` threads from then on.

    Raises:
        ConfigError: there is no such model, it cannot be read, or there is no such device.
    """
    if (config.device or "").startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"model.device={config.device!r} needs a GPU; torch finds none. Leave it out, or give cpu.")
    if config.threads is not None:
        if not 1 <= config.threads <= MAX_THREADS:
            raise ConfigError(f"model.threads must be from 1 to {MAX_THREADS}; found {config.threads}.")
        torch.set_num_threads(config.threads)
    name = str(bundled.MODEL) if config.name == BUNDLED else config.name
    try:
        model = load_model(name, weight_dtype_of(config.dtype), config.device).eval()
        tokenizer = load_tokenizer(name, None)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model.name: {error} The model that comes with the package is {BUNDLED!r}."
            f"{nearest(config.name, [BUNDLED])}"
        ) from error
    if config.name == BUNDLED:
        model.name_or_path = model.config.name_or_path = BUNDLED_MODEL_NAME
    return model, tokenizer


def load_data(config: DataConfig, task: Task) -> tuple[Rows, Rows | None]:
    """The rows to train and to validate on.

    Raises:
        TrainingDataError, MissingFieldError: see :func:`~ruprompt_fast.runs.data.rows.load_rows`.
        LabelError: a row has a class that the task has no label word for.
    """

    def load(source: str, split: str, limit: int | None) -> Rows:
        rows = load_rows(
            source,
            task.required_columns,
            split=split,
            name=config.name,
            on_bad_row=config.on_bad_row,
            limit=limit,
            format=RowFormat(config.delimiter, config.quoting, config.encoding),
        )
        _check_classes(rows, task)
        return rows

    train = load(config.train, config.train_split, config.limit)
    if config.validation is None:
        return train, None
    return train, load(config.validation, config.validation_split, config.validation_limit)


def fitting_data(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Rows,
    validation_rows: Rows | None,
) -> tuple[Rows, Rows | None]:
    """The rows of a run that fit after its prompt, see :func:`fitting_rows`."""
    prompt = members_of(make_prompt(config))[0]
    fitting = fitting_rows(train_rows, config.task, prompt, model, tokenizer)
    if validation_rows is None:
        return fitting, None
    return fitting, fitting_rows(validation_rows, config.task, prompt, model, tokenizer)


def fitting_rows(
    rows: Rows, task: Task, prompt: Prompt, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """The rows that fit the model's context and ``max_tokens`` after a prompt; the others are bad ones.

    Raises:
        TrainingDataError: none fits.
    """
    encoder = row_encoder(task, prompt, model, tokenizer)
    reasons = [_why_too_long(encoder, row) for row in rows.rows]
    fitting = [row for row, reason in zip(rows.rows, reasons, strict=True) if reason is None]
    bad = [
        BadRow(getattr(row, "line", number), reason)
        for number, (row, reason) in enumerate(zip(rows.rows, reasons, strict=True), start=1)
        if reason is not None
    ]
    report_bad_rows(rows.source, len(fitting), bad, "skip")
    return Rows(fitting, [*rows.bad, *bad], rows.source)


def _why_too_long(encoder: ExampleEncoder, row: Mapping[str, str]) -> str | None:
    try:
        encoder.encode([row])
    except ContextLengthError as error:
        return str(error).removeprefix(f"{getattr(row, 'place', 'row 0')}: ")
    return None


def row_encoder(
    task: Task, prompt: Prompt, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> ExampleEncoder:
    """What encodes rows after a prompt that need not be attached to the model."""
    prompt.format.initialize(tokenizer)
    return ExampleEncoder(
        task,
        prompt.format,
        tokenizer,
        model_config=model.config,
        first_row_id=len(tokenizer),
        num_deep_rows=cast(int, prompt.format.prompt_length) if prompt.provider.is_deep else 0,
    )


def make_prompt(config: TrainConfig) -> Prompt | PromptEnsemble:
    """The prompt to train, or the ensemble of them, without rows.

    Raises:
        ConfigError: a setting of the provider that this kind does not have.
        PromptInitError: settings that do not belong together.
        TemplateError: the template cannot be read.
        PromptLengthError: it has no rows.
    """
    check_prompt_length(
        sum(isinstance(part, PromptRows | RowsFromText) for part in parse_template(config.task.template))
    )
    if config.ensemble_size == 1:
        return prompt_for(config.task, make_provider(config.provider, config.seed))
    seeds = range(config.seed, config.seed + config.ensemble_size)
    return PromptEnsemble.of(config.task.template, lambda seed: make_provider(config.provider, seed), seeds)


def make_provider(config: ProviderConfig, seed: int) -> BasePromptProvider:
    """A provider without rows, whose first values the seed decides.

    Raises:
        ConfigError: a setting that this kind does not have; or the saved prompt to start from is of another kind.
        PromptInitError: settings that do not belong together.
        PromptFileError, UnsafeFileError, NonFiniteRowsError, HubError: the saved prompt cannot be read.
    """
    if config.start is not None:
        return _saved_provider(config.start, config.kind)
    factory, known = _PROVIDERS[config.kind]
    given = {
        part.name: getattr(config, part.name)
        for part in fields(config)
        if part.name != "kind" and getattr(config, part.name) != part.default
    }
    for name in given:
        if name not in known:
            raise ConfigError(f"provider.kind={config.kind} has the settings {', '.join(known)}; found {name}.")
    if "std" in given and config.init != "random":
        raise ConfigError(f"provider.std belongs to init=random; found init={config.init}.")
    arguments: dict[str, Any] = {**given, "seed": seed}
    return factory(**arguments)


def _saved_provider(source: str, kind: str) -> BasePromptProvider:
    """The provider of a saved prompt."""
    provider = Prompt.from_pretrained(source).provider
    found = "prefix" if provider.is_deep else "tensor"
    if found != kind:
        raise ConfigError(f"{source}: expected a prompt of provider.kind={kind}; found one of {found}. Set the kind.")
    return provider


def _check_classes(rows: Rows, task: Task) -> None:
    """Look for the class of every row before a model is loaded.

    Raises:
        LabelError: a value is none of the task's classes.
    """
    unknown = task.unknown_classes(rows.rows)
    if unknown:
        raise LabelError(
            f"{rows.source}: the column {task.label_field!r} holds the classes {shown(unknown)}, for which task.labels "
            f"has no word; it has words for {shown(list(task.labels or {}))}."
        )
