"""On a CUDA device, too, running ahead changes no token, nor does the caller's stream."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from backends.cuda.cuda_cases import CUDA, ENDLESS, engines_with, serve
from backends.cuda.engine_cases import KINDS, case, config, stats
from engine.reference import NAMES, TEXTS, assert_at_rest, counts
from transformers import GenerationConfig

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends.cuda import CudaOptions

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

LONG: list[tuple[str, str | None]] = [
    ("да", "around"),
    ("а", None),
    ("а", "page"),
    ("как дела", "around"),
    ("кот", "page"),
    ("привет", "leading"),
]
NUM_LONG = 100


def long_configs() -> list[GenerationConfig]:
    """A kind for each request, then one whose bans only the host knows."""
    return [config(kind, NUM_LONG) for kind in range(len(KINDS))] + [
        GenerationConfig(max_new_tokens=NUM_LONG, bad_words_ids=[[7], [8, 9]])
    ]


def long_run(served: FastPromptModel) -> list[list[int]]:
    """Requests of all kinds over many steps, while others are cancelled in the midst of theirs."""
    others = [served.stream("кот", "around", config(kind, NUM_LONG), seed=9, **ENDLESS) for kind in (0, 2, 4)]
    texts, names = zip(*LONG, ("дом", None), strict=True)
    run = functools.partial(served.generate, list(texts), list(names), long_configs(), seed=list(range(7)), **ENDLESS)
    for num, stream in enumerate(others):
        for _ in range(2 + num):
            next(stream)
    others[0].close()
    found = [output.token_ids for output in run()]
    for stream in others[1:]:
        next(stream)
        stream.close()
    assert_at_rest(served)
    return found


def few_pages() -> int:
    return 24 * case().page_bytes


LABELS = ["да", "нет", "а"]


@functools.cache
def in_turns() -> tuple[list[list[int]], list[Any]]:
    """What a model that does not run ahead says."""
    with engines_with(CudaOptions(runs_ahead=False)):
        served = serve(max_batch_size=8, kv_cache_bytes=few_pages())
        found = long_run(served)
        assert stats(served).num_ahead_steps == 0
        assert stats(served).num_host_rows >= NUM_LONG
        assert counts(served).scheduler["preemptions"] > 0
        verdicts = served.classify(TEXTS[:3], NAMES[:3], labels=LABELS)
        served.detach()
    assert all(len(ids) == NUM_LONG for ids in found)
    return found, verdicts


def check_verdicts(found: list[Any]) -> None:
    for ours, theirs in zip(found, in_turns()[1], strict=True):
        assert ours.label == theirs.label
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)


def test_running_ahead_changes_no_token() -> None:
    with engines_with(CudaOptions(runs_ahead=True)):
        served = serve(max_batch_size=8, kv_cache_bytes=few_pages())
        assert long_run(served) == in_turns()[0]
        assert stats(served).num_ahead_steps > 0
        assert counts(served).scheduler["preemptions"] > 0
        check_verdicts(served.classify(TEXTS[:3], NAMES[:3], labels=LABELS))
        served.detach()


def test_a_caller_on_a_stream_of_its_own() -> None:
    """The stream has work to do when the model is loaded, and when requests are made."""
    expected = in_turns()
    with engines_with(CudaOptions(runs_ahead=True)), torch.cuda.stream(torch.cuda.Stream(CUDA)):
        torch.cuda._sleep(50_000_000)
        served = serve(max_batch_size=8, kv_cache_bytes=few_pages())
        torch.cuda._sleep(50_000_000)
        assert long_run(served) == expected[0]
        torch.cuda._sleep(50_000_000)
        check_verdicts(served.classify(TEXTS[:3], NAMES[:3], labels=LABELS))
        served.detach()
