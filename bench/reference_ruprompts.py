"""The lookup as ruPrompts does it: find the markers, look every id up, write the prompt's rows over the markers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def embed(
    input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, marker: int, out: Tensor | None = None
) -> Tensor:
    """Rows of ``token_weight``, with those of ``prompt_weight`` in place of each sequence's markers.

    Args:
        input_ids: ``[batch, sequence]``; every sequence holds the marker once for each row of the prompt.
        token_weight: ``[tokens, width]``.
        prompt_weight: ``[rows, width]``.
        marker: the id that the prompt's rows replace, in their order.
        out: ``[batch, sequence, width]`` to look up into; freshly allocated if not given.
    """
    mask = input_ids == marker
    token_ids = input_ids.clone()
    token_ids[mask] = 0
    if out is None:
        rows = F.embedding(token_ids, token_weight)
    else:
        rows = out.detach()
        torch.index_select(token_weight, 0, token_ids.view(-1), out=rows.view(-1, rows.shape[-1]))
    if prompt_weight.shape[0] and mask.any():
        rows[mask] = prompt_weight.repeat(input_ids.shape[0], 1)
    return rows
