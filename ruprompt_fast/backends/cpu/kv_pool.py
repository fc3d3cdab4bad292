"""The keys and values of all sequences, in pages."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.errors import SettingError, TensorArgumentError
from ruprompt_fast.ops.kv_pages import PAGE_SIZE, copy_pages, kv_page_shapes, write_kv

PageIndices: TypeAlias = "npt.NDArray[np.integer] | Sequence[int]"
"""Pages of a pool, as whole numbers [n]."""


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer keeps of a token: a key [num_kv_heads, head_dim], a value [num_kv_heads, value_dim]."""

    num_kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def page_elements(self) -> int:
        """Numbers in one page of keys and one page of values."""
        return self.num_kv_heads * (self.head_dim + self.value_dim) * PAGE_SIZE


@dataclass(frozen=True, eq=False)
class HostPages:
    """A copy of some pages in host memory, in the pool's layout.

    Attributes:
        keys: for every layer, [pages, ...] as in ``ops.kv_page_shapes``.
        values: likewise.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_pages(self) -> int:
        """How many pages there are."""
        return self.keys[0].shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class KVPool:
    """Pages for the keys and values of every layer, allocated once.

    A slot is ``page * 16 + offset``. On the CPU a page takes memory when it is first written. A slot that was never
    written holds zeros, a slot of an earlier sequence what that wrote, which may be infinite: attention has to mask
    what lies behind a sequence's end before it multiplies, not after.

    Args:
        layers: the shapes of the attention layers, in order.
        num_pages: pages of every layer.
        dtype: dtype of keys and values.
        device: where they are.

    Attributes:
        keys: for every layer, its key pages, shaped as ``ops.kv_page_shapes`` says.
        values: likewise.
        page_bytes: bytes of one page of all layers.

    Raises:
        SettingError: there are no layers, or no pages.
    """

    def __init__(self, layers: Sequence[LayerShape], num_pages: int, dtype: torch.dtype, device: torch.device) -> None:
        if num_pages < 1:
            raise SettingError(f"a pool of keys and values needs at least one page; found num_pages={num_pages}.")
        self.layers = tuple(layers)
        self.num_pages = num_pages
        self.dtype = dtype
        self.device = device
        self.page_bytes = self.bytes_per_page(layers, dtype)
        shapes = [self._shapes(layer, num_pages) for layer in layers]
        self.keys = [_zeros(key_shape, dtype, device) for key_shape, _ in shapes]
        self.values = [_zeros(value_shape, dtype, device) for _, value_shape in shapes]

    @staticmethod
    def bytes_per_page(layers: Sequence[LayerShape], dtype: torch.dtype) -> int:
        """Bytes that one page of 16 tokens takes in all layers together.

        Raises:
            SettingError: there are no layers.
        """
        if not layers:
            raise SettingError("a pool of keys and values needs at least one attention layer; found none.")
        return sum(layer.page_elements for layer in layers) * dtype.itemsize

    @staticmethod
    def pages_for_budget(layers: Sequence[LayerShape], dtype: torch.dtype, budget_bytes: int) -> int:
        """How many pages fit a budget: of the pool, or of the prefixes that may stay in it.

        Raises:
            SettingError: not a single page fits.
        """
        page_bytes = KVPool.bytes_per_page(layers, dtype)
        if budget_bytes < page_bytes:
            raise SettingError(
                f"a budget of {budget_bytes} bytes holds no page of keys and values; one page ({PAGE_SIZE} tokens, "
                f"{len(layers)} layers, {dtype}) takes {page_bytes} bytes. Give a larger budget."
            )
        return budget_bytes // page_bytes

    def copy_pages(self, copies: npt.NDArray[np.integer]) -> None:
        """Copy whole pages in every layer: pairs (source, destination) [n, 2], in order."""
        if len(copies) == 0:
            return
        pairs = torch.from_numpy(np.array(copies)).to(self.device)
        for pages in (*self.keys, *self.values):
            copy_pages(pages, pairs)

    def read_pages(self, pages: PageIndices) -> HostPages:
        """A copy of pages in host memory.

        Raises:
            TensorArgumentError: a page is not in the pool.
        """
        index = self._index(pages)
        keys = tuple(layer.index_select(0, index).cpu() for layer in self.keys)
        return HostPages(keys, tuple(layer.index_select(0, index).cpu() for layer in self.values))

    def write_pages(self, pages: PageIndices, host_pages: HostPages) -> None:
        """Write a copy back, into pages that need not be those it was read from.

        Raises:
            TensorArgumentError: a page is not in the pool, or the copy is of another number of pages, of other layers
                or of another dtype.
        """
        index = self._index(pages)
        self.check_host_pages(host_pages, len(index))
        for layers, copies in ((self.keys, host_pages.keys), (self.values, host_pages.values)):
            for layer, copy in zip(layers, copies, strict=True):
                layer.index_copy_(0, index, copy.to(self.device))

    def check_host_pages(self, host_pages: HostPages, num_pages: int) -> None:
        """Refuse a copy that :meth:`write_pages` could not write.

        Raises:
            TensorArgumentError: it is of another number of pages, of other layers or of another dtype.
        """
        shapes = [self._shapes(layer, num_pages) for layer in self.layers]
        expected = [(shape, self.dtype) for pair in zip(*shapes, strict=True) for shape in pair]
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in (*host_pages.keys, *host_pages.values)]
        if found != expected:
            raise TensorArgumentError(
                f"host pages must be {num_pages} pages of {len(self.layers)} layers in {self.dtype}, {expected}; found "
                f"{found}. Make them with KVPool.read_pages or KVPool.pack of a pool of the same model."
            )

    def pack(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> HostPages:
        """Pages of keys and values that the model did not compute, such as those of prefix tuning.

        Args:
            keys: for every layer, [tokens, num_kv_heads, head_dim].
            values: for every layer, [tokens, num_kv_heads, value_dim].

        Raises:
            TensorArgumentError: another number of layers, another shape, or no tokens.
        """
        tokens = keys[0].shape[0] if keys else 0
        expected = [(tokens, layer.num_kv_heads, layer.head_dim) for layer in self.layers]
        expected += [(tokens, layer.num_kv_heads, layer.value_dim) for layer in self.layers]
        found = [tuple(tensor.shape) for tensor in (*keys, *values)]
        if tokens == 0 or found != expected:
            raise TensorArgumentError(f"keys and values of every layer must have the shapes {expected}; found {found}.")
        slots = torch.arange(tokens, device=self.device)
        packed = [self._pack_layer(*layer, slots) for layer in zip(self.layers, keys, values, strict=True)]
        return HostPages(tuple(pair[0] for pair in packed), tuple(pair[1] for pair in packed))

    def _pack_layer(self, layer: LayerShape, key: Tensor, value: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        shapes = self._shapes(layer, num_pages_of(len(slots)))
        key_pages, value_pages = (torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in shapes)
        write_kv(key.to(key_pages), value.to(value_pages), key_pages, value_pages, slots)
        return key_pages.cpu(), value_pages.cpu()

    @staticmethod
    def _shapes(layer: LayerShape, num_pages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return kv_page_shapes(num_pages, layer.num_kv_heads, layer.head_dim, layer.value_dim)

    def _index(self, pages: PageIndices) -> Tensor:
        index = torch.from_numpy(np.array(pages, dtype=np.int64))
        outside = index[(index < 0) | (index >= self.num_pages)]
        if len(outside):
            raise TensorArgumentError(f"pages must be in 0 .. {self.num_pages - 1}; found {outside.tolist()}.")
        return index.to(self.device)


def num_pages_of(length: int) -> int:
    """Pages that a sequence of ``length`` tokens needs."""
    return -(-length // PAGE_SIZE)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU fresh pages of the system, which take memory only when they are written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
