"""A prompt's answers to all rows of a file, written as they come; a killed run can be continued."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ruprompt_fast.cache import model_identity, prefix_key
from ruprompt_fast.dispatch.progress import progress_bar
from ruprompt_fast.prompts import Prompt
from ruprompt_fast.prompts.ensemble import PromptEnsemble, load_prompt, members_of
from ruprompt_fast.runs.answer_config import GenerateConfig
from ruprompt_fast.runs.artifacts import check_can_make
from ruprompt_fast.runs.config import ModelConfig
from ruprompt_fast.runs.data.row_format import RowFormat
from ruprompt_fast.runs.data.rows import BadRow, report_bad_rows
from ruprompt_fast.runs.results import ResultFile
from ruprompt_fast.runs.serving import (
    Answering,
    check_settings,
    find_model,
    find_task,
    input_columns,
    is_classification,
    serve,
)
from ruprompt_fast.runs.source import RowSource, SourceRow
from ruprompt_fast.runs.start import load_frozen
from ruprompt_fast.training.task import Task

# A line's seed: the run's seed in the upper bits, the line's number in the lower ones.
_LINE_BITS = 32


@dataclass(frozen=True)
class GenerateOutcome:
    """What a run did.

    Attributes:
        output: the file.
        num_rows: rows in it.
        num_before: of these, rows that were there before.
        bad: rows of the input that were left out; none if the run was finished before.
        seconds: how long it took.
    """

    output: Path
    num_rows: int
    num_before: int
    bad: list[BadRow]
    seconds: float


def generate(config: GenerateConfig) -> GenerateOutcome:
    """Answer every row of a file, in order, in constant memory.

    A prompt without fields continues the column ``text``, or begins by itself where a row has none. Every line of the
    output is the input's row with ``output``, the generated text, added (a list of texts with ``num_return_sequences``
    above 1); for a classification ``output`` is the label word, ``label`` its class, and ``scores`` has every class's
    probability. Rows are written batch by batch. A run that was killed and is started again goes on after the last
    whole batch; every row has a seed of its own, so the file becomes what it would have been.

    Raises:
        OutputExistsError: the output is there, and is not of an interrupted run.
        OutputInUseError: another run writes to it now.
        FileWriteError: it cannot be written; what was written before stays.
        CheckpointError: it is of an interrupted run with another prompt, model, input or other settings.
        TrainingDataError, MissingFieldError: the input cannot be read, or a row of it.
        ContextLengthError: a row is too long for the model; the message names its line.
        UnknownArgumentError, SettingError, ConfigError, PromptFileError, PromptMismatchError: see their texts. All but
            a row's length is checked before the model is loaded.
    """
    started = time.monotonic()
    check_settings(config.generation)
    prompt = load_prompt(config.prompt)
    task = find_task(config.prompt, config.task, prompt)
    columns = input_columns(prompt, task)
    new_fields = _new_fields(config.field_prefix, task)
    has_fields = bool(members_of(prompt)[0].format.fields)
    source = RowSource(
        config.input,
        list(columns.values()),
        new_fields,
        config.on_bad_row,
        has_all=has_fields,
        format=_format_of(config),
    )
    model = find_model(config.model, config.prompt, prompt)
    description = _description(config, model, prompt, task, source)
    results = ResultFile(Path(config.output).expanduser(), description, config.batch_size)
    check_can_make(results.path)
    with results.owned():
        results.check()
        num_expected = source.check()
        if (num_rows := results.num_complete()) is not None:
            return GenerateOutcome(results.path, num_rows, num_rows, [], time.monotonic() - started)
        answering, weights = _start(model, prompt, task)
        results = replace(results, description={**description, "weights": weights})
        with results.writing() as writer, progress_bar(num_expected, config.progress) as report:
            num_before = writer.num_lines
            usable = source.rows(lambda row: answering.check_fits(_inputs(columns, row), config.generation))
            rows = islice(usable, num_before, None)
            while batch := list(islice(rows, config.batch_size)):
                writer.append(_answers(answering, batch, columns, config))
                if report is not None:
                    report(writer.num_lines)
            report_bad_rows(config.input, writer.num_lines, source.bad, "skip")
            num_rows = writer.num_lines
    return GenerateOutcome(results.path, num_rows, num_before, source.bad, time.monotonic() - started)


def _format_of(config: GenerateConfig) -> RowFormat:
    return RowFormat(config.delimiter, config.quoting, config.encoding)


def _new_fields(prefix: str, task: Task | None) -> list[str]:
    names = ["output", "label", "scores"] if is_classification(task) else ["output"]
    return [f"{prefix}{name}" for name in names]


def _inputs(columns: Mapping[str, str], row: Mapping[str, str]) -> dict[str, str]:
    """The prompt's fields of a row."""
    return {name: row.get(column, "") for name, column in columns.items()}


def _answers(
    answering: Answering, batch: Sequence[SourceRow], columns: Mapping[str, str], config: GenerateConfig
) -> list[dict[str, Any]]:
    """The rows of the output."""
    inputs = [_inputs(columns, row.columns) for row in batch]
    if answering.is_classification:
        answers = answering.classify(inputs)
    else:
        seeds = [(config.seed << _LINE_BITS) + row.line for row in batch]
        texts = [[output.text for output in row] for row in answering.generate(inputs, config.generation, seeds)]
        answers = [{"output": row[0] if len(row) == 1 else row} for row in texts]
    return [
        {**row.record, **{f"{config.field_prefix}{name}": value for name, value in answer.items()}}
        for row, answer in zip(batch, answers, strict=True)
    ]


def _description(
    config: GenerateConfig,
    model: ModelConfig,
    prompt: Prompt | PromptEnsemble,
    task: Task | None,
    source: RowSource,
) -> dict[str, Any]:
    """What the output depends on, the model's weights aside."""
    return {
        "prompt": [_content_of(member) for member in members_of(prompt)],
        "model": {name: value for name, value in asdict(model).items() if name != "threads"},
        "task": None if task is None else asdict(task),
        "input": source.digest(),
        **{name: getattr(config, name) for name in ("generation", "batch_size", "seed", "field_prefix")},
        **{name: value for name, value in asdict(_format_of(config)).items() if value is not None},
    }


def _content_of(prompt: Prompt) -> str:
    """A digest of a prompt's format and rows."""
    rows = prompt.rows()
    return prefix_key(json.dumps(prompt.format.as_dict()).encode(), rows.dtype, rows, [], 0).hex()


def _start(config: ModelConfig, prompt: Prompt | PromptEnsemble, task: Task | None) -> tuple[Answering, str]:
    """The model with the prompt, and a digest of its weights."""
    model, tokenizer = load_frozen(config)
    weights = model_identity(model).hex()
    return Answering.start(serve(model, tokenizer, config), prompt, task), weights
