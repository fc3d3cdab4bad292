"""From data set items to training examples."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import BatchMismatchError, MissingFieldError
from ruprompt_fast.prompts.format.patched_input import marker_runs
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.targets import TextWithTarget, tokenize_with_targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = Mapping[str, Any]
Batch = Mapping[str, list[Any]]

IGNORED_LABEL = -100
"""The label of tokens that the loss leaves out."""


class BasePreprocessor(abc.ABC):
    """Turns items into what a model trains on."""

    def __call__(self, items: Any) -> Any:
        """Process one item, a list of items, or a batch as ``datasets.map(batched=True)`` passes it.

        Args:
            items: an item is a mapping from columns to values; a batch maps columns to lists of values.

        Returns:
            A dictionary for an item, a list of dictionaries for a list, a dictionary of lists for a batch.
        """
        if isinstance(items, list):
            return [self.process(item) for item in items]
        if self._is_batch(items):
            return self.batch_process(items)
        return self.process(items)

    @abc.abstractmethod
    def process(self, item: Item) -> dict[str, Any]:
        """Process one item."""

    @abc.abstractmethod
    def batch_process(self, items: Batch) -> dict[str, list[Any]]:
        """Process a batch of columns."""

    @abc.abstractmethod
    def collate_fn(self, **kwargs: Any) -> Callable[..., Any]:
        """What makes a batch of tensors from processed items."""

    def _is_batch(self, items: Mapping[str, Any]) -> bool:
        return False


@dataclass
class Text2TextPreprocessor(BasePreprocessor):
    """Formats an item, appends its target and the end-of-text token, tokenizes, and labels the target.

    The ids are those of ``format.encode(item, tokenizer, is_continued=True)``, with the marker's id for virtual tokens,
    then the target as the text's continuation, then the end token's id.
    The labels are the target's tokens and the end token; a token that joins the target with the text before it
    counts as the target's. Fields and targets may contain anything: a marker or a special token's text in them is plain
    text.

        >>> preprocess = Text2TextPreprocessor(format, tokenizer, target_field="summary", max_tokens=1024,
        ...                                    truncation_field="text")
        >>> trainer = Trainer(train_dataset=dataset.map(preprocess), data_collator=preprocess.collate_fn(), ...)

    Args:
        prompt_format: the prompt's format, initialized and added to the tokenizer, as after ``prompt.patch``.
        tokenizer: the model's tokenizer.
        target_field: the column of the text to generate.
        max_tokens: maximum number of tokens of an example; None sets no limit.
        truncation_field: the field whose end is cut off where an example is longer. Other tokens are never cut, soft
            rows least of all.
    """

    prompt_format: PromptFormat
    tokenizer: PreTrainedTokenizerBase
    target_field: str
    max_tokens: int | None = None
    truncation_field: str | None = None

    @property
    def is_truncation_enabled(self) -> bool:
        """Whether long examples are cut."""
        return self.truncation_field is not None and self.max_tokens is not None

    def process(self, item: Item) -> dict[str, Any]:
        """Make one example.

        Returns:
            Lists ``input_ids``, ``attention_mask`` and ``labels``, and ``token_type_ids`` if the model takes them.

        Raises:
            NotInitializedError: the format is not initialized, or its marker was not added to the tokenizer.
            MissingFieldError: a field or the target is missing.
            FieldTypeError: one of them is not a string.
            ContextLengthError: the example is longer than ``max_tokens`` and the field to cut is too short, or there is
                none.
            UnsupportedModelError: the tokenizer has no end-of-text token.
        """
        return self._process([item])[0]

    def batch_process(self, items: Batch) -> dict[str, list[Any]]:
        """Make the examples of a batch of columns, see :meth:`process`.

        Raises:
            BatchMismatchError: the columns have different lengths.
        """
        columns = {name: items[name] for name in (*self.prompt_format.fields, self.target_field) if name in items}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise BatchMismatchError(f"the columns of a batch must have one length; found {lengths}.")
        count = next(iter(lengths.values()), 0)
        examples = self._process([{name: column[i] for name, column in columns.items()} for i in range(count)])
        names = examples[0] if examples else ("input_ids", "attention_mask", "labels")
        return {name: [example[name] for example in examples] for name in names}

    def collate_fn(self, **kwargs: Any) -> Callable[..., Any]:
        """A ``DataCollatorForSeq2Seq`` of transformers: pads ids and labels to the longest of a batch.

        Args:
            kwargs: its arguments.
        """
        from transformers import DataCollatorForSeq2Seq

        return DataCollatorForSeq2Seq(**{"tokenizer": self.tokenizer, "return_tensors": "pt", **kwargs})

    def _is_batch(self, items: Mapping[str, Any]) -> bool:
        return isinstance(items.get(self.target_field), list | tuple)

    def _process(self, items: list[Item]) -> list[dict[str, Any]]:
        runs = marker_runs(self.prompt_format, self.tokenizer)
        if self.truncation_field is not None and self.truncation_field not in self.prompt_format.fields:
            raise MissingFieldError(
                f"truncation_field must be a field of the template, one of {list(self.prompt_format.fields)}; "
                f"found {self.truncation_field!r}."
            )
        layout = self.prompt_format.layout
        fields = [{name: item.get(name) for name in self.prompt_format.fields} for item in items]
        texts = tokenize_with_targets(
            layout,
            fields,
            [self._target(item) for item in items],
            self.tokenizer,
            self.prompt_format.prompt_token,
            runs,
            is_continued=True,
        )
        return [self._example(text) for text in texts]

    def _example(self, text: TextWithTarget) -> dict[str, Any]:
        text.cut(self.max_tokens, self.truncation_field)
        ids, length = text.input_ids, len(text.input_ids)
        labels = [IGNORED_LABEL] * text.target_start + ids[text.target_start : text.target_stop]
        labels += [IGNORED_LABEL] * (length - len(labels))
        example: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * length}
        if "token_type_ids" in self.tokenizer.model_input_names:
            example["token_type_ids"] = [0] * length
        return {**example, "labels": labels}

    def _target(self, item: Item) -> Any:
        if item.get(self.target_field) is None:
            raise MissingFieldError(f"an item has no target {self.target_field!r}; it has {list(item)}.")
        return item[self.target_field]
