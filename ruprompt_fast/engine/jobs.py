"""One request inside the engine: its tokens so far, and how its next ones are chosen."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.requests.sampling_params import SamplingParams, finish_reason
from ruprompt_fast.requests.stop_cut import StopCut, without_stop
from ruprompt_fast.requests.text_stream import TextStream
from ruprompt_fast.sampling.beam_search import BeamSearch
from ruprompt_fast.sampling.history import TokenIds
from ruprompt_fast.sampling.sampling_rows import SampledToken, SamplingRow

if TYPE_CHECKING:
    from ruprompt_fast.cache import PrefixEntry
    from ruprompt_fast.requests.decoding import TextDecoder
    from ruprompt_fast.requests.inputs import Request


@dataclass
class SequenceState:
    """One sequence of a request after its input: a sample or a beam.

    Attributes:
        token_ids: the generated tokens.
        logprobs: their log-probabilities, where they are asked for.
        row: what the sampler needs to know; shares ``token_ids``.
        output: index among the request's outputs.
        text: the text so far, where it is streamed or searched for stop strings.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    row: SamplingRow | None = None
    output: int = 0
    text: TextStream | None = None


class Job(ABC):
    """A request in the engine.

    A job starts as one sequence. In every step it says what it wants for each of its live sequences, in :meth:`rows`,
    and takes in what was chosen, or the logits themselves. The engine alone changes it, holding its lock; other threads
    read ``done`` and, once it is set, the results.

    Attributes:
        request: the encoded request.
        request_id: its number in the engine; -1 before it is there.
        input_ids: its ids, int64 [input_len].
        max_new_tokens: how many tokens it generates at most.
        num_sequences: how many sequences it has at most.
        sequences: the live ones, in the scheduler's order.
        prefix: the prefix that it holds while it is in the engine.
        in_flight_row: the row of the step under way that chooses its next token, while other steps go on with that
            token; None otherwise.
        done: whether it has left the engine.
        error: why it failed, or None.
    """

    def __init__(self, request: Request, max_new_tokens: int, num_sequences: int) -> None:
        self.request = request
        self.request_id = -1
        self.input_ids: TokenIds = np.asarray(request.input_ids, dtype=np.int64)
        self.max_new_tokens = max_new_tokens
        self.num_sequences = num_sequences
        self.sequences = [SequenceState()]
        self.prefix: PrefixEntry | None = None
        self.in_flight_row: int | None = None
        self.done = False
        self.error: Exception | None = None

    @property
    def prompt_rows(self) -> Tensor | None:
        """The rows of its prompt, [num_rows, width]."""
        return self.request.prompt_rows

    @property
    def can_run_ahead(self) -> bool:
        """Whether a step may go on with its next token before the token is known here."""
        return False

    @property
    def ends_next(self) -> bool:
        """Whether the next token is its last, whatever it is."""
        return len(self.sequences[0].token_ids) + 1 >= self.max_new_tokens

    def ids(self, sequence: int, start: int, stop: int) -> TokenIds:
        """The ids at positions ``start`` to ``stop`` of a sequence, the input's included; in flight: ``-1 - row``."""
        input_len = len(self.input_ids)
        if stop <= input_len:
            return self.input_ids[start:stop]
        known = self.sequences[sequence].token_ids
        new_ids = known[max(0, start - input_len) : stop - input_len]
        if self.in_flight_row is not None and stop > input_len + len(known):
            new_ids.append(-1 - self.in_flight_row)
        return np.concatenate([self.input_ids[start:], np.asarray(new_ids, dtype=np.int64)])

    def id_at(self, sequence: int, position: int) -> int:
        """One id of :meth:`ids`."""
        new = position - len(self.input_ids)
        if new < 0:
            return int(self.input_ids[position])
        known = self.sequences[sequence].token_ids
        if self.in_flight_row is not None and new == len(known):
            return -1 - self.in_flight_row
        return known[new]

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.error = error
        self.done = True

    def rows(self) -> Sequence[SamplingRow | None]:
        """What is to be chosen for each live sequence; None for a job that reads the logits itself."""
        return [None] * len(self.sequences)

    @abstractmethod
    def advance(self, chosen: Sequence[SampledToken | None], logits: Tensor) -> list[int] | None:
        """Take in what a step gives the live sequences, in their order.

        Args:
            chosen: the tokens for each of :meth:`rows`.
            logits: [sequences, vocabulary], where the model is: reading them on the host may cost a wait and a copy.

        Returns:
            For each sequence from now on, the index of the one that it continues; None if nothing changes. No
            sequences: the job is done.

        Raises:
            NonFiniteLogitsError: the logits leave nothing to choose.
        """


class SamplingJob(Job):
    """Greedy decoding and sampling; ``num_return_sequences`` sequences grow from the input's last token."""

    def __init__(
        self, request: Request, params: SamplingParams, decoder: TextDecoder, *, streaming: bool = False
    ) -> None:
        super().__init__(request, params.max_new_tokens, params.num_return_sequences)
        self.params = params
        self.pieces: deque[str] = deque()
        self._decoder = decoder
        self._needs_text = streaming or bool(params.stop_strings)
        self._streaming = streaming
        self._cut = StopCut(params.cut_strings)  # a stream has one sequence
        self._deadline = _deadline(params)
        self._outputs: list[GenerationOutput | None] = [None] * params.num_return_sequences
        self.sequences = [self._new_sequence(0, params.num_return_sequences)]

    @property
    def can_run_ahead(self) -> bool:
        """With one sequence: where several end at different tokens, a step's rows are not known before."""
        return self.num_sequences == 1

    def rows(self) -> Sequence[SamplingRow | None]:
        """A token for every live sequence; at the first step one for each that starts."""
        return [sequence.row for sequence in self.sequences]

    def advance(self, chosen: Sequence[SampledToken | None], logits: Tensor) -> list[int] | None:
        """Append the chosen token to every sequence; the first step may start several."""
        tokens = cast("list[SampledToken]", chosen)
        parents = list(range(len(self.sequences)))
        if len(tokens[0].token_ids) > 1:
            (first,) = tokens
            self.sequences = [self._new_sequence(index, 1) for index in range(len(first.token_ids))]
            tokens = _apart(first)
            parents = [0] * len(self.sequences)
        finished = [self._append(sequence, token) for sequence, token in zip(self.sequences, tokens, strict=True)]
        if any(finished):
            kept = [index for index, ended in enumerate(finished) if not ended]
            self.sequences = [self.sequences[index] for index in kept]
            parents = [parents[index] for index in kept]
        elif parents == list(range(len(parents))):
            return None
        self.done = not self.sequences
        return parents

    def outputs(self) -> list[GenerationOutput]:
        """The results, once the job is done."""
        return cast("list[GenerationOutput]", self._outputs)

    def _new_sequence(self, output: int, num_samples: int) -> SequenceState:
        sequence = SequenceState(output=output)
        sequence.row = SamplingRow(self.params, self.request.input_ids, sequence.token_ids, output, num_samples)
        if self._needs_text:
            sequence.text = TextStream(self._decoder, self.request.input_ids, self.params.stop_strings)
        return sequence

    def _append(self, sequence: SequenceState, token: SampledToken) -> bool:
        """Append a token; whether the sequence ends with it."""
        sequence.token_ids.append(token.token_ids[0])
        if token.logprobs is not None:
            sequence.logprobs.append(token.logprobs[0])
        reason = finish_reason(self.params, sequence.token_ids)
        if sequence.text is not None:
            self._emit(self._cut.push(sequence.text.push(token.token_ids)))
            reason = "stop" if sequence.text.stopped else reason
        if reason is None and time.monotonic() < self._deadline:
            return False
        if sequence.text is not None:
            self._emit(self._cut.push(sequence.text.flush()) + self._cut.flush())
        self._outputs[sequence.output] = GenerationOutput(
            without_stop(self._decoder.text(self.request.input_ids, sequence.token_ids), self.params.cut_strings),
            sequence.token_ids,
            self.request.prompt_name,
            reason or "time",
            sequence.logprobs if self.params.logprobs else None,
        )
        return True

    def _emit(self, piece: str) -> None:
        if piece and self._streaming:
            self.pieces.append(piece)


class BeamJob(Job):
    """Beam search."""

    def __init__(self, request: Request, params: SamplingParams, search: BeamSearch, decoder: TextDecoder) -> None:
        super().__init__(request, params.max_new_tokens, params.num_beams)
        self._search = search
        self._cut_strings = params.cut_strings
        self._deadline = _deadline(params)
        self._decoder = decoder

    def advance(self, chosen: Sequence[SampledToken | None], logits: Tensor) -> list[int] | None:
        """Choose the beams that live on, from the logits."""
        beams = self._search.advance(logits, out_of_time=time.monotonic() >= self._deadline)
        if self._search.finished:
            self.sequences, self.done = [], True
            return []
        self.sequences = [
            SequenceState([*self.sequences[parent].token_ids, token])
            for parent, token in zip(beams.parents, beams.token_ids, strict=True)
        ]
        return beams.parents

    def outputs(self) -> list[GenerationOutput]:
        """The best ``num_return_sequences`` results, once the job is done."""
        name = self.request.prompt_name
        return [
            GenerationOutput(
                without_stop(self._decoder.text(self.request.input_ids, result.token_ids), self._cut_strings),
                result.token_ids,
                name,
                result.finish_reason,
                result.logprobs,
            )
            for result in self._search.results()
        ]


class LogitsJob(Job):
    """Reads the logits after the last token, and generates nothing."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, max_new_tokens=1, num_sequences=1)
        self.logits: Tensor | None = None

    def advance(self, chosen: Sequence[SampledToken | None], logits: Tensor) -> list[int] | None:
        """Keep the logits, float32 [vocabulary]."""
        self.logits = logits[0].to(torch.float32, copy=True)
        self.sequences, self.done = [], True
        return []


def _deadline(params: SamplingParams) -> float:
    """When a request that starts now ends at the latest, on the monotonic clock in seconds."""
    return math.inf if params.max_time is None else time.monotonic() + params.max_time


def _apart(token: SampledToken) -> list[SampledToken]:
    """Several samples of one row, each by itself."""
    logprobs = token.logprobs
    return [
        SampledToken([token_id], None if logprobs is None else [logprobs[index]])
        for index, token_id in enumerate(token.token_ids)
    ]
