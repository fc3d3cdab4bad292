"""Pages of the second backend: 8 tokens, token by token, and one more page for what nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.cache import HostPages, PageIndices, num_pages_of
from ruprompt_fast.errors import SettingError, TensorArgumentError
from ruprompt_fast.prompts import KVShape

PAGE_SIZE = 8


class TokenMajorPages:
    """A :class:`~ruprompt_fast.cache.PagePool` of ``[pages + 1, page_size, kv_heads, dim]`` for keys and for values.

    The last page is the *trash page*, which padding writes to. Pages begin as NaN: memory of a device holds what was
    there before, so attention has to look at nothing that the sequence did not write.
    """

    def __init__(self, shapes: Sequence[KVShape], num_pages: int, dtype: torch.dtype) -> None:
        self.page_size = PAGE_SIZE
        self.num_pages = num_pages
        self.page_bytes = page_bytes(shapes, dtype)
        self._dtype = dtype
        self._layers = [shape for shape in shapes for _ in range(shape.num_layers)]
        self.keys = [self._empty(num_pages + 1, *self._key_shape(layer)) for layer in self._layers]
        self.values = [self._empty(num_pages + 1, *self._value_shape(layer)) for layer in self._layers]

    def copy_pages(self, copies: npt.NDArray[np.integer]) -> None:
        for source, target in copies.tolist():
            for layer in (*self.keys, *self.values):
                layer[target] = layer[source]

    def read_pages(self, pages: PageIndices) -> HostPages:
        index = self._index(pages)
        return HostPages(tuple(layer[index] for layer in self.keys), tuple(layer[index] for layer in self.values))

    def write_pages(self, pages: PageIndices, host_pages: HostPages) -> None:
        index = self._index(pages)
        self.check_host_pages(host_pages, len(index))
        copies = (*host_pages.keys, *host_pages.values)
        for layer, copy in zip((*self.keys, *self.values), copies, strict=True):
            layer[index] = copy

    def check_host_pages(self, host_pages: HostPages, num_pages: int) -> None:
        keys = [(num_pages, PAGE_SIZE, *self._key_shape(layer)) for layer in self._layers]
        values = [(num_pages, PAGE_SIZE, *self._value_shape(layer)) for layer in self._layers]
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in (*host_pages.keys, *host_pages.values)]
        if found != [(shape, self._dtype) for shape in (*keys, *values)]:
            raise TensorArgumentError(f"host pages must be {num_pages} pages like {keys} and {values}; found {found}.")

    def pack(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> HostPages:
        expected = [*map(self._key_shape, self._layers), *map(self._value_shape, self._layers)]
        found = [tuple(tensor.shape[1:]) for tensor in (*keys, *values)]
        lengths = {tensor.shape[0] for tensor in (*keys, *values)}
        if found != expected or len(lengths) != 1 or 0 in lengths:
            raise TensorArgumentError(f"keys and values of every layer must have the shapes {expected}; found {found}.")
        return HostPages(tuple(map(self._packed, keys)), tuple(map(self._packed, values)))

    def _packed(self, tokens: Tensor) -> Tensor:
        num_pages = num_pages_of(len(tokens), PAGE_SIZE)
        pages = torch.zeros(num_pages, PAGE_SIZE, *tokens.shape[1:], dtype=self._dtype)
        pages.flatten(0, 1)[: len(tokens)] = tokens
        return pages

    def _empty(self, num_pages: int, *shape: int) -> Tensor:
        return torch.full((num_pages, PAGE_SIZE, *shape), torch.nan, dtype=self._dtype)

    def _index(self, pages: PageIndices) -> Tensor:
        index = torch.tensor(np.asarray(pages, dtype=np.int64))
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_pages:
            raise TensorArgumentError(f"pages must be in 0 .. {self.num_pages - 1}; found {index.tolist()}.")
        return index

    @staticmethod
    def _key_shape(layer: KVShape) -> tuple[int, int]:
        return (layer.num_key_value_heads, layer.head_dim)

    @staticmethod
    def _value_shape(layer: KVShape) -> tuple[int, int]:
        return (layer.num_key_value_heads, layer.value_width)


def page_bytes(shapes: Sequence[KVShape], dtype: torch.dtype) -> int:
    """Bytes of a page of all layers."""
    if not shapes:
        raise SettingError("pages need at least one attention layer; found none.")
    return sum(shape.row_width for shape in shapes) * PAGE_SIZE * dtype.itemsize
