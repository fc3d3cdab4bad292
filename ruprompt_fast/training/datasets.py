"""The rows to train on, encoded for every prompt that learns from them, and the order in which they come."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from ruprompt_fast.errors import RupromptError, TaskError, TrainingDataError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from ruprompt_fast.training.examples import Example

Rows = Sequence[Mapping[str, Any]]
"""Rows of columns: a list of mappings, or a ``datasets.Dataset``."""

Encode = Callable[[Sequence[Mapping[str, Any]]], "list[Example]"]
"""What makes one prompt's examples from rows."""


class EncodedDataset(Dataset["list[Example]"]):
    """Encoded rows: every item holds one example of each prompt that the row trains.

    Args:
        items: the examples, row by row.
    """

    def __init__(self, items: Sequence[list[Example]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[Example]:
        return self.items[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of every item, virtual tokens included."""
        return [len(item[0]["input_ids"]) for item in self.items]

    def batches(self, batch_size: int) -> list[list[Example]]:
        """All examples in batches of one prompt each, the longest first so that padding is short."""
        by_prompt: dict[int, list[Example]] = {}
        for item in self.items:
            for example in item:
                by_prompt.setdefault(example["prompt"], []).append(example)
        batches = []
        for _, examples in sorted(by_prompt.items()):
            examples.sort(key=lambda example: len(example["input_ids"]), reverse=True)
            batches += [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
        return batches

    def digest(self, first_prompt_id: int) -> str:
        """A digest of all examples and their order, which does not depend on where the ids of prompt rows begin."""
        state = hashlib.blake2b(digest_size=16)
        for item in self.items:
            for example in item:
                ids = [i if i < first_prompt_id else first_prompt_id - i - 1 for i in example["input_ids"]]
                state.update(array("q", [example["prompt"], example["gold"], len(ids), *ids]).tobytes())
                state.update(array("q", example["labels"]).tobytes())
        return state.hexdigest()


def encode_rows(
    rows: Rows | Mapping[str, Rows], encoders: Mapping[str, Encode], is_ensemble: bool, what: str
) -> EncodedDataset:
    """Encode all rows for all prompts, so that a bad one is found before any compute is spent.

    Args:
        rows: the rows; by the prompts' names if there are several prompts that are not an ensemble.
        encoders: what encodes them, by the prompts' names.
        is_ensemble: whether every row trains every prompt.
        what: what the rows are for, in messages.

    Raises:
        TaskError: the rows are not given by the prompts' names, or are although there is only one prompt.
        TrainingDataError: there are no rows, or they have no length.
        MissingFieldError, ContextLengthError, LabelError: a row cannot be encoded; the message names it.
    """
    names = list(encoders)
    if isinstance(rows, Mapping):
        if is_ensemble or len(names) == 1:
            raise TaskError(f"{what} must be one sequence of rows for one task; found a mapping of {sorted(rows)}.")
        check_names(rows, names, what)
        items = []
        for name, encode in encoders.items():
            items += [[example] for example in _encode(encode, _plain_rows(rows[name], f"{what}[{name!r}]"), name)]
        return EncodedDataset(items)
    if len(names) > 1 and not is_ensemble:
        raise TaskError(f"{what} must be a mapping from the prompts' names, {names}, to their rows; found rows.")
    plain = _plain_rows(rows, what)
    return EncodedDataset([list(item) for item in zip(*(_encode(encoders[n], plain, n) for n in names), strict=True)])


def check_names(given: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    """Check that a mapping has exactly the prompts' names.

    Raises:
        TaskError: one is missing or too many.
    """
    if set(given) != set(names):
        raise TaskError(f"{what} must have one entry for each prompt, {sorted(names)}; found {sorted(given)}.")


def _plain_rows(rows: Any, what: str) -> list[Mapping[str, Any]]:
    if isinstance(rows, str | Mapping) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise TrainingDataError(
            f"{what} must be a sequence of rows, such as a list of dicts or a datasets.Dataset; found "
            f"{type(rows).__name__}. Load a stream completely first."
        )
    if len(rows) == 0:
        raise TrainingDataError(f"{what} must hold at least one row; found none.")
    return [rows[index] for index in range(len(rows))]


def _encode(encode: Encode, rows: Sequence[Mapping[str, Any]], name: str) -> list[Example]:
    try:
        return encode(rows)
    except RupromptError as error:
        if name:
            error.args = (f"prompt {name!r}: {error}",)
        raise


class EpochSampler(Sampler[int]):
    """Indices in an order that follows from the seed and the epoch alone, so that a resumed run finds it again.

    Without ``lengths`` it is the order of transformers' ``Trainer`` with accelerate's seedable sampler.

    Args:
        num_items: how many.
        seed: the run's data seed.
        lengths: the items' lengths, to let those of one batch be of nearly equal length.
        group_size: how many items make an optimizer step; only with ``lengths``.
    """

    def __init__(self, num_items: int, seed: int, lengths: Sequence[int] | None = None, group_size: int = 1) -> None:
        self.num_items = num_items
        self.seed = seed
        self.lengths = lengths
        self.group_size = group_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_items

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.lengths is None:
            return iter(torch.randperm(self.num_items, generator=generator).tolist())
        return iter(get_length_grouped_indices(list(self.lengths), self.group_size, generator=generator))


class EpochOrder(TrainerCallback):
    """Tells a sampler the epoch; accelerate's wrappers do not reach it in every case (a skipped, sharded loader)."""

    def __init__(self) -> None:
        self.sampler: EpochSampler | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch that begins, or is resumed."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))
