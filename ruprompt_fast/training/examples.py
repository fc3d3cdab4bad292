"""From rows of data to examples: token ids, and which of them are to be generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

from ruprompt_fast.errors import RupromptError, TaskError, shown
from ruprompt_fast.integration import context_length
from ruprompt_fast.prompts import PromptFormat
from ruprompt_fast.prompts.format.encoding import row_ids
from ruprompt_fast.prompts.format.layout import Layout, Rows
from ruprompt_fast.prompts.format.preprocessing import IGNORED_LABEL
from ruprompt_fast.prompts.format.targets import TextWithTarget, tokenize_decoder_targets, tokenize_with_targets
from ruprompt_fast.prompts.format.tokenizer_state import tokenizer_state
from ruprompt_fast.training.label_words import LabelWords
from ruprompt_fast.training.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Row = Mapping[str, Any]

# Rows that are tokenized at a time: a batch large enough for the tokenizer's threads.
_CHUNK = 1024


class Example(TypedDict):
    """One row of data as a model reads it.

    Attributes:
        prompt: the index of its prompt in the run.
        input_ids: ids; row k of the prompt is ``first_row_id + k``. An encoder's, where the model has one.
        prefix_len: how many leading ids all examples of the prompt have in common.
        labels: for every id itself if it is to be generated from those before it, else ``IGNORED_LABEL``. A decoder's
            ids, where the model has one. Empty for a classification.
        candidates: classification: the ids of every label word; else empty.
        class_of: classification: for every label word the index of its class; else empty.
        gold: classification: the index of the right class; else -1.
    """

    prompt: int
    input_ids: list[int]
    prefix_len: int
    labels: list[int]
    candidates: list[list[int]]
    class_of: list[int]
    gold: int


class ExampleEncoder:
    """Turns rows of data into examples of one prompt.

    Args:
        task: what the prompt is trained to do.
        format: its format, initialized.
        tokenizer: the model's; it is not changed.
        model_config: the model's, for its context and its kind.
        prompt_index: the number of the prompt in the run.
        first_row_id: the id of the prompt's row 0.
        num_deep_rows: for a deep prompt how many positions its keys and values take; its rows are not among the ids.

    Raises:
        TaskError: the task is not the format's, or not possible with this kind of model; or its target's template
            spells a special token.
        LabelError: label words without tokens, or two that begin with the same token.
    """

    def __init__(
        self,
        task: Task,
        format: PromptFormat,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model_config: PretrainedConfig,
        prompt_index: int = 0,
        first_row_id: int,
        num_deep_rows: int = 0,
    ) -> None:
        if tuple(format.fields) != task.fields:
            raise TaskError(
                f"the task's template {task.template!r} has the fields {list(task.fields)}, the prompt's format "
                f"{format.template!r} has {list(format.fields)}; describe the task with the prompt's own template."
            )
        _check_target(task, tokenizer)
        self.task = task
        self._tokenizer = tokenizer
        self._prompt_index = prompt_index
        self._num_deep_rows = num_deep_rows
        self._is_encoder_decoder = bool(model_config.is_encoder_decoder)
        if self._is_encoder_decoder and (num_deep_rows or (task.objective == "style" and task.fields)):
            raise TaskError(
                "an encoder-decoder trains text2text, classification, and style without fields in the template, on "
                f"embedding rows; found objective={task.objective!r}, template {task.template!r}."
            )
        self._marker = format.prompt_token
        self._layout = format.layout
        self._runs = row_ids(self._layout, first_row_id)
        self._first_row_id = first_row_id
        if num_deep_rows:
            self._layout = Layout(part for part in format.layout.parts if not isinstance(part, Rows))
            self._runs = []
        limits = [limit for limit in (context_length(model_config), task.max_tokens) if limit is not None]
        self._max_tokens = min(limits) - num_deep_rows if limits else None
        self._label_words: LabelWords | None = None
        if task.objective == "classification":
            self._label_words = LabelWords(
                task.verbalizers, self._layout, tokenizer, self._marker, self._is_encoder_decoder
            )

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Make the examples of these rows, in order.

        Raises:
            MissingFieldError, FieldTypeError: a row lacks a column, or its value is not a string; the message begins
                with the row's number, as do those of the others.
            LabelError: a row's class has no label word.
            ContextLengthError: a row is longer than the model's context or ``max_tokens``.
            TaskError: nothing in a row is to be generated.
            UnsupportedModelError: the tokenizer has no end-of-text token.
        """
        examples: list[Example] = []
        for start in range(0, len(rows), _CHUNK):
            chunk = [rows[index] for index in range(start, min(start + _CHUNK, len(rows)))]
            examples += self._encode_chunk(chunk, start)
        return examples

    def _encode_chunk(self, rows: Sequence[Row], first: int) -> list[Example]:
        fields, targets, golds = [], [], []
        for index, row in enumerate(rows, start=first):
            with _naming_row(row, index):
                fields.append(self.task.fields_of(row))
                if self.task.objective == "classification":
                    golds.append(self.task.class_index(row))
                else:
                    targets.append(self.task.target_of(row))
        in_text = not self._is_encoder_decoder and self.task.objective != "classification"
        texts = tokenize_with_targets(
            self._layout,
            fields,
            targets if in_text else None,
            self._tokenizer,
            self._marker,
            self._runs,
            is_continued=not self._is_encoder_decoder,
        )
        decoded = tokenize_decoder_targets(targets, self._tokenizer) if self._is_encoder_decoder and targets else []
        examples = []
        for index, text in enumerate(texts):
            with _naming_row(rows[index], first + index):
                if self._label_words is not None:
                    examples.append(self._classification(text, self._label_words, fields[index], golds[index]))
                elif self._is_encoder_decoder:
                    examples.append(self._sequence_to_sequence(text, decoded[index]))
                else:
                    examples.append(self._causal(text))
        return examples

    def _causal(self, text: TextWithTarget) -> Example:
        if self.task.objective == "text2text" and text.target_start == 0:
            text.begin_with(self._empty_text())
        text.cut(self._max_tokens, self.task.truncation_field)
        ids = text.input_ids
        start = text.target_start if self.task.objective == "text2text" else text.fields_start
        # Nothing comes before the first id to generate it from.
        labels = [
            i if position >= max(start, 1) and position < text.target_stop and i < self._first_row_id else IGNORED_LABEL
            for position, i in enumerate(ids)
        ]
        if not any(label != IGNORED_LABEL for label in labels):
            raise TaskError("nothing of the example is to be generated; check the task's target.")
        return self._example(ids, text.prefix_len, labels)

    def _sequence_to_sequence(self, text: TextWithTarget, labels: list[int]) -> Example:
        text.cut(self._max_tokens, self.task.truncation_field)
        return self._example(text.input_ids, 0, labels)

    def _classification(
        self, text: TextWithTarget, label_words: LabelWords, fields: Mapping[str, str], gold: int
    ) -> Example:
        candidates, _ = label_words.after(fields, text.input_ids)
        in_decoder = 0 if self._is_encoder_decoder else max(map(len, candidates)) - 1
        limit = None if self._max_tokens is None else self._max_tokens - in_decoder
        text.cut(limit, self.task.truncation_field)
        candidates, num_joined = label_words.after(fields, text.input_ids)
        prefix_len = 0 if self._is_encoder_decoder else text.prefix_len
        ids = text.input_ids[: len(text.input_ids) - num_joined] or self._empty_text()
        example = self._example(ids, prefix_len, [])
        example["candidates"], example["class_of"], example["gold"] = candidates, label_words.class_of, gold
        return example

    def _empty_text(self) -> list[int]:
        """What a deep prompt reads when there is no text, as when it is served."""
        if self._tokenizer.bos_token_id is None:
            raise TaskError("the text is empty, and the tokenizer has no beginning-of-text token to read in its place.")
        return [int(self._tokenizer.bos_token_id)]

    def _example(self, ids: list[int], prefix_len: int, labels: list[int]) -> Example:
        return Example(
            prompt=self._prompt_index,
            input_ids=ids,
            prefix_len=0 if self._num_deep_rows else prefix_len,
            labels=labels,
            candidates=[],
            class_of=[],
            gold=-1,
        )


def _check_target(task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse special tokens in a target's template, which would be trained as the characters of their names."""
    found = tokenizer_state(tokenizer).specials(tokenizer).spelled_in(task.target_texts)
    if found:
        raise TaskError(
            f"the target {shown(task.target)} spells the special token {shown(found[0])}; a target is data, and the "
            "end-of-text token is added after it. Leave it out."
        )


@contextmanager
def _naming_row(row: Row, index: int) -> Iterator[None]:
    """Put the place of the row in its file, or else its number, before the message of an error."""
    try:
        yield
    except RupromptError as error:
        raise type(error)(f"{getattr(row, 'place', f'row {index}')}: {error}") from error
