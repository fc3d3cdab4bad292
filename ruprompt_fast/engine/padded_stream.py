"""Streaming from transformers' generate, which hands tokens to an object instead of yielding them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ruprompt_fast.engine.loop import FairLock
from ruprompt_fast.engine.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Generate = Callable[[BaseStreamer, StoppingCriteria], Any]
"""Generates one sequence, calling the streamer with every token and stopping when the criterion says so."""


def stream_text(
    generate: Generate, tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...], turn: FairLock
) -> Iterator[str]:
    """The text that ``generate`` writes, piece by piece, from a thread that lives as long as the iterator.

    Args:
        generate: writes the text, holding ``turn``.
        tokenizer: decodes it.
        stop_strings: strings that end it.
        turn: the lock over the model.
    """
    tokens = _TokenQueue()
    closed = _Closed()
    thread = threading.Thread(target=tokens.run, args=(generate, closed), daemon=True)
    thread.start()
    text = TextStream(tokenizer, stop_strings)
    try:
        while (token := tokens.queue.get()) is not None:
            if not text.stopped and (piece := text.push([token])):
                yield piece
        if piece := text.flush():
            yield piece
        if tokens.error is not None:
            raise tokens.error
    finally:
        closed.event.set()
        if not turn.held_here:  # as when the garbage collector closes the iterator in the midst of a step
            thread.join()


class _TokenQueue(BaseStreamer):
    """Puts every new token into a queue, and None behind the last."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | None] = SimpleQueue()
        self.error: BaseException | None = None
        self._input_seen = False

    def run(self, generate: Generate, closed: StoppingCriteria) -> None:
        try:
            generate(self, closed)
        except BaseException as error:  # it is raised where the text is read
            self.error = error
        finally:
            self.queue.put(None)

    def put(self, value: Tensor) -> None:
        if not self._input_seen:  # the first call brings the input
            self._input_seen = True
            return
        for token in value.flatten().tolist():
            self.queue.put(token)

    def end(self) -> None:
        """Nothing to do: the queue ends when ``generate`` returns."""


class _Closed(StoppingCriteria):
    """Stops when nobody reads any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)
