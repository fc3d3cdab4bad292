"""What a step asks of a sampler: a row for every sequence that needs a token, and the token chosen for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.sampling.filters import Filter, build_filters
from ruprompt_fast.sampling.history import TokenIds, token_array
from ruprompt_fast.sampling.processors import Processor, build_processors


@dataclass
class SamplingRow:
    """One sequence that needs a token. May be kept from step to step while ``new_ids`` grows.

    Attributes:
        params: the request's settings.
        input_ids: ids of the input; ids beyond the vocabulary are virtual tokens.
        new_ids: ids generated so far.
        stream: number of the sequence's noise within its request.
        num_samples: tokens to draw, with streams ``stream .. stream + num_samples - 1``; all equal without sampling.
    """

    params: SamplingParams
    input_ids: Sequence[int] | TokenIds
    new_ids: list[int]
    stream: int = 0
    num_samples: int = 1

    @cached_property
    def input_array(self) -> TokenIds:
        """``input_ids`` as int64."""
        return token_array(self.input_ids)

    @cached_property
    def processors(self) -> tuple[Processor, ...]:
        """The processors that change the scores before a token is chosen, in order."""
        return build_processors(self.params)

    @cached_property
    def filters(self) -> tuple[Filter, ...]:
        """The filters of sampling's candidates, in order; none without ``do_sample``."""
        return build_filters(self.params) if self.params.do_sample else ()

    @cached_property
    def is_plain_greedy(self) -> bool:
        """Whether the token is the argmax of the unchanged logits, and nothing else is wanted."""
        return not (self.params.do_sample or self.params.logprobs or self.processors)


@dataclass(slots=True)
class SampledToken:
    """What was chosen for one row.

    Attributes:
        token_ids: one id per sample.
        logprobs: log-softmax of the processed and filtered scores at each id, in nats, if the request asked for them.
    """

    token_ids: list[int]
    logprobs: list[float] | None = None


Chosen: TypeAlias = SampledToken | Exception
"""What a sampler returns for a row: its tokens, or why there are none."""
