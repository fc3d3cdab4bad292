"""Which requests the transformers fallback runs together, and the batch that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.embedding import RowTable
from ruprompt_fast.requests.generation_task import GenerationTask
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.new_tokens import NewTokens

if TYPE_CHECKING:
    from ruprompt_fast.embedding import SplicedEmbedding

Togetherness: TypeAlias = Literal["any", "equal lengths", "alone"]
"""Which requests may share a batch so that each is computed as it is alone."""


def assemble(
    batch: Sequence[Request], embedding: SplicedEmbedding, *, pad_right: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's ids and attention mask [batch, longest], and its table of virtual tokens [1 + rows, width].

    Row 0 is padding. An encoder counts positions from the left, so its inputs are padded on the right. A decoder
    continues its input, so all inputs must end where the batch does.

    Args:
        batch: the requests.
        embedding: the model's input embedding.
        pad_right: whether padding comes after the inputs.
    """
    table = RowTable(embedding, has_padding=True)
    ids = [table.place(np.asarray(item.input_ids, dtype=np.int64), item.prompt_rows) for item in batch]
    longest = max(map(len, ids))
    input_ids = np.full((len(batch), longest), embedding.first_prompt_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, own in enumerate(ids):
        place = slice(None, len(own)) if pad_right else slice(longest - len(own), None)
        input_ids[row, place] = own
        mask[row, place] = 1
    device = embedding.weight.device
    return torch.from_numpy(input_ids).to(device), torch.from_numpy(mask).to(device), table.rows()


def task_batches(tasks: Sequence[GenerationTask], together: Togetherness, max_batch_size: int) -> Iterator[list[int]]:
    """Batches of tasks with equal settings and similar lengths, as indices; ``max_batch_size`` sequences at most."""
    keys = {id(task.config): repr(sorted(task.config.to_dict().items())) for task in tasks}
    groups: dict[tuple[str, NewTokens], list[int]] = {}
    for index, task in enumerate(tasks):
        groups.setdefault((keys[id(task.config)], task.budget), []).append(index)
    for indices in groups.values():
        # transformers looks candidates up in the input of a single request only.
        first = tasks[indices[0]]
        at_once = max(1, max_batch_size // first.num_sequences)
        size = 1 if first.config.prompt_lookup_num_tokens else at_once
        for batch in request_batches([tasks[index].request for index in indices], together, size):
            yield [indices[place] for place in batch]


def request_batches(requests: Sequence[Request], together: Togetherness, size: int) -> Iterator[list[int]]:
    """Batches of at most ``size`` requests that may run together, as indices; the shortest requests first."""
    lengths = [len(request.input_ids) for request in requests]
    ordered = sorted(range(len(requests)), key=lengths.__getitem__)
    size = 1 if together == "alone" else size
    batch: list[int] = []
    for index in ordered:
        is_apart = bool(batch) and together == "equal lengths" and lengths[batch[0]] != lengths[index]
        if is_apart or len(batch) == size:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
