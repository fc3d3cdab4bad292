"""Which tile the attention kernels over pages take."""

from __future__ import annotations

from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.kernels.attention import MOST_DIM, Tile, tile_for
from ruprompt_fast.ops.cuda.cards import Card


def tile_of(query: Tensor, value_pages: Tensor, card: Card) -> Tile:
    """The tile for these heads on a card.

    Raises:
        TensorArgumentError: heads are too large.
    """
    head_dim, value_dim = query.shape[2], value_pages.shape[3]
    if max(head_dim, value_dim) > MOST_DIM:
        raise TensorArgumentError(
            f"the attention kernels take heads of up to {MOST_DIM} numbers; found {head_dim} in queries and keys, "
            f"{value_dim} in values"
        )
    return tile_for(head_dim, value_dim, query.dtype, card.has_fast_dot)
