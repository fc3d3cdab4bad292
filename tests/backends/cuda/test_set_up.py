"""Before the first request a device captures its graphs and compiles its kernels, largest first."""

from __future__ import annotations

import pytest
from tiny_models import sharp_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends import BACKENDS
from ruprompt_fast.backends.cuda import CudaBackend
from ruprompt_fast.backends.cuda.buckets import Buckets
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice
from ruprompt_fast.cache import num_pages_of


class AheadDevice(RehearsalDevice):
    captures_ahead = True


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_graphs_are_there_and_the_tokens_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FastPromptModel.from_pretrained(sharp_model(family), tokenizer=tiny_tokenizer())
    expected = plain.generate(["да", "нет"], max_new_tokens=5, eos_token_id=None)
    monkeypatch.setitem(BACKENDS, "cpu", lambda device, dtype: CudaBackend(AheadDevice(), dtype))
    model = FastPromptModel.from_pretrained(sharp_model(family), tokenizer=tiny_tokenizer(), max_batch_size=4)
    engine = model.stats().engine
    assert engine is not None
    assert engine.runner is not None
    positions = model.model.config.get_text_config().max_position_embeddings
    buckets = Buckets(4, num_pages_of(positions + 1, engine.page_size)).largest_first()
    assert engine.runner.num_graphs == len(buckets)
    assert engine.runner.num_replayed_steps == engine.runner.num_eager_steps == 0
    found = model.generate(["да", "нет"], max_new_tokens=5, eos_token_id=None)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    after = model.stats().engine
    assert after is not None
    assert after.runner is not None
    assert after.runner.num_graphs == len(buckets)


@pytest.mark.filterwarnings("error:An output with one or more elements was resized")
@pytest.mark.parametrize(("max_batch_size", "max_step_tokens"), [(1, 512), (2, 512), (1, 1), (4, 5)])
def test_a_small_engine_is_set_up(max_batch_size: int, max_step_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "cpu", lambda device, dtype: CudaBackend(AheadDevice(), dtype))
    model = FastPromptModel.from_pretrained(
        sharp_model("gpt2"),
        tokenizer=tiny_tokenizer(),
        max_batch_size=max_batch_size,
        max_step_tokens=max_step_tokens,
    )
    found = model.generate(["да", "нет"], max_new_tokens=5, eos_token_id=None)
    monkeypatch.undo()
    plain = FastPromptModel.from_pretrained(sharp_model("gpt2"), tokenizer=tiny_tokenizer())
    expected = plain.generate(["да", "нет"], max_new_tokens=5, eos_token_id=None)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
