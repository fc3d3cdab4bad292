"""What the pools of all backends say of their pages, whatever these look like in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.cache import HostPages, PageIndices
from ruprompt_fast.errors import SettingError, TensorArgumentError
from ruprompt_fast.prompts import KVShape

PageShapes: TypeAlias = Callable[[KVShape, int], tuple[tuple[int, ...], tuple[int, ...]]]
"""From a layer and a number of pages to the shapes of its key pages and its value pages."""


@dataclass(frozen=True, eq=False)
class PageLayout:
    """The pages of one pool.

    Attributes:
        shapes: the shapes of each attention layer's key and value of a token, in order.
        num_pages: pages of every layer.
        page_shapes: how a layer's pages lie in memory.
        dtype: of keys and values.

    Raises:
        SettingError: there are no pages.
    """

    shapes: Sequence[KVShape]
    num_pages: int
    page_shapes: PageShapes
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.num_pages < 1:
            raise SettingError(f"a pool of keys and values needs at least one page; found num_pages={self.num_pages}.")

    @property
    def layers(self) -> list[KVShape]:
        """The shape of every layer."""
        return [shape for shape in self.shapes for _ in range(shape.num_layers)]

    def index(self, pages: PageIndices) -> Tensor:
        """Numbers of pages as int64 [n], on the host.

        Raises:
            TensorArgumentError: one is not in the pool.
        """
        index = torch.from_numpy(np.array(pages, dtype=np.int64))
        outside = index[(index < 0) | (index >= self.num_pages)]
        if len(outside):
            raise TensorArgumentError(f"pages must be in 0 .. {self.num_pages - 1}; found {outside.tolist()}.")
        return index

    def check_host_pages(self, host_pages: HostPages, num_pages: int) -> None:
        """Refuse a copy that could not be written to so many pages.

        Raises:
            TensorArgumentError: it has another number of pages, other layers or another dtype.
        """
        shapes = [self.page_shapes(layer, num_pages) for layer in self.layers]
        expected = [(shape, self.dtype) for part in zip(*shapes, strict=True) for shape in part]
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in (*host_pages.keys, *host_pages.values)]
        if found != expected:
            raise TensorArgumentError(
                f"host pages must be {num_pages} pages of {len(self.layers)} layers in {self.dtype}, {expected}; "
                f"found {found}. Make them with read_pages or pack of a pool of the same model."
            )

    def check_tokens(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Refuse keys and values that could not be packed into pages.

        Raises:
            TensorArgumentError: another number of layers, another shape, or no tokens.
        """
        tokens = keys[0].shape[0] if keys else 0
        expected = [(tokens, layer.num_key_value_heads, layer.head_dim) for layer in self.layers]
        expected += [(tokens, layer.num_key_value_heads, layer.value_width) for layer in self.layers]
        found = [tuple(tensor.shape) for tensor in (*keys, *values)]
        if tokens == 0 or found != expected:
            raise TensorArgumentError(f"keys and values of every layer must have the shapes {expected}; found {found}.")


def bytes_per_page(shapes: Sequence[KVShape], page_size: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes in all layers together.

    Raises:
        SettingError: there are no layers.
    """
    if not shapes:
        raise SettingError("a pool of keys and values needs at least one attention layer; found none.")
    return sum(shape.row_width for shape in shapes) * page_size * dtype.itemsize
