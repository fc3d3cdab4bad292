"""Which requests the padded path runs together, and the batch that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

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
    """A batch's ids and attention mask [batch, longest], and its table of rows [1 + rows, width].

    Row 0 is padding. An encoder reads positions from the left, so its inputs are padded on the right; a decoder goes on
    at its input's end, so that has to stand at the batch's.

    Args:
        batch: the requests.
        embedding: the model's input embedding.
        pad_right: whether padding stands behind the inputs.
    """
    padding_id, first_row_id = embedding.first_prompt_id, embedding.first_row_id
    weight = embedding.weight
    prompts = {id(request.prompt): request.prompt for request in batch if request.prompt is not None}
    starts, parts, total = {id(None): 0}, [weight.new_zeros((1, embedding.row_width))], 0
    for key, prompt in prompts.items():
        starts[key] = total
        parts.append(prompt.rows.to(weight.device, weight.dtype))  # the model may have been converted since
        total += prompt.rows.shape[0]
    longest = max(len(request.input_ids) for request in batch)
    input_ids = torch.full((len(batch), longest), padding_id, dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, request in enumerate(batch):
        ids = torch.tensor(request.input_ids, dtype=torch.long)
        shifted = ids + starts[id(request.prompt)]
        place = slice(None, len(ids)) if pad_right else slice(longest - len(ids), None)
        input_ids[row, place] = torch.where(ids >= first_row_id, shifted, ids)
        mask[row, place] = 1
    return input_ids.to(weight.device), mask.to(weight.device), torch.cat(parts)


def task_batches(tasks: Sequence[GenerationTask], together: Togetherness, max_batch_size: int) -> Iterator[list[int]]:
    """Indices of tasks with the same settings, of like lengths, at most ``max_batch_size`` sequences together."""
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
    """Indices of requests, the shortest first, in batches of at most ``size`` that may run together."""
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
