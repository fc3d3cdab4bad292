"""A plain string is a prompt's only field, whatever the field is called."""

from __future__ import annotations

import pytest
from model_cases import make_prompt
from tiny_models import tiny_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel, MultiPrompt
from ruprompt_fast.errors import MissingFieldError


@pytest.fixture
def served() -> FastPromptModel:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    templates = {"one": "<P*3>{question}", "twice": "{question}<P*2>{question}", "two": "<P>{question}{text}"}
    prompts = {name: make_prompt(template, model, tokenizer, 0) for name, template in templates.items()}
    return FastPromptModel.from_pretrained(model, prompts, tokenizer)


@pytest.mark.parametrize("name", ["one", "twice"])
def test_every_call_takes_it(served: FastPromptModel, name: str) -> None:
    fields = {"question": "где"}
    assert served.generate("где", name, max_new_tokens=3) == served.generate(fields, name, max_new_tokens=3)
    assert list(served.stream("где", name, max_new_tokens=3)) == list(served.stream(fields, name, max_new_tokens=3))
    assert served.count_tokens("где", name) == served.count_tokens(fields, name)
    labels = ["а", "б"]
    assert served.classify("где", name, labels=labels) == served.classify(fields, name, labels=labels)


def test_of_several_fields_it_is_the_text(served: FastPromptModel) -> None:
    with pytest.raises(MissingFieldError, match="question"):
        served.generate("где", "two", max_new_tokens=1)


def test_text_forms_take_it() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    prompt = make_prompt("<P*3>{question}", model, tokenizer, 0)
    assert prompt("где") == prompt(question="где")
    assert prompt("где", question="куда") == prompt(question="куда")
    multi = MultiPrompt({"a": prompt})
    multi.patch(model, tokenizer)
    found, expected = multi.tokenize("a", "где"), multi.tokenize("a", question="где")
    assert found.input_ids.tolist() == expected.input_ids.tolist()
