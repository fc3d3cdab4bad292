"""Sweeps: a grid of training runs over one model and one set of rows, resumable cell by cell."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ruprompt_fast.cache.hashing import model_identity, prefix_key
from ruprompt_fast.errors import CheckpointError, ConfigError, DivergenceError, OutputExistsError
from ruprompt_fast.file_writer import write_text
from ruprompt_fast.prompts.ensemble import members_of
from ruprompt_fast.runs.artifacts import (
    CHECKPOINTS,
    CONFIG_FILE,
    check_can_make,
    check_output,
    checked_and_owned,
    has_only,
)
from ruprompt_fast.runs.config import TrainConfig, config_yaml
from ruprompt_fast.runs.data.rows import Rows
from ruprompt_fast.runs.settings import check_packages, recipe_of
from ruprompt_fast.runs.start import fitting_data, load_data, make_prompt, row_encoder
from ruprompt_fast.runs.sweep_grid import Cell, SkippedCell, SweepConfig, plan_cells
from ruprompt_fast.runs.sweep_report import Quality, Report
from ruprompt_fast.runs.sweep_store import CellResult, open_store
from ruprompt_fast.runs.train import load_to_train, train_prompt
from ruprompt_fast.training.ownership import LOCK_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)

RESULTS_FILE = "results.jsonl"
CELLS = "cells"

# Settings of the optimization that change neither the prompt nor its figures.
_NO_INFLUENCE = ("save_steps", "report_to")


@dataclass(frozen=True)
class SweepOutcome:
    """A finished sweep.

    Attributes:
        report: the results.
        files: the files that show them.
        num_trained: cells that were trained now.
        num_known: cells whose results were there already.
    """

    report: Report
    files: Sequence[Path]
    num_trained: int
    num_known: int


def sweep(config: SweepConfig, on_result: Callable[[CellResult, int, int], None] | None = None) -> SweepOutcome:
    """Train every cell of a grid whose result is not there yet, and write table and figures.

    A killed sweep is continued by starting it again: finished cells are known by a digest of what decides their result
    (the effective configuration, the rows' and the model's content), and an interrupted one goes on from its last
    checkpoint. A cell whose training diverges is noted as such and the sweep goes on; any other error stops it.

    Args:
        config: the configuration; ``output`` is the folder of the sweep, and is continued if it is there.
        on_result: gets every result, its number and how many there are.

    Raises:
        ConfigError: see :func:`plan_cells`; also no rows to validate on.
        OutputExistsError: the folder holds something else.
        OutputInUseError: another sweep writes there now.
        See :func:`~ruprompt_fast.runs.train.train`; all but what training itself raises before the first cell.
    """
    cells, skipped = plan_cells(config)
    folder = Path(config.output)
    _check(config, cells)
    with checked_and_owned(folder, lambda: _check_output(folder)):
        return _sweep(config, cells, skipped, on_result)


def _sweep(
    config: SweepConfig,
    cells: Sequence[Cell],
    skipped: Sequence[SkippedCell],
    on_result: Callable[[CellResult, int, int], None] | None,
) -> SweepOutcome:
    """:func:`sweep` in a folder that is ours."""
    folder = Path(config.output)
    train_rows, validation_rows = load_data(config.data, config.task)
    model, tokenizer = load_to_train(config)
    _check_first_values(cells, model, tokenizer)
    if config.data.on_bad_row == "skip":
        longest = max(cells, key=_length).config
        train_rows, validation_rows = fitting_data(longest, model, tokenizer, train_rows, validation_rows)
    for rows in (train_rows, validation_rows):
        _check_longest(cells, model, tokenizer, rows)
    content = _content(model, train_rows, validation_rows)
    results, num_known = [], 0
    with open_store(folder / RESULTS_FILE) as store:
        write_text(folder / CONFIG_FILE, config_yaml(config))
        for number, cell in enumerate(cells, start=1):
            digest = cell_digest(cell.config, content)
            if digest in store.results:
                num_known += 1
            else:
                store.append(
                    _train(cell, digest, folder / CELLS / digest, model, tokenizer, train_rows, validation_rows)
                )
            # A cell may be elsewhere in this grid than in the one that trained it.
            results.append(replace(store.results[digest], axes=asdict(cell.axes)))
            if on_result is not None:
                on_result(results[-1], number, len(cells))
    report = Report(results, skipped, quality_of(config))
    return SweepOutcome(report, report.write(folder, folder.name), len(cells) - num_known, num_known)


def quality_of(config: TrainConfig) -> Quality:
    """What the cells of a task are compared by: accuracy for a classification, else the loss."""
    if config.task.objective == "classification":
        return Quality("eval_accuracy", "held-out accuracy", is_loss=False)
    return Quality("eval_loss", "held-out loss, nats per token", is_loss=True)


def cell_digest(config: TrainConfig, content: str) -> str:
    """A digest of what decides a cell's result, 16 hexadecimal digits.

    Args:
        config: the cell's configuration; settings that it leaves to the recipe count as the recipe's.
        content: identifies the model and the rows.
    """
    prompt = members_of(make_prompt(config))[0]
    provider = prompt.provider
    recipe = replace(recipe_of(config, provider), measured="")
    optimization = asdict(config.optimization) | asdict(recipe)
    for name in _NO_INFLUENCE:
        del optimization[name]
    described = [asdict(config.task), asdict(config.provider), optimization, config.ensemble_size, config.seed]
    if provider.is_initialized:  # from a saved prompt, whose folder may hold another one by now
        described.append(prefix_key(b"", torch.float32, prompt.rows(), [], 0).hex())
    text = json.dumps([described, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content(model: PreTrainedModel, *sources: Rows | None) -> str:
    digest = hashlib.sha256(model_identity(model))
    for source in sources:
        digest.update(json.dumps(None if source is None else source.rows, sort_keys=True).encode())
    return digest.hexdigest()


def _check_output(folder: Path) -> None:
    """Refuse a folder that holds something else than a sweep."""
    check_can_make(folder)
    is_free = not folder.exists() or (folder.is_dir() and (not any(folder.iterdir()) or has_only(folder, LOCK_FILE)))
    if not is_free and not (folder / RESULTS_FILE).is_file():
        raise OutputExistsError(
            f"{folder}: expected no such folder, or that of a sweep with {RESULTS_FILE}; found something else. "
            "Choose another output."
        )


def _check(config: SweepConfig, cells: Sequence[Cell]) -> None:
    """What can be checked without model and data."""
    if config.data.validation is None:
        raise ConfigError("a sweep compares prompts on rows that they did not train on; give data.validation.")
    check_packages(config)
    for cell in cells:
        make_prompt(cell.config)


def _check_first_values(cells: Sequence[Cell], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the rows of each kind of provider once, at its greatest length.

    Raises:
        PromptInitError, PromptTooLongError, UnsupportedModelError: they cannot be made.
    """
    longest = {}
    for cell in sorted(cells, key=_length):
        longest[json.dumps(asdict(cell.config.provider))] = cell
    for cell in longest.values():
        members_of(make_prompt(cell.config))[0].initialize(model, tokenizer)


def _check_longest(
    cells: Sequence[Cell], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows | None
) -> None:
    """Encode the rows after the longest prompt.

    Raises:
        ContextLengthError, TaskError, LabelError: a row cannot be trained on.
    """
    config = max(cells, key=_length).config
    prompt = members_of(make_prompt(config))[0]
    encoder = row_encoder(config.task, prompt, model, tokenizer)
    encoder.encode([] if rows is None else rows.rows)


def _length(cell: Cell) -> int:
    return cell.axes.length or 0


def _train(
    cell: Cell,
    digest: str,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Rows,
    validation_rows: Rows | None,
) -> CellResult:
    config = _continued(replace(cell.config, output=str(folder)), folder)
    axes, template = asdict(cell.axes), config.task.template
    started = time.monotonic()
    try:
        outcome = train_prompt(config, model, tokenizer, train_rows, validation_rows, is_quiet=True)
    except DivergenceError as error:
        seconds = round(time.monotonic() - started, 3)
        return CellResult(digest, axes, template, "diverged", {}, seconds, str(error))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    metrics = {name: value for name, value in outcome.metrics.items() if name.endswith(("_loss", "_accuracy"))}
    seconds = round(outcome.seconds, 3)
    if not all(math.isfinite(value) for value in metrics.values()):
        return CellResult(digest, axes, template, "diverged", {}, seconds, f"the figures are {metrics}")
    return CellResult(digest, axes, template, "finished", metrics, seconds)


def _continued(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration, set to go on where an interrupted run of the cell stopped, if there is one that can."""
    resumed = replace(config, resume=folder.exists())
    try:
        check_output(folder, resumed)
    except CheckpointError as error:  # interrupted before it began, or under other settings that do not count
        aside = next(path for path in _names_aside(folder) if not path.exists())
        _logger.warning("%s: the cell is trained again, what was there is in %s now (%s)", folder, aside.name, error)
        folder.rename(aside)
        return replace(config, resume=False)
    return resumed


def _names_aside(folder: Path) -> Iterator[Path]:
    return (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
