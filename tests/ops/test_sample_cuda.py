"""The sampling kernel on a CUDA device chooses what the NumPy sampler chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends.cuda.sampler_cases import DEVICE_KINDS, HOST_KINDS, Staged, check, make_row, random_logits

from ruprompt_fast.sampling.sampling_rows import SamplingRow

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")


@pytest.mark.parametrize("kind", {**DEVICE_KINDS, **HOST_KINDS}.values(), ids={**DEVICE_KINDS, **HOST_KINDS})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1003, 50257])
def test_on_a_card(kind: dict[str, Any], dtype: torch.dtype, vocab_size: int) -> None:
    rows: list[SamplingRow | None] = [
        make_row(kind, num_new=seed % 5, seed=seed, vocab_size=vocab_size) for seed in range(60)
    ]
    for spread in (0.01, 1.0, 4.0):
        logits = random_logits(60, spread=spread, dtype=dtype, vocab_size=vocab_size)
        step = check([None, *rows[1:]], logits.to(CUDA), (5,), vocab_size)
        assert step.result[0].tolist() == [0, 0, 0, 0]
        if kind in DEVICE_KINDS.values() and "top_p" not in kind:
            assert step.undecided.count(0) >= 58


def test_a_card_does_not_wait_and_follows_its_buffers() -> None:
    staged = [
        Staged([make_row(DEVICE_KINDS[kind]) for kind in kinds], 1003, "cuda")
        for kinds in (("greedy", "all"), ("top-p", "repetition"))
    ]
    logits = random_logits(2, dtype=torch.float16).to(CUDA)
    expected = [each.launch(logits).cpu() for each in staged]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = staged[0].launch(logits)
    graph.replay()
    assert torch.equal(out.cpu(), expected[0])
    staged[0].settings.copy_(staged[1].settings)
    staged[0].seen.copy_(staged[1].seen)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph.replay()
        staged[1].launch(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out.cpu(), expected[1])
