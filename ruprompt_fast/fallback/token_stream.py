"""What transformers' generate sends its tokens to, and what it calls between two tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ruprompt_fast.concurrency.apart import Apart
from ruprompt_fast.concurrency.fair_lock import FairLock


class TokenSender(BaseStreamer):
    """Sends every new token to the reader.

    Args:
        apart: the work that generates.
    """

    def __init__(self, apart: Apart[int]) -> None:
        self._apart = apart
        self._input_seen = False

    def put(self, value: Tensor) -> None:
        """Take the next tokens; the first call brings the input."""
        if not self._input_seen:
            self._input_seen = True
            return
        for token in value.flatten().tolist():
            self._apart.send(token)

    def end(self) -> None:
        """Nothing to do: the results end when ``generate`` returns."""


class BetweenTokens(StoppingCriteria):
    """Lets others use the model between two tokens, and ends the generation when its reader has gone.

    Args:
        engine_lock: held by the thread that generates.
        apart: the work that generates.
        check: raises if the model cannot go on.
    """

    def __init__(self, engine_lock: FairLock, apart: Apart[Any], check: Callable[[], None]) -> None:
        self._engine_lock = engine_lock
        self._apart = apart
        self._check = check

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each sequence [batch, length] is to end, as bool [batch]."""
        self._engine_lock.give_way()
        self._check()
        return torch.full((input_ids.shape[0],), self._apart.is_closed, device=input_ids.device)
