"""One request inside the engine: its tokens so far, and how its next ones are chosen."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.requests.sampling_params import SamplingParams, finish_reason
from ruprompt_fast.requests.stop_cut import StopCut, without_stop
from ruprompt_fast.requests.text_stream import TextStream
from ruprompt_fast.sampling.beam_search import BeamSearch
from ruprompt_fast.sampling.sampler import SampledToken, Sampler, SamplingRow

if TYPE_CHECKING:
    from ruprompt_fast.cache import PrefixEntry
    from ruprompt_fast.requests.decoding import TextDecoder
    from ruprompt_fast.requests.inputs import Request

TokenIds = npt.NDArray[np.int64]


@dataclass
class Branch:
    """One sequence of a request behind its input: a sample or a beam.

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

    A job starts as one branch; after every step it says which branches live on, in :meth:`advance`. The engine alone
    changes it, holding its turn; other threads read ``done`` and, once it is set, the results.

    Attributes:
        request: the encoded request.
        request_id: its number in the engine; -1 before it is there.
        input_ids: its ids, int64 [input_len].
        max_new_tokens: how many tokens it generates at most.
        num_sequences: how many branches it has at most.
        branches: the live branches, in the scheduler's order.
        prefix: the prefix that it holds while it is in the engine.
        done: whether it has left the engine.
        error: why it failed, or None.
    """

    def __init__(self, request: Request, max_new_tokens: int, num_sequences: int) -> None:
        self.request = request
        self.request_id = -1
        self.input_ids: TokenIds = np.asarray(request.input_ids, dtype=np.int64)
        self.max_new_tokens = max_new_tokens
        self.num_sequences = num_sequences
        self.branches = [Branch()]
        self.prefix: PrefixEntry | None = None
        self.done = False
        self.error: Exception | None = None

    @property
    def prompt_rows(self) -> Tensor | None:
        """The rows of its prompt, [num_rows, width]."""
        return self.request.prompt.rows if self.request.prompt is not None else None

    def ids(self, branch: int, start: int, stop: int) -> TokenIds:
        """The ids at positions ``start`` to ``stop`` of a branch, the input's included."""
        input_len = len(self.input_ids)
        if stop <= input_len:
            return self.input_ids[start:stop]
        new_ids = self.branches[branch].token_ids[max(0, start - input_len) : stop - input_len]
        return np.concatenate([self.input_ids[start:], np.asarray(new_ids, dtype=np.int64)])

    def id_at(self, branch: int, position: int) -> int:
        """One id of :meth:`ids`."""
        new = position - len(self.input_ids)
        return self.branches[branch].token_ids[new] if new >= 0 else int(self.input_ids[position])

    def fail(self, error: Exception) -> None:
        """End with an error."""
        self.error = error
        self.done = True

    @abstractmethod
    def advance(self, logits: Tensor) -> list[int] | None:
        """Take in the logits behind the live branches, in their order.

        Args:
            logits: [branches, vocabulary], in the model's dtype, on the CPU.

        Returns:
            For each branch from now on, the index of the branch that it continues; None if nothing changes. No
            branches: the job is done.

        Raises:
            NonFiniteLogitsError: the logits leave nothing to choose.
        """


class SamplingJob(Job):
    """Greedy decoding and sampling; ``num_return_sequences`` branches grow from the input's last token."""

    def __init__(
        self,
        request: Request,
        params: SamplingParams,
        sampler: Sampler,
        decoder: TextDecoder,
        *,
        streaming: bool = False,
    ) -> None:
        super().__init__(request, params.max_new_tokens, params.num_return_sequences)
        self.params = params
        self._sampler = sampler
        self.pieces: deque[str] = deque()
        self._decoder = decoder
        self._needs_text = streaming or bool(params.stop_strings)
        self._streaming = streaming
        self._cut = StopCut(params.cut_strings)  # a stream has one branch
        self._deadline = _deadline(params)
        self._outputs: list[GenerationOutput | None] = [None] * params.num_return_sequences
        self.branches = [self._new_branch(0, params.num_return_sequences)]

    def advance(self, logits: Tensor) -> list[int] | None:
        """Append one sampled token to every branch; the first step may start several."""
        sampled = self._sampler.sample(logits, [cast(SamplingRow, branch.row) for branch in self.branches])
        parents = list(range(len(self.branches)))
        if len(sampled[0].token_ids) > 1:
            (first,) = sampled
            self.branches = [self._new_branch(index, 1) for index in range(len(first.token_ids))]
            sampled = _apart(first)
            parents = [0] * len(self.branches)
        finished = [self._append(branch, token) for branch, token in zip(self.branches, sampled, strict=True)]
        if any(finished):
            kept = [index for index, ended in enumerate(finished) if not ended]
            self.branches = [self.branches[index] for index in kept]
            parents = [parents[index] for index in kept]
        elif parents == list(range(len(parents))):
            return None
        self.done = not self.branches
        return parents

    def outputs(self) -> list[GenerationOutput]:
        """The results, once the job is done."""
        return cast("list[GenerationOutput]", self._outputs)

    def _new_branch(self, output: int, num_samples: int) -> Branch:
        branch = Branch(output=output)
        branch.row = SamplingRow(self.params, self.request.input_ids, branch.token_ids, output, num_samples)
        if self._needs_text:
            branch.text = TextStream(self._decoder, self.request.input_ids, self.params.stop_strings)
        return branch

    def _append(self, branch: Branch, token: SampledToken) -> bool:
        """Append a token; whether the branch ends with it."""
        branch.token_ids.append(token.token_ids[0])
        if token.logprobs is not None:
            branch.logprobs.append(token.logprobs[0])
        reason = finish_reason(self.params, branch.token_ids)
        if branch.text is not None:
            self._emit(self._cut.push(branch.text.push(token.token_ids)))
            reason = "stop" if branch.text.stopped else reason
        if reason is None and time.monotonic() < self._deadline:
            return False
        if branch.text is not None:
            self._emit(self._cut.push(branch.text.flush()) + self._cut.flush())
        self._outputs[branch.output] = GenerationOutput(
            without_stop(self._decoder.text(self.request.input_ids, branch.token_ids), self.params.cut_strings),
            branch.token_ids,
            self.request.prompt_name,
            reason or "time",
            branch.logprobs if self.params.logprobs else None,
        )
        return True

    def _emit(self, piece: str) -> None:
        if piece and self._streaming:
            self.pieces.append(piece)


class BeamJob(Job):
    """Beam search."""

    def __init__(
        self,
        request: Request,
        params: SamplingParams,
        search: BeamSearch,
        decoder: TextDecoder,
    ) -> None:
        super().__init__(request, params.max_new_tokens, params.num_beams)
        self._search = search
        self._cut_strings = params.cut_strings
        self._deadline = _deadline(params)
        self._decoder = decoder

    def advance(self, logits: Tensor) -> list[int] | None:
        """Choose the beams that live on."""
        beams = self._search.advance(logits, out_of_time=time.monotonic() >= self._deadline)
        if self._search.finished:
            self.branches, self.done = [], True
            return []
        self.branches = [
            Branch([*self.branches[parent].token_ids, token])
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
    """Reads the logits behind the last token, and generates nothing."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, max_new_tokens=1, num_sequences=1)
        self.logits: Tensor | None = None

    def advance(self, logits: Tensor) -> list[int] | None:
        """Keep the logits, float32 [vocabulary]."""
        self.logits = logits[0].to(torch.float32, copy=True)
        self.branches, self.done = [], True
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
