"""Iterators that wait, read by coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import TypeVar, cast

T = TypeVar("T")


async def read_in_threads(pieces: Iterator[T]) -> AsyncGenerator[T, None]:
    """What a generator yields, each piece waited for in a thread; closing this one closes it."""
    reading = threading.Lock()  # a cancelled task leaves its thread inside next(), and close() has to wait for it

    def advance() -> T | None:
        with reading:
            return next(pieces, None)

    def close() -> None:
        with reading:
            cast("Generator[T, None, None]", pieces).close()

    try:
        while (piece := await asyncio.to_thread(advance)) is not None:
            yield piece
    finally:
        await asyncio.shield(asyncio.to_thread(close))
