"""A tensor that a file holds: described completely before any of its numbers is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ruprompt_fast.prompts.files.reading.regular_file import RegularFile


@dataclass(frozen=True)
class StoredTensor:
    """Where the numbers of a dense tensor lie; whoever makes one has checked that they lie within the file.

    Attributes:
        file: the open file.
        dtype: their type.
        shape: the sizes.
        stride: from one number to the next of each dimension, in numbers.
        start: the first number's place in the file, in bytes.
    """

    file: RegularFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    def part(self, index: int) -> StoredTensor:
        """One slice along the first dimension."""
        start = self.start + index * self.stride[0] * self.dtype.itemsize
        return StoredTensor(self.file, self.dtype, self.shape[1:], self.stride[1:], start)

    def read(self) -> Tensor:
        """The numbers, as a contiguous tensor on the CPU that shares its memory with nothing.

        Raises:
            PromptFileError: the file became shorter meanwhile.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        length = span(self.shape, self.stride)
        data = self.file.read_buffer(self.start, length * self.dtype.itemsize)
        return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.stride).contiguous()


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many numbers lie from a tensor's first to its last one, both included; 0 if it has none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride of numbers that lie in the order of their indices."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
