"""The KV cache of all sequences, in pages on a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.backends.cuda.device import Device
from ruprompt_fast.backends.page_layout import PageLayout, bytes_per_page
from ruprompt_fast.cache import HostPages, PageIndices, num_pages_of
from ruprompt_fast.ops import copy_pages_at_once
from ruprompt_fast.ops.page_copies import rounds_of
from ruprompt_fast.ops.token_major_pages import PAGE_SIZE, token_major_page_shapes
from ruprompt_fast.prompts import KVShape


class DevicePages:
    """Token-major pages for the keys and values of every layer; see :class:`~ruprompt_fast.cache.PagePool`.

    Neighbouring layers of one shape are one tensor, so that a page is copied in all of them at once. A page more than
    the scheduler knows, the *trash page*, is for what runs only to fill up a step.

    Args:
        device: where they are.
        shapes: the shapes of each layer's key and value of a token.
        num_pages: pages of every layer, without the trash page.
        dtype: of keys and values.

    Attributes:
        keys: for every layer, [num_pages + 1, kv_heads, PAGE_SIZE, head_dim].
        values: likewise.
        trash_page: the number of the trash page.
    """

    page_size = PAGE_SIZE

    def __init__(self, device: Device, shapes: Sequence[KVShape], num_pages: int, dtype: torch.dtype) -> None:
        self._layout = PageLayout(shapes, num_pages, _page_shapes, dtype)
        self.num_pages = num_pages
        self.trash_page = num_pages
        self.page_bytes = bytes_per_page(shapes, PAGE_SIZE, dtype)
        self._device = device
        self._dtype = dtype
        self._groups = [self._group(shape, num_pages + 1) for shape in _merged(shapes)]
        self.keys = [layer for keys, _ in self._groups for layer in keys]
        self.values = [layer for _, values in self._groups for layer in values]

    def close(self) -> None:
        """Give back the memory; nothing is read or written afterwards."""
        self._groups, self.keys, self.values = [], [], []

    def copy_pages(self, copies: npt.NDArray[np.integer]) -> None:
        """Copy whole pages in every layer: pairs (source, destination) [n, 2], in order."""
        for copies_at_once in rounds_of(copies):
            pairs = self._index(copies_at_once.reshape(-1)).view(-1, 2)
            for group in self._groups:
                for pages in group:
                    copy_pages_at_once(pages, pairs)

    def read_pages(self, pages: PageIndices) -> HostPages:
        """A copy of pages in pinned host memory, which may still be on its way.

        Raises:
            TensorArgumentError: a page is not in the pool.
        """
        index = self._index(pages)
        # Gathered first: the pages may be written again while the copy goes to the host.
        saved = [[self._device.save(part.index_select(1, index)) for part in group] for group in self._groups]
        return HostPages(
            tuple(layer for keys, _ in saved for layer in keys), tuple(layer for _, values in saved for layer in values)
        )

    def write_pages(self, pages: PageIndices, host_pages: HostPages) -> None:
        """Write a copy back, into pages that need not be those it was read from.

        Raises:
            TensorArgumentError: a page is not in the pool, or the copy has another number of pages, other layers
                or another dtype.
        """
        index = self._index(pages)
        self.check_host_pages(host_pages, len(index))
        start = 0
        for group in self._groups:
            stop = start + group[0].shape[0]
            for part, copies in zip(group, (host_pages.keys[start:stop], host_pages.values[start:stop]), strict=True):
                arriving = part.new_empty((part.shape[0], len(index), *part.shape[2:]))
                self._device.load(copies, arriving)
                part.index_copy_(1, index, arriving)
            start = stop

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
        return HostPages(tuple(map(self._packed, keys)), tuple(map(self._packed, values)))

    def _packed(self, tokens: Tensor) -> Tensor:
        length, heads, width = tokens.shape
        num_pages = num_pages_of(length, PAGE_SIZE)
        pages = self._device.pinned((num_pages, heads, PAGE_SIZE, width), self._dtype)
        slots = torch.zeros(num_pages * PAGE_SIZE, heads, width, dtype=self._dtype)
        slots[:length] = tokens
        return pages.copy_(slots.unflatten(0, (num_pages, PAGE_SIZE)).transpose(1, 2))

    def _group(self, shape: KVShape, num_pages: int) -> tuple[Tensor, Tensor]:
        """Pages for the layers of one shape, [layers, pages, kv_heads, PAGE_SIZE, dim] of keys and of values."""
        keys, values = _page_shapes(shape, num_pages)
        return (
            self._device.pages((shape.num_layers, *keys), self._dtype),
            self._device.pages((shape.num_layers, *values), self._dtype),
        )

    def _index(self, pages: PageIndices) -> Tensor:
        index = self._layout.index(pages)
        # A copy from memory that is not pinned would wait for all that the device has been given.
        staged = self._device.pinned(index.shape, index.dtype).copy_(index)
        arrived = torch.empty_like(index, device=self._device.torch_device)
        self._device.upload(staged, arrived)
        return arrived


def _page_shapes(layer: KVShape, num_pages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return token_major_page_shapes(num_pages, layer.num_key_value_heads, layer.head_dim, layer.value_width)


def _merged(shapes: Sequence[KVShape]) -> list[KVShape]:
    """The same layers, with neighbours of one shape in one."""
    equal = (list(group) for _, group in groupby(shapes, lambda shape: replace(shape, num_layers=1)))
    return [replace(group[0], num_layers=sum(shape.num_layers for shape in group)) for group in equal]
