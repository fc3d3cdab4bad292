"""How well a prompt does its task on data: the loss of what is right, and the agreement of what it answers."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ruprompt_fast.errors import OutputExistsError, TaskError
from ruprompt_fast.file_writer import write_text
from ruprompt_fast.prompts.ensemble import load_prompt, members_of
from ruprompt_fast.runs.answer_config import EvaluateConfig
from ruprompt_fast.runs.artifacts import check_can_make, checked_and_owned, has_only, write_metrics
from ruprompt_fast.runs.baselines import check_instruction
from ruprompt_fast.runs.data.row_format import RowFormat
from ruprompt_fast.runs.data.rows import load_rows
from ruprompt_fast.runs.measuring import Evaluation, evaluate_prompt
from ruprompt_fast.runs.metrics import check_can_measure
from ruprompt_fast.runs.serving import check_settings, find_model, find_task
from ruprompt_fast.runs.start import fitting_rows, load_frozen
from ruprompt_fast.runs.word_lists import OBSCENE, read_word_list
from ruprompt_fast.training.ownership import LOCK_FILE

PREDICTIONS_FILE = "predictions.jsonl"


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Measure a prompt, see :class:`~ruprompt_fast.runs.measuring.Evaluation`, and write a folder if one is named.

    Raises:
        OutputExistsError: the output folder exists.
        OutputInUseError: another run writes there now.
        FileWriteError: it cannot be written.
        TaskError: there is no training configuration to take the task from; or it is not the prompt's.
        ConfigError, UnknownArgumentError, SettingError, PromptFileError, TrainingDataError, MissingFieldError: see
            their texts; found before the model is loaded.
        MissingDependencyError: a package of the extra ``train`` is not installed.
        PromptMismatchError, ContextLengthError, LabelError: prompt or rows do not fit the model or the task.
    """
    started = time.monotonic()
    folder = None if config.output is None else Path(config.output).expanduser()
    with nullcontext() if folder is None else checked_and_owned(folder, lambda: _check_output(folder)):
        found = _evaluate(config)
        if folder is not None:
            _write(folder, found)
    return replace(found, seconds=time.monotonic() - started)


def _check_output(folder: Path) -> None:
    """Refuse a folder that is there, unless it only holds what an evaluation that was killed left."""
    check_can_make(folder)
    if folder.exists() and not has_only(folder, LOCK_FILE, PREDICTIONS_FILE):
        raise OutputExistsError(f"{folder}: expected no such folder; found one. Choose another output.")


def _evaluate(config: EvaluateConfig) -> Evaluation:
    """:func:`evaluate` without its folder."""
    check_settings(config.generation)
    prompt = load_prompt(config.prompt)
    task = find_task(config.prompt, config.task, prompt)
    if task is None:
        raise TaskError(
            f"{config.prompt}: expected a training configuration, config.yaml, that says what the prompt's task is; "
            "found none. Name one with task=FILE."
        )
    check_instruction(config.instruction, task)
    if task.objective == "text2text":
        check_can_measure()
        read_word_list(config.word_list or OBSCENE)
    rows = load_rows(
        config.data,
        task.required_columns,
        optional=config.references,
        split=config.split,
        name=config.name,
        on_bad_row=config.on_bad_row,
        limit=config.limit,
        format=RowFormat(config.delimiter, config.quoting, config.encoding),
    )
    model_config = find_model(config.model, config.prompt, prompt)
    model, tokenizer = load_frozen(model_config)
    if config.on_bad_row == "skip":
        rows = fitting_rows(rows, task, members_of(prompt)[0], model, tokenizer)
    found = evaluate_prompt(model, tokenizer, prompt, task, rows.rows, config, model_config)
    return replace(found, bad=rows.bad)


def results_of(found: Evaluation) -> dict[str, Any]:
    """What ``metrics.json`` holds: the prompt's figures, those of the baselines, and the differences from these."""
    if not found.baselines:
        return dict(found.metrics)
    differences = {
        name: {key: {**asdict(one), "is_certain": one.is_certain} for key, one in measures.items()}
        for name, measures in found.differences.items()
    }
    return {**found.metrics, "baselines": found.baselines, "differences": differences}


def _write(folder: Path, found: Evaluation) -> None:
    """Write the results, the figures last: a folder that has them is complete; without them it has nothing."""
    lines = (json.dumps(row, ensure_ascii=False) for row in found.predictions)
    try:
        write_text(folder / PREDICTIONS_FILE, "".join(f"{line}\n" for line in lines))
        write_metrics(folder, results_of(found))
    except BaseException:
        (folder / PREDICTIONS_FILE).unlink(missing_ok=True)
        raise
