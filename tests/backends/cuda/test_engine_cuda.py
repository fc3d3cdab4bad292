"""The engine on a CUDA device: what only a card can show."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from backends.cuda.cuda_cases import (
    CUDA,
    ENDLESS,
    MAX_BATCH,
    bits,
    engines_with,
    ids_of,
    llama,
    loaded,
    serve,
    with_norm,
)
from backends.cuda.engine_cases import KINDS, NUM_NEW, Reading, case, config, stats
from backends.test_every_backend import step
from engine.reference import END, NAMES, TEXTS, assert_at_rest, counts
from tiny_models import CONTEXT, sharp_model, tiny_tokenizer
from tolerances import relative_error
from transformers import GenerationConfig, PreTrainedModel

from ruprompt_fast import FastPromptModel, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.backends import Runner, RunnerLimits
from ruprompt_fast.backends.cuda import CudaBackend, CudaOptions
from ruprompt_fast.backends.cuda.buckets import Buckets
from ruprompt_fast.cache import num_pages_of
from ruprompt_fast.embedding import SplicedEmbedding, attach_prompts
from ruprompt_fast.integration import check_compatibility
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.sampling.sampling_rows import SampledToken, SamplingRow

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

# Graphs


@functools.cache
def on_cpu(family: str) -> list[list[int]]:
    return ids_of(case(family).serve(), eos_token_id=END)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_every_bucket_is_captured_and_replayed(family: str, dtype: torch.dtype) -> None:
    served = serve(family, dtype=dtype)
    before = stats(served)
    assert before.eager_reasons == {}
    blocks = num_pages_of(CONTEXT + 1, counts(served).page_size)
    assert before.num_graphs == len(Buckets(MAX_BATCH, blocks).largest_first())
    assert before.num_replayed_steps == 0
    found = ids_of(served, eos_token_id=END)
    after = stats(served)
    assert after.eager_reasons == {}
    assert after.num_replayed_steps > 0
    assert_at_rest(served)
    if dtype is torch.float32:
        assert found == on_cpu(family)
    alone = served.generate("да", None, max_new_tokens=NUM_NEW, **ENDLESS)[0]
    assert len(alone.token_ids) == NUM_NEW
    # Its first token comes of the step that reads the text.
    assert stats(served).num_replayed_steps - after.num_replayed_steps >= NUM_NEW - 1
    served.detach()


def make_runner(model: PreTrainedModel, num_pages: int = 12) -> tuple[Runner, SplicedEmbedding]:
    """A runner whose steps run on this thread, where an engine has a thread of its own."""
    model = model.to(CUDA)
    embedding = attach_prompts(model, [], len(tiny_tokenizer()))
    shapes = check_compatibility(model, embedding)
    backend = CudaBackend(CUDA, torch.float32)
    backend.prepare(model, None)
    return backend.runner(model, embedding, shapes, RunnerLimits(num_pages, 64, MAX_BATCH, 64), ()), embedding


def test_a_model_that_waits_is_not_captured_and_leaves_nothing_behind() -> None:
    runner, _ = make_runner(with_norm(Reading))
    found = runner.stats()
    assert found is not None
    assert found.num_graphs == 0
    assert len(found.eager_reasons) == len(Buckets(MAX_BATCH, 4).largest_first())
    assert all("captur" in reason for reason in found.eager_reasons.values()), found.eager_reasons
    assert torch.cuda.current_stream(CUDA) == torch.cuda.default_stream(CUDA)
    assert not torch.cuda.is_current_stream_capturing()
    assert 0 <= float(torch.rand(1, device=CUDA)) < 1
    runner.close()
    other, _ = make_runner(sharp_model("llama"))
    after = other.stats()
    assert after is not None
    assert after.eager_reasons == {}
    assert after.num_graphs > 0
    other.close()


def test_a_model_that_waits_runs_eagerly() -> None:
    served = loaded(with_norm(Reading), case().prompts)
    assert ids_of(served, 3) == ids_of(llama(), 3)
    assert stats(served).num_replayed_steps == 0
    assert_at_rest(served)
    served.detach()


# Waiting


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_and_page_moves_do_not_wait() -> None:
    """A step with a prompt's rows, steps that decode, pages that are copied, evicted and loaded."""
    runner, embedding = make_runner(sharp_model("llama"))
    pages, page_size = runner.pages, runner.pages.page_size
    rows = torch.randn(3, embedding.row_width).to(CUDA)
    first = embedding.first_prompt_id
    sequences = (torch.tensor([first, first + 1, first + 2, *range(5, 20)]), torch.arange(20, 30))
    tables = [np.array([4, 2]), np.array([7])]
    prefill = step(sequences, tables, (0, 0), (17, 9), page_size, rows)
    decode = step(sequences, tables, (17, 9), (18, 10), page_size, rows[:0])
    greedy = SamplingRow(SamplingParams(max_new_tokens=4), [5], [])
    sampled = SamplingRow(SamplingParams(max_new_tokens=4, do_sample=True, top_p=0.8, seed=1), [5], [])
    copies = np.array([[4, 9], [9, 10], [7, 1]], dtype=np.int32)

    def work() -> list[Any]:
        launched = [runner.launch(prefill, [greedy, sampled]), runner.launch(decode, [greedy, sampled])]
        pages.copy_pages(copies)
        pages.write_pages([0, 11], pages.read_pages([4, 7]))
        return launched

    for launched in work():
        launched.chosen()
    replayed = runner.stats()
    assert replayed is not None
    with waiting_is_an_error():
        launched = work()
    after = runner.stats()
    assert after is not None
    assert after.num_replayed_steps - replayed.num_replayed_steps == 1
    assert all(isinstance(choice, SampledToken) for each in launched for choice in each.chosen())
    for part in bits(pages.read_pages([4, 7, 0, 11, 10])):
        assert torch.equal(part[[0, 1, 0]], part[[2, 3, 4]])
    runner.close()


# Running ahead

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
    """Its stream has work to do, which neither loading nor a request waits for in vain."""
    expected = in_turns()
    with engines_with(CudaOptions(runs_ahead=True)), torch.cuda.stream(torch.cuda.Stream(CUDA)):
        torch.cuda._sleep(50_000_000)
        served = serve(max_batch_size=8, kv_cache_bytes=few_pages())
        torch.cuda._sleep(50_000_000)
        assert long_run(served) == expected[0]
        torch.cuda._sleep(50_000_000)
        check_verdicts(served.classify(TEXTS[:3], NAMES[:3], labels=LABELS))
        served.detach()


# Int8, and shared prefixes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_int8(dtype: torch.dtype) -> None:
    served = serve(dtype=dtype, quantization="int8")
    assert stats(served).eager_reasons == {}
    assert all(len(ids) == NUM_NEW for ids in ids_of(served))
    assert stats(served).num_replayed_steps > 0
    ids = torch.arange(3, 43).view(2, 20)
    plain = copy.deepcopy(case().base).to(CUDA, dtype)
    with torch.inference_mode():
        expected, found = (model(ids.to(CUDA)).logits for model in (plain, served.model))
    assert relative_error(found, expected) < INT8_ERROR
    served.detach()


INT8_ERROR = 0.05
NUM_SHARED = 70  # four whole pages, and a part of the fifth


def test_prefixes_that_are_read_together() -> None:
    prompts = {}
    for seed, name in enumerate(("one", "other")):
        format = PromptFormat(f"<P*{NUM_SHARED}>{{text}}", tokenizer=tiny_tokenizer())
        rows = torch.randn(NUM_SHARED, 32, generator=torch.Generator().manual_seed(seed))
        prompts[name] = Prompt(format, TensorPromptProvider.from_pretrained(rows))
    texts, names = ["да", "нет", "кот", "дом", "сон"], ["one", "other", "one", "one", "other"]
    found, num_graphs = [], []
    for shares in (False, True):
        with engines_with(CudaOptions(shares_prefixes=shares)):
            served = loaded(case().base, prompts)
            outputs = served.generate(texts, names, max_new_tokens=NUM_NEW, **ENDLESS)
            found.append([output.token_ids for output in outputs])
            assert stats(served).eager_reasons == {}
            num_graphs.append(stats(served).num_graphs)
            served.detach()
    assert found[0] == found[1]
    assert num_graphs[1] > num_graphs[0]
