"""The engine on a CUDA device: what only a card can show."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
from backends.cuda.engine_cases import NUM_NEW, Reading, case, stats
from backends.test_every_backend import step
from engine.reference import END, assert_at_rest, counts
from tiny_models import CONTEXT, sharp_model, tiny_tokenizer
from tolerances import relative_error
from transformers import PreTrainedModel

from ruprompt_fast import Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.backends import LaunchedStep, Runner, RunnerLimits, StepBatch
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


ROWS = [
    SamplingRow(SamplingParams(max_new_tokens=4), [5], []),
    SamplingRow(SamplingParams(max_new_tokens=4, do_sample=True, top_p=0.8, seed=1), [5], []),
]


@dataclass
class Steps:
    """A runner, a step that reads a prompt's rows and two texts, and one that decodes after it."""

    runner: Runner
    prefill: StepBatch
    decode: StepBatch

    def launch(self) -> list[LaunchedStep]:
        return [self.runner.launch(batch, ROWS) for batch in (self.prefill, self.decode)]

    @property
    def num_replayed(self) -> int:
        found = self.runner.stats()
        assert found is not None
        return found.num_replayed_steps


@pytest.fixture
def steps() -> Iterator[Steps]:
    runner, embedding = make_runner(sharp_model("llama"))
    rows = torch.randn(3, embedding.row_width).to(CUDA)
    first = embedding.first_prompt_id
    sequences = (torch.tensor([first, first + 1, first + 2, *range(5, 20)]), torch.arange(20, 30))
    tables = [np.array([4, 2]), np.array([7])]
    make = functools.partial(step, sequences, tables, page_size=runner.pages.page_size)
    yield Steps(runner, make((0, 0), (17, 9), rows=rows), make((17, 9), (18, 10), rows=rows[:0]))
    runner.close()


def check_chosen(launched: list[LaunchedStep]) -> None:
    assert all(isinstance(choice, SampledToken) for each in launched for choice in each.chosen())


def test_steps_and_page_moves_do_not_wait(steps: Steps) -> None:
    """Pages are copied, evicted and loaded."""
    pages = steps.runner.pages

    def work() -> list[LaunchedStep]:
        launched = steps.launch()
        pages.copy_pages(np.array([[4, 9], [9, 10], [7, 1]], dtype=np.int32))
        pages.write_pages([0, 11], pages.read_pages([4, 7]))
        return launched

    check_chosen(work())
    before = steps.num_replayed
    with waiting_is_an_error():
        launched = work()
    assert steps.num_replayed == before + 1
    check_chosen(launched)
    for part in bits(pages.read_pages([4, 7, 0, 11, 10])):
        assert torch.equal(part[[0, 1, 0]], part[[2, 3, 4]])


def test_a_step_is_launched_while_the_device_is_busy(steps: Steps) -> None:
    check_chosen(steps.launch())
    torch.cuda.synchronize()
    before = steps.num_replayed
    torch.cuda._sleep(1_000_000_000)  # cycles: half a second or more
    busy = torch.cuda.Event()
    busy.record()
    launched = steps.runner.launch(steps.decode, ROWS)
    assert not busy.query()
    assert steps.num_replayed == before + 1
    check_chosen([launched])
    assert busy.query()


# Int8, and shared prefixes

INT8_ERROR = 0.05  # relative, of logits: weights are off by 1/254 of a row's largest at most


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
