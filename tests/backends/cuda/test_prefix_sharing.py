"""Rows that begin with the same pages read these together; the tokens are those of the CPU's engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_models import sharp_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.backends import BACKENDS, Backend
from ruprompt_fast.backends.cuda import CudaBackend, CudaOptions
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice

NUM_ROWS = 70  # four whole pages, and a part of the fifth


def serve(family: str) -> FastPromptModel:
    model = sharp_model(family)
    width = model.get_input_embeddings().weight.shape[1]
    prompts = {}
    for seed, name in enumerate(("one", "other")):
        format = PromptFormat(f"<P*{NUM_ROWS}>{{text}}", tokenizer=tiny_tokenizer())
        rows = torch.randn(NUM_ROWS, width, generator=torch.Generator().manual_seed(seed))
        prompts[name] = Prompt(format, TensorPromptProvider.from_pretrained(rows))
    return FastPromptModel.from_pretrained(model, prompts, tiny_tokenizer())


@pytest.fixture(params=[True, False])
def shares(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    def make(device: torch.device, dtype: torch.dtype) -> Backend:
        return CudaBackend(RehearsalDevice(), dtype, CudaOptions(shares_prefixes=request.param))

    monkeypatch.setitem(BACKENDS, "cpu", make)
    return request.param


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_the_tokens_are_the_cpus(shares: bool, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["да", "нет", "кот", "дом", "сон"]
    names = ["one", "other", "one", "one", "other"]
    served = serve(family)
    found = served.generate(texts, names, max_new_tokens=6, eos_token_id=None)
    monkeypatch.undo()
    expected = serve(family).generate(texts, names, max_new_tokens=6, eos_token_id=None)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    stats = served.stats().engine
    assert stats is not None
    assert stats.runner is not None
    assert stats.runner.num_replayed_steps > 0
    assert not stats.runner.eager_reasons
