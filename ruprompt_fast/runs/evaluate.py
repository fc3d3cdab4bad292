"""How well a prompt does its task on data: the loss of what is right, and the agreement of what it answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ruprompt_fast.errors import MissingDependencyError, OutputExistsError, TaskError
from ruprompt_fast.model import FastPromptModel
from ruprompt_fast.prompts import Prompt
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.prompts.tensor_files import write_text
from ruprompt_fast.runs.answer_config import EvaluateConfig
from ruprompt_fast.runs.artifacts import check_can_make, has_only, is_claimed, write_metrics
from ruprompt_fast.runs.loading import load_frozen
from ruprompt_fast.runs.metrics import accuracy, check_can_measure, text_metrics
from ruprompt_fast.runs.serving import Answering, check_settings, find_model, find_task, load_answering
from ruprompt_fast.training.attaching import attach_for_training, collect_prompts, detach, make_encoders
from ruprompt_fast.training.data import BadRow, load_rows
from ruprompt_fast.training.datasets import encode_rows
from ruprompt_fast.training.evaluation import EvaluationTotals, evaluation_batches
from ruprompt_fast.training.ownership import LOCK_FILE, owning_folder
from ruprompt_fast.training.row_format import RowFormat
from ruprompt_fast.training.runners import make_runner
from ruprompt_fast.training.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREDICTIONS_FILE = "predictions.jsonl"

# Unless the settings say otherwise: what a prompt says most probably, of any length that a sentence or two may have.
_GREEDY = {"do_sample": False}
_MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: ``loss``, teacher-forced, in nats per token to generate, its end token included, or per classified
            sample, an ensemble's the mean of its members'; for a classification ``accuracy``; for texts those of
            :func:`~ruprompt_fast.runs.metrics.text_metrics`. A style has its loss alone.
        predictions: for every row ``row``, its columns, ``output``, and ``references`` or, for a classification,
            ``label``, the class that was chosen, and ``scores``; nothing for a style.
        bad: rows that were left out.
        seconds: how long it took.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    bad: list[BadRow] = field(default_factory=list)
    seconds: float = 0.0


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Measure a prompt, see :class:`Evaluation`, and write a folder if one is named.

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
    with nullcontext() if folder is None else _claimed(folder):
        found = _evaluate(config)
        if folder is not None:
            _write(folder, found)
    return replace(found, seconds=time.monotonic() - started)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Own a folder that is not there, or holds what an evaluation that was killed left."""
    if not is_claimed(folder):
        _check_output(folder)
    with owning_folder(folder):
        _check_output(folder)
        yield


def _check_output(folder: Path) -> None:
    check_can_make(folder)
    if folder.exists() and not has_only(folder, LOCK_FILE, PREDICTIONS_FILE):
        raise OutputExistsError(f"{folder}: expected no such folder; found one. Choose another output.")


def _evaluate(config: EvaluateConfig) -> Evaluation:
    """:func:`evaluate` without its folder."""
    check_settings(config.generation)
    prompt = load_answering(config.prompt)
    task = find_task(config.prompt, config.task, prompt)
    if task is None:
        raise TaskError(
            f"{config.prompt}: expected a training configuration, config.yaml, that says what the prompt's task is; "
            "found none. Name one with task=FILE."
        )
    if task.objective == "text2text":
        check_can_measure()
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
    model, tokenizer = load_frozen(find_model(config.model, config.prompt, prompt))
    found = evaluate_prompt(model, tokenizer, prompt, task, rows.rows, config)
    return replace(found, bad=rows.bad)


def evaluate_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | PromptEnsemble,
    task: Task,
    rows: Sequence[Mapping[str, str]],
    config: EvaluateConfig,
) -> Evaluation:
    """The part of :func:`evaluate` behind loading; the model is given back without the prompt.

    Args:
        model: the model, in evaluation mode; its weights are frozen.
        tokenizer: its tokenizer.
        prompt: the prompt or ensemble.
        task: its task.
        rows: the rows, with the task's columns.
        config: how to measure; what names files is not read.
    """
    metrics = {"loss": teacher_forced_loss(model, tokenizer, prompt, task, rows, config.batch_size)}
    if task.objective == "style":
        return Evaluation(metrics, [])
    served = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
    try:
        answering = Answering.start(served, prompt, task)
        measure = _classification if task.objective == "classification" else _texts
        more, predictions = measure(answering, task, rows, config)
    finally:
        served.detach()
    return Evaluation({**metrics, **more}, predictions)


def teacher_forced_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | PromptEnsemble,
    task: Task,
    rows: Sequence[Mapping[str, str]],
    batch_size: int = 16,
) -> float:
    """The mean loss of what the rows say is right, as training computes it: nats per token or per classified sample.

    The model is given back without the prompt.

    Raises:
        TaskError: the task is not the prompt's.
        ContextLengthError, LabelError: a row does not fit; the message names it. Nothing is computed then.
        MissingDependencyError: accelerate is not installed.
    """
    try:
        from accelerate.utils import send_to_device
    except ImportError as error:
        raise MissingDependencyError(
            "the loss needs the package accelerate; install it with pip install 'ruprompt-fast[train]'."
        ) from error
    prompts = collect_prompts(prompt, task)
    attached = attach_for_training(model, prompts, tokenizer)
    try:
        encoders = make_encoders(prompts, attached, model, tokenizer)
        dataset = encode_rows(rows, encoders, isinstance(prompt, PromptEnsemble), "data")
        runner = make_runner(model, attached.embedding, attached.deep)
        totals = EvaluationTotals([one.name for one in prompts], model.device)
        with torch.no_grad(), runner.routing():
            for index, batch in evaluation_batches(dataset, runner, batch_size, 0, 1):
                totals.add(index, runner.loss(model, send_to_device(batch, model.device)))
    finally:
        detach(model, attached)
    return totals.metrics(totals.sums, "eval")["eval_loss"]


def _classification(
    answering: Answering, task: Task, rows: Sequence[Mapping[str, str]], config: EvaluateConfig
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    answers = answering.classify([_inputs(task, row) for row in rows])
    right = accuracy([answer["output"] for answer in answers], [task.target_of(row) for row in rows])
    # The row's own columns stand apart: one of them is the class, by whatever name.
    return {"accuracy": right}, [{"row": row, **answer} for row, answer in zip(rows, answers, strict=True)]


def _texts(
    answering: Answering, task: Task, rows: Sequence[Mapping[str, str]], config: EvaluateConfig
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    settings = {**_GREEDY, **config.generation, "num_return_sequences": 1}
    if not settings.keys() & {"max_new_tokens", "max_length"}:
        settings["max_new_tokens"] = _MAX_NEW_TOKENS
    seeds = range(config.seed, config.seed + len(rows))
    outputs = answering.generate([_inputs(task, row) for row in rows], settings, seeds, progress=config.progress)
    texts = [output.text.strip() for (output,) in outputs]
    references = [_references(task, row, config.references) for row in rows]
    predictions = [
        {"row": row, "output": text, "references": known}
        for row, text, known in zip(rows, texts, references, strict=True)
    ]
    return text_metrics(texts, references), predictions


def _inputs(task: Task, row: Mapping[str, str]) -> dict[str, str]:
    """The prompt's fields of a row; one without fields begins by itself, from no text."""
    return task.fields_of(row) or {"text": ""}


def _references(task: Task, row: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    """The right answers of a row, each once."""
    texts = [task.target_of(row), *(row[column] for column in columns if column in row)]
    return list(dict.fromkeys(text.strip() for text in texts))


def _write(folder: Path, found: Evaluation) -> None:
    """Write the results, the figures last: a folder that has them is complete; without them it has nothing."""
    lines = (json.dumps(row, ensure_ascii=False) for row in found.predictions)
    try:
        write_text(folder / PREDICTIONS_FILE, "".join(f"{line}\n" for line in lines))
        write_metrics(folder, found.metrics)
    except BaseException:
        (folder / PREDICTIONS_FILE).unlink(missing_ok=True)
        raise
