"""All matrices of one step of ruGPT-3 Small (12 layers x 768, vocabulary 50,264): packed, int8, and F.linear.

The time is that of the linear layers alone, attention and everything else left out: rows divided by it bound the tokens
per second of an engine. The output layer takes at most 32 rows, because logits are wanted at the last tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import pytest
import torch
from torch import Tensor

from ruprompt_fast.ops.cpu.int8_linear import Int8Weight
from ruprompt_fast.ops.cpu.packed_linear import PackedWeight
from ruprompt_fast.ops.packed_linear import PlainWeight

LAYERS, WIDTH, VOCABULARY, LOGIT_ROWS = 12, 768, 50264, 32
SHAPES = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
ROUNDS = {1: 20, 8: 20, 32: 10, 512: 3}


class Weight(Protocol):
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor: ...


class Candidate(NamedTuple):
    form: Callable[[Tensor], Weight]
    dtype: torch.dtype


CANDIDATES = {
    "packed fp32": Candidate(PackedWeight, torch.float32),
    "packed bf16": Candidate(PackedWeight, torch.bfloat16),
    "int8": Candidate(Int8Weight, torch.float32),
    "F.linear fp32": Candidate(PlainWeight, torch.float32),
    "F.linear bf16": Candidate(PlainWeight, torch.bfloat16),
}


class Step:
    """The weights of every layer, each with memory of its own: a step reads them all, whatever the caches hold."""

    def __init__(self, candidate: Candidate) -> None:
        generator = torch.Generator().manual_seed(0)
        self.dtype = candidate.dtype

        def make(in_features: int, out_features: int) -> tuple[Weight, Tensor]:
            weight = 0.02 * torch.randn(out_features, in_features, generator=generator)
            return candidate.form(weight.to(self.dtype)), torch.zeros(out_features, dtype=self.dtype)

        self.layers = [make(*shape) for _ in range(LAYERS) for shape in SHAPES]
        self.head, _ = make(WIDTH, VOCABULARY)

    def inputs(self, rows: int) -> dict[int, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return {width: torch.randn(rows, width, generator=generator).to(self.dtype) for width in (WIDTH, 4 * WIDTH)}

    def run(self, inputs: dict[int, Tensor]) -> Tensor:
        widths = [in_features for in_features, _ in SHAPES] * LAYERS
        for width, (weight, bias) in zip(widths, self.layers, strict=True):
            weight.linear(inputs[width], bias)
        return self.head.linear(inputs[WIDTH][:LOGIT_ROWS])


@pytest.fixture(scope="module")
def steps() -> dict[str, Step]:
    return {name: Step(candidate) for name, candidate in CANDIDATES.items()}


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("rows", ROUNDS)
def bench_matrices_of_a_step(benchmark: Any, steps: dict[str, Step], rows: int, candidate: str) -> None:
    step = steps[candidate]
    inputs = step.inputs(rows)
    benchmark.group = f"linear layers of one step, {rows} rows"
    with torch.inference_mode():
        logits, expected = step.run(inputs), steps["F.linear fp32"].run(steps["F.linear fp32"].inputs(rows))
        assert (logits - expected).norm() <= 2e-2 * expected.norm()
        benchmark.pedantic(step.run, args=(inputs,), rounds=ROUNDS[rows], warmup_rounds=1)
    benchmark.extra_info["tokens_per_second"] = rows / benchmark.stats.stats.min
