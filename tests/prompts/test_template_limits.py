"""Templates, keys and fields beyond what a prompt needs, and strings that are no text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from prompts.tiny import tiny_model, tiny_tokenizer

from ruprompt_fast.errors import MAX_MESSAGE_CHARS, FieldTypeError, PromptInitError, TemplateError
from ruprompt_fast.prompts import MultiPrompt, Prompt, PromptFormat, TensorPromptProvider


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("<P*20001>", "at most 20000 rows"),
        ("<P>" * 20_001, "at most 20000 rows"),
        ("{a}" * 10_001, "more than 10000 fields"),
        ("{{" * 10_001, "at most 20000 braces"),
        ("x" * 2_097_153, "at most 2097152 characters"),
        ("\ud800", "half a character"),
        ("{\udfff}", "half a character"),
        ("<P>\ud800</P>", "half a character"),
        (b"<P>", "must be a string; found bytes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_templates(template: Any, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as caught:
        PromptFormat(template)
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


@pytest.mark.parametrize(
    ("compiled", "reason"),
    [
        ("<|P|>" * 20_001, "at most 20000 rows"),
        ("<|P|>" + "{a}" * 10_001, "more than 10000 fields"),
        ("<|P|>" + "{{" * 10_001, "at most 20000 braces"),
        ("<|P|>" + "x" * 2_097_153, "at most 2097152 characters"),
        ("<|P|>\ud800", "half a character"),
        ("<|P|>" + "".join(f"<|[{i}]P|>" for i in range(9_000)), "one marker, repeated"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_compiled_templates(compiled: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as caught:
        PromptFormat("<P>", compiled)
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


@pytest.mark.parametrize("template", ["<P*20000>{text}", "<P>x" * 20_000, "<P>" + "{a}" * 10_000, "<P>" + "{{" * 9_999])
def test_the_largest_templates(template: str) -> None:
    start = time.process_time()
    format = PromptFormat(template)
    format.initialize(tiny_tokenizer())
    again = PromptFormat(template, format.compiled_template)
    assert again.layout.parts == format.layout.parts
    assert time.process_time() - start < 50


def test_rows_of_a_text_count() -> None:
    with pytest.raises(TemplateError, match="at most 20000 rows"):
        PromptFormat("<P>" + "a " * 20_001 + "</P>").initialize(tiny_tokenizer())


@pytest.mark.parametrize("key", ["\ud800", "k" * 1_001, 3, "<|["])
def test_keys(key: Any) -> None:
    prompt = Prompt(PromptFormat("<P>{text}"), TensorPromptProvider())
    for use in (prompt.format.set_key, lambda name: MultiPrompt({name: prompt})):
        with pytest.raises(TemplateError, match="a prompt's key must be a text"):
            use(key)
    assert prompt.format.key is None


def _format() -> PromptFormat:
    return PromptFormat("<P>{text}", "<|P|>{text}")


@pytest.mark.parametrize(
    "use",
    [
        lambda text: _format()(text=text),
        lambda text: _format().encode({"text": text}, tiny_tokenizer()),
        lambda text: _format().encode_batch([{"text": "a"}, {"text": text}], tiny_tokenizer()),
    ],
)
@pytest.mark.parametrize("text", ["\ud800", "привет \udcff", "a" * 100_000 + "\udfff"])
def test_fields(use: Callable[[str], Any], text: str) -> None:
    with pytest.raises(FieldTypeError, match="the field 'text' must be text.*half a character") as caught:
        use(text)
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


def test_whole_characters_beyond_16_bits_are_text() -> None:
    assert _format()(text="😀") == "<|P|>😀"


@pytest.mark.parametrize(
    "arguments", [{"init": "text", "text": "\ud800"}, {"init": "labels", "labels": ["a", "\ud800"]}]
)
def test_first_values(arguments: dict[str, Any]) -> None:
    with pytest.raises(PromptInitError):
        Prompt(PromptFormat("<P*2>"), TensorPromptProvider(**arguments)).initialize(tiny_model(), tiny_tokenizer())
