"""The KV cache of all sequences, in pages of the CPU's layout."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.backends.page_layout import PageLayout, bytes_per_page
from ruprompt_fast.cache import HostPages, PageIndices, num_pages_of
from ruprompt_fast.ops import copy_pages, write_kv
from ruprompt_fast.ops.cpu.kv_pages import PAGE_SIZE, kv_page_shapes
from ruprompt_fast.prompts import KVShape


class KVPool:
    """Pages for the keys and values of every layer, allocated once; see :class:`~ruprompt_fast.cache.PagePool`.

    A page takes memory when it is first written. A slot that was never written holds zeros; a reused slot holds what an
    earlier sequence wrote, which may be infinite. So attention must mask what comes after a sequence's end before it
    multiplies.

    Args:
        shapes: the shapes of each attention layer's key and value, in order.
        num_pages: pages of every layer.
        dtype: the dtype of keys and values.

    Attributes:
        keys: for every layer, its key pages, shaped as ``ops.kv_page_shapes`` says.
        values: likewise.

    Raises:
        SettingError: there are no layers, or no pages.
    """

    page_size = PAGE_SIZE

    def __init__(self, shapes: Sequence[KVShape], num_pages: int, dtype: torch.dtype) -> None:
        self._layout = PageLayout(shapes, num_pages, _page_shapes, dtype)
        self.num_pages = num_pages
        self.dtype = dtype
        self.page_bytes = bytes_per_page(shapes, PAGE_SIZE, dtype)
        page_shapes = [_page_shapes(layer, num_pages) for layer in self._layout.layers]
        self.keys = [_zeros(key_shape, dtype) for key_shape, _ in page_shapes]
        self.values = [_zeros(value_shape, dtype) for _, value_shape in page_shapes]

    def copy_pages(self, copies: npt.NDArray[np.integer]) -> None:
        """Copy whole pages in every layer: pairs (source, destination) [n, 2], in order."""
        if len(copies) == 0:
            return
        pairs = torch.from_numpy(np.array(copies))
        for pages in (*self.keys, *self.values):
            copy_pages(pages, pairs)

    def read_pages(self, pages: PageIndices) -> HostPages:
        """A copy of pages in host memory.

        Raises:
            TensorArgumentError: a page is not in the pool.
        """
        index = self._layout.index(pages)
        keys = tuple(layer.index_select(0, index) for layer in self.keys)
        return HostPages(keys, tuple(layer.index_select(0, index) for layer in self.values))

    def write_pages(self, pages: PageIndices, host_pages: HostPages) -> None:
        """Write a copy back, into pages that need not be those it was read from.

        Raises:
            TensorArgumentError: a page is not in the pool, or the copy has another number of pages, other layers
                or another dtype.
        """
        index = self._layout.index(pages)
        self.check_host_pages(host_pages, len(index))
        for layers, copies in ((self.keys, host_pages.keys), (self.values, host_pages.values)):
            for layer, copy in zip(layers, copies, strict=True):
                layer.index_copy_(0, index, copy)

    def check_host_pages(self, host_pages: HostPages, num_pages: int) -> None:
        """Refuse a copy that :meth:`write_pages` could not write.

        Raises:
            TensorArgumentError: it has another number of pages, other layers or another dtype.
        """
        self._layout.check_host_pages(host_pages, num_pages)

    def pack(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> HostPages:
        """Pages of keys and values that the model did not compute, such as those of prefix tuning.

        Args:
            keys: for every layer, [tokens, num_kv_heads, head_dim].
            values: for every layer, [tokens, num_kv_heads, value_dim].

        Raises:
            TensorArgumentError: another number of layers, another shape, or no tokens.
        """
        self._layout.check_tokens(keys, values)
        slots = torch.arange(keys[0].shape[0])
        packed = [self._pack_layer(*layer, slots) for layer in zip(self._layout.layers, keys, values, strict=True)]
        return HostPages(tuple(pair[0] for pair in packed), tuple(pair[1] for pair in packed))

    def _pack_layer(self, layer: KVShape, key: Tensor, value: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        shapes = _page_shapes(layer, num_pages_of(len(slots), PAGE_SIZE))
        key_pages, value_pages = (torch.zeros(shape, dtype=self.dtype) for shape in shapes)
        write_kv(key.to(key_pages), value.to(value_pages), key_pages, value_pages, slots)
        return key_pages, value_pages


def _page_shapes(layer: KVShape, num_pages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return kv_page_shapes(num_pages, layer.num_key_value_heads, layer.head_dim, layer.value_width)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in fresh memory of the system, which is allocated only when it is written."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
