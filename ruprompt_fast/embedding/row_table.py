"""The virtual tokens that one batch reads, each prompt's once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ruprompt_fast.embedding.layer import SplicedEmbedding


class RowTable:
    """Puts the virtual tokens of a batch's prompts into one table, and turns ids of requests into ids of the table.

    In a request, virtual token k of its prompt has the id ``first_row_id + k``; in the batch, row k of the table has
    the id ``first_prompt_id + k`` that :func:`~ruprompt_fast.ops.splice` reads.

    Args:
        embedding: the model's input embedding.
        has_padding: whether the table begins with a row of zeros, for padding.
    """

    def __init__(self, embedding: SplicedEmbedding, *, has_padding: bool = False) -> None:
        self._embedding = embedding
        self._starts: dict[int, int] = {}
        weight, width = embedding.weight, embedding.row_width
        self._parts = [weight.new_zeros((1, width))] if has_padding else []
        self._num_rows = len(self._parts)

    def place(self, ids: npt.NDArray[np.int64], rows: Tensor | None) -> npt.NDArray[np.int64]:
        """A request's ids in terms of this table; its prompt's rows [num_rows, width] are added to it."""
        if rows is None or not (is_row := ids >= self._embedding.first_row_id).any():
            return ids
        if id(rows) not in self._starts:
            self._starts[id(rows)] = self._num_rows
            weight = self._embedding.weight
            self._parts.append(rows.to(weight.device, weight.dtype))  # the model may have been converted since
            self._num_rows += rows.shape[0]
        shift = self._embedding.first_prompt_id + self._starts[id(rows)] - self._embedding.first_row_id
        return np.where(is_row, ids + shift, ids)

    def rows(self) -> Tensor:
        """The table, [num_rows, width]."""
        if self._parts:
            return torch.cat(self._parts)
        return self._embedding.weight.new_empty((0, self._embedding.row_width))
