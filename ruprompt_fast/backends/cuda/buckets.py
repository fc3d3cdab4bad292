"""The sizes for which decode steps are captured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_SMALLEST_CONTEXT_BLOCKS = 32
_CONTEXT_FACTOR = 4


@dataclass(frozen=True, order=True)
class Bucket:
    """A size of decode steps.

    Attributes:
        num_rows: sequences; those that are missing are padding.
        num_blocks: pages of a sequence.
        shares_prefixes: whether sequences that begin with the same pages read these together.
    """

    num_rows: int
    num_blocks: int
    shares_prefixes: bool = False

    def __str__(self) -> str:
        shared = " with shared prefixes" if self.shares_prefixes else ""
        return f"{self.num_rows} sequences of {self.num_blocks} pages{shared}"


class Buckets:
    """All sizes up to the largest step.

    Numbers of sequences: 1, 2, 4, 8, multiples of 8 up to 32 and of 16 up to 64, then half a power of two apart, so a
    large step has a third of padding at most. Contexts are a factor of four apart: a program past the end of a row's
    context returns at once, so a wide grid costs little.

    Args:
        max_rows: sequences of a step at most.
        max_blocks: pages of a sequence at most.
    """

    def __init__(self, max_rows: int, max_blocks: int) -> None:
        self.rows = tuple(_row_sizes(max_rows))
        self.blocks = tuple(_block_sizes(max_blocks))

    def of(self, num_rows: int, num_blocks: int, shares_prefixes: bool = False) -> Bucket:
        """The smallest that holds a step."""
        return Bucket(
            next(size for size in self.rows if size >= num_rows),
            next(size for size in self.blocks if size >= num_blocks),
            shares_prefixes,
        )

    def largest_first(self) -> list[Bucket]:
        """All that share no prefixes; smaller ones then find room in the memory of larger ones."""
        return sorted((Bucket(rows, blocks) for rows in self.rows for blocks in self.blocks), reverse=True)

    @property
    def largest(self) -> Bucket:
        """The one that holds every step."""
        return Bucket(self.rows[-1], self.blocks[-1])


def _row_sizes(most: int) -> Iterator[int]:
    size = 1
    while size < most:
        yield size
        if size < 8:
            size *= 2
        elif size < 64:
            size += 8 if size < 32 else 16
        else:  # 64, 96, 128, 192, 256, ...
            size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    yield size


def _block_sizes(most: int) -> Iterator[int]:
    size = _SMALLEST_CONTEXT_BLOCKS
    while size < most:
        yield size
        size *= _CONTEXT_FACTOR
    yield most
