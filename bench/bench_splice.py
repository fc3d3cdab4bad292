"""The splice against F.embedding of as many ids, ruPrompts' algorithm, and a plain copy of the output's bytes.

The groups "own memory" run every candidate as a user calls it: each allocates its output, and outputs above 32 MB come
from the system again for all but the splice, which keeps their memory. In the groups "given memory" the other
candidates write into a buffer that is there already, which leaves the algorithms alone to be compared.

On a CUDA device the lookup of [64, 1024] rows of 1536 numbers and its gradient are timed beside a copy of as many
bytes; at least 0.9 and 0.8 of its bandwidth are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import reference_ruprompts
import torch
import torch.nn.functional as F
from gpu.kernels import CASES
from kernel_cases import CANDIDATES, NEEDS_CARD, SETTING, cases_of, time_beside_copy
from torch import Tensor

from ruprompt_fast.ops import splice

VOCABULARY, MARKER, FIRST_PROMPT_ID = 50264, 50257, 50264


class Shape(NamedTuple):
    """A batch, and how often it is timed."""

    batch: int
    sequence: int
    width: int
    prompt_rows: int
    rounds: int

    def __str__(self) -> str:
        return f"[{self.batch}, {self.sequence}] x {self.width}"


SHAPES = [Shape(16, 512, 1536, 100, 60), Shape(8, 128, 768, 60, 300), Shape(32, 1, 768, 0, 3000)]


class Data:
    """The inputs of every candidate for one shape."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = shape.prompt_rows
        self.plain_ids = torch.randint(0, MARKER, (shape.batch, shape.sequence), generator=generator)
        self.prompt_ids, self.marker_ids = self.plain_ids.clone(), self.plain_ids.clone()
        self.prompt_ids[:, : self.rows] = FIRST_PROMPT_ID + torch.arange(self.rows)
        self.marker_ids[:, : self.rows] = MARKER
        self.tokens = torch.randn(VOCABULARY, shape.width, generator=generator)
        self.prompts = torch.randn(self.rows, shape.width, generator=generator)
        self.grad = torch.randn(*self.plain_ids.shape, shape.width, generator=generator)
        self.buffer = torch.empty_like(self.grad)

    def splice(self, prompts: Tensor) -> Tensor:
        return splice(self.prompt_ids, self.tokens, prompts, FIRST_PROMPT_ID)

    def ruprompts(self, prompts: Tensor, out: Tensor | None = None) -> Tensor:
        return reference_ruprompts.embed(self.marker_ids, self.tokens, prompts, MARKER, out)

    def embedding(self, out: Tensor | None = None) -> Tensor:
        if out is None:
            return F.embedding(self.plain_ids, self.tokens)
        return torch.index_select(self.tokens, 0, self.plain_ids.view(-1), out=out.view(-1, out.shape[-1]))

    def forward(self, name: str, out: Tensor | None) -> Callable[[], Any]:
        """The candidate's forward pass."""
        return {
            "splice": lambda: self.splice(self.prompts),
            "F.embedding": lambda: self.embedding(out),
            "ruPrompts": lambda: self.ruprompts(self.prompts, out),
            "copy": lambda: self.grad.clone() if out is None else out.copy_(self.grad),
        }[name]

    def forward_and_backward(self, name: str, out: Tensor | None) -> Callable[[], Any]:
        """The candidate's forward pass and the gradient of the prompt table; the token table is frozen."""
        prompts = self.prompts.clone().requires_grad_()
        forward = self.splice if name == "splice" else lambda table: self.ruprompts(table, out)
        return lambda: torch.autograd.grad(forward(prompts), prompts, self.grad)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> Shape:
    return request.param


@pytest.fixture(scope="module")
def data(shape: Shape) -> Data:
    return Data(shape)


@pytest.fixture(params=["own memory", "given memory"])
def out(request: pytest.FixtureRequest, data: Data) -> Tensor | None:
    return data.buffer if request.param == "given memory" else None


def run(benchmark: Any, function: Callable[[], Any], shape: Shape) -> None:
    benchmark.pedantic(function, rounds=shape.rounds, warmup_rounds=shape.rounds // 10)


@pytest.mark.parametrize("candidate", ["splice", "F.embedding", "ruPrompts", "copy"])
def bench_forward(benchmark: Any, data: Data, shape: Shape, out: Tensor | None, candidate: str) -> None:
    assert torch.equal(data.splice(data.prompts), data.ruprompts(data.prompts))
    benchmark.group = f"forward {shape}, {'own' if out is None else 'given'} memory"
    run(benchmark, data.forward(candidate, out), shape)


@pytest.mark.parametrize("candidate", ["splice", "ruPrompts"])
def bench_forward_and_backward(benchmark: Any, data: Data, shape: Shape, out: Tensor | None, candidate: str) -> None:
    if not data.rows:
        pytest.skip("no prompt rows, no gradient")
    (ours,), (theirs,) = (data.forward_and_backward(name, None)() for name in ("splice", "ruPrompts"))
    torch.testing.assert_close(ours, theirs)
    benchmark.group = f"forward and backward {shape}, {'own' if out is None else 'given'} memory"
    run(benchmark, data.forward_and_backward(candidate, out), shape)


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", cases_of("splice"))
def bench_on_a_card(benchmark: Any, name: str, candidate: str) -> None:
    time_beside_copy(benchmark, name, CASES[name](SETTING), candidate)
