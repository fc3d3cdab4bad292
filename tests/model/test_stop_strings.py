"""Texts with and without the stop string that ends them."""

from __future__ import annotations

import pytest
from model_cases import make_prompt
from tiny_models import sharp_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import SettingError

pytestmark = pytest.mark.every_backend

LONG = {"max_new_tokens": 24, "eos_token_id": []}


@pytest.fixture(scope="module", params=["llama", "gptj", "t5"])
def served(request: pytest.FixtureRequest, backend: str) -> FastPromptModel:
    model, tokenizer = sharp_model(request.param), tiny_tokenizer()
    return FastPromptModel.from_pretrained(model, {"p": make_prompt("<P*3>{text}", model, tokenizer, 0)}, tokenizer)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 3}], ids=["", "beams", "draws"])
def test_the_text_ends_before_it_and_the_tokens_are_the_same(
    served: FastPromptModel, settings: dict[str, object]
) -> None:
    (whole,) = served.generate("где", "p", **LONG, **settings)
    stops = [whole.text[3:5], whole.text[1:2]] if "num_beams" in settings else [whole.text[3:6], "нет такого"]
    (kept,) = served.generate("где", "p", stop_strings=stops, **LONG, **settings)
    (cut,) = served.generate("где", "p", stop_strings=stops, include_stop_str_in_output=False, **LONG, **settings)
    start = min(kept.text.index(stop) for stop in stops if stop in kept.text)
    assert cut.text == kept.text[:start]
    assert (cut.token_ids, cut.finish_reason) == (kept.token_ids, "stop")


def test_streams_add_up_to_the_text(served: FastPromptModel) -> None:
    (whole,) = served.generate("где", "p", **LONG)
    for stops in ([whole.text[3:6]], [whole.text[-3:] + "нет"], [whole.text[2:8], whole.text[5:6]]):
        settings = {"stop_strings": stops, "include_stop_str_in_output": False, **LONG}
        (expected,) = served.generate("где", "p", **settings)
        assert "".join(served.stream("где", "p", **settings)) == expected.text
        assert not any(stop in expected.text for stop in stops)


def test_every_request_of_a_batch_may_have_its_own(served: FastPromptModel) -> None:
    (whole,) = served.generate("где", "p", **LONG)
    stop = whole.text[3:5]
    with_it, without = served.generate(
        ["где", "где"], "p", stop_strings=[stop], include_stop_str_in_output=[True, False], **LONG
    )
    assert with_it.text.removesuffix(stop) == without.text or stop in with_it.text
    assert stop not in without.text


def test_it_is_a_truth_value(served: FastPromptModel) -> None:
    with pytest.raises(SettingError, match="include_stop_str_in_output"):
        served.generate("где", "p", include_stop_str_in_output="no")
