"""The teacher-forced loss of rows, with a prompt or with text in its place, in parts that can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ruprompt_fast.backends import backend_for
from ruprompt_fast.embedding import attach_prompts, detach_prompts
from ruprompt_fast.prompts import Prompt, PromptFormat
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.prompts.format.layout import Rows, RowsFromText, field_names
from ruprompt_fast.prompts.format.preprocessing import IGNORED_LABEL
from ruprompt_fast.prompts.format.template import parse_template
from ruprompt_fast.runs.settings import check_accelerate
from ruprompt_fast.training.attaching import attach_for_training, collect_prompts, detach, make_encoders
from ruprompt_fast.training.datasets import encode_rows
from ruprompt_fast.training.examples import ExampleEncoder
from ruprompt_fast.training.runners import make_runner

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.backends import Quantization
    from ruprompt_fast.training.examples import Example
    from ruprompt_fast.training.runners import Runner
    from ruprompt_fast.training.task import Task

# Text before it and after it is tokenized apart, as on both sides of a prompt's rows.
_BOUNDARY = "<P*1>"

_MIN_PARTS = 50
"""Parts of the rows that a comparison draws from, where there are so many rows."""


@dataclass(frozen=True)
class TaskLoss:
    """A loss over rows.

    Attributes:
        parts: [parts, 2], the loss in nats and what it is a sum over, for each of the same parts of the rows.
    """

    parts: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Nats per token to generate, or per classified sample."""
        total, items = self.parts.sum(0)
        return float(total / items)


@contextmanager
def quantized(model: PreTrainedModel, quantization: Quantization | None) -> Iterator[None]:
    """Within the block the model computes with 8-bit weights, if it is to.

    Raises:
        UnsupportedModelError: no backend quantizes weights where the model is.
    """
    prepared = backend_for(model.device, model.dtype).prepare(model, quantization) if quantization else None
    try:
        yield
    finally:
        if prepared is not None:
            prepared.undo()


def teacher_forced_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | PromptEnsemble,
    task: Task,
    rows: Sequence[Mapping[str, str]],
    batch_size: int = 16,
) -> TaskLoss:
    """The loss of what the rows say is right, as training computes it; of an ensemble the mean of its members'.

    The model is given back without the prompt.

    Raises:
        TaskError: the task is not the prompt's.
        ContextLengthError, LabelError: a row does not fit; the message names it. Nothing is computed then.
        MissingDependencyError: accelerate is not installed.
    """
    prompts = collect_prompts(prompt, task)
    attached = attach_for_training(model, prompts, tokenizer)
    try:
        encoders = make_encoders(prompts, attached, model, tokenizer)
        dataset = encode_rows(rows, encoders, is_ensemble=True, what="data")
        runner = make_runner(model, attached.embedding, attached.deep)
        return _loss(model, runner, dataset.items, rows, batch_size)
    finally:
        detach(model, attached)


def loss_of_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    task: Task,
    rows: Sequence[Mapping[str, str]],
    batch_size: int = 16,
) -> TaskLoss:
    """As :func:`teacher_forced_loss`, with a template without virtual tokens in the prompt's place.

    The targets have the tokens that they have after the prompt, where the losses can be compared.

    Raises:
        ContextLengthError: a row does not fit.
    """
    ends_in_rows = isinstance(parse_template(task.template)[-1], Rows | RowsFromText)
    if ends_in_rows and task.objective != "classification" and not model.config.is_encoder_decoder:
        template += _BOUNDARY
    fields = field_names(parse_template(template))
    known = {*fields, *task.target_fields}
    plain = replace(
        task,
        template=template,
        columns={name: column for name, column in task.columns.items() if name in known},
        truncation_field=task.truncation_field if task.truncation_field in fields else None,
    )
    format = PromptFormat(template)
    format.initialize(tokenizer)
    embedding = attach_prompts(model, [], len(tokenizer))
    try:
        encoder = ExampleEncoder(plain, format, tokenizer, model_config=model.config, first_row_id=len(tokenizer))
        items = [[_without_rows(example, len(tokenizer))] for example in encoder.encode(rows)]
        return _loss(model, make_runner(model, embedding, [None]), items, rows, batch_size)
    finally:
        detach_prompts(model)


def _without_rows(example: Example, first_row_id: int) -> Example:
    """An example whose virtual tokens only kept the tokens on both sides of them apart."""
    ids, labels = example["input_ids"], example["labels"]
    kept = [place for place, token in enumerate(ids) if token < first_row_id]
    if len(kept) == len(ids):
        return example
    return {
        **example,
        "input_ids": [ids[place] for place in kept],
        # Nothing comes before the first id to generate it from.
        "labels": [labels[place] if number else IGNORED_LABEL for number, place in enumerate(kept)],
        "prefix_len": sum(place < example["prefix_len"] for place in kept),
    }


def _loss(
    model: PreTrainedModel,
    runner: Runner,
    items: Sequence[Sequence[Example]],
    rows: Sequence[Mapping[str, str]],
    batch_size: int,
) -> TaskLoss:
    """The loss of encoded rows, in parts that depend on the rows alone."""
    check_accelerate("the loss")
    from accelerate.utils import send_to_device

    # The longest first, so that padding is short.
    order = sorted(range(len(rows)), key=lambda index: -sum(map(len, rows[index].values())))
    size = max(1, min(batch_size, math.ceil(len(rows) / _MIN_PARTS)))
    parts = []
    with torch.no_grad(), runner.routing():
        for start in range(0, len(order), size):
            total, num_items = 0.0, 0
            for members in zip(*(items[index] for index in order[start : start + size]), strict=True):
                batch = send_to_device(runner.collate(list(members)), model.device)
                loss = runner.loss(model, batch)
                total, num_items = total + float(loss.total), num_items + loss.num_items
            parts.append((total, float(num_items)))
    return TaskLoss(np.array(parts))
