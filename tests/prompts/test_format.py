"""Templates and the text form."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompts.families import shared, with_text_form
from prompts.tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from ruprompt_fast.errors import (
    FieldTypeError,
    MarkerInFieldError,
    MissingFieldError,
    NotInitializedError,
    RupromptError,
    TemplateError,
)
from ruprompt_fast.prompts import PromptFormat, is_marker

TOKENIZER = tiny_tokenizer()


def compiled(template: str) -> PromptFormat:
    return PromptFormat(template, tokenizer=TOKENIZER)


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ("", ""),
            ("plain", "plain"),
            ("<P>", "<|P|>"),
            ("<P><P>{text}<P>", "<|P|><|P|>{text}<|P|>"),
            ("<P*3>{text}<P*2>", "<|P|><|P|><|P|>{text}<|P|><|P|>"),
            ("<P*2><P>{a}x{b}", "<|P|><|P|><|P|>{a}x{b}"),
            ("<P*0>{text}", "{text}"),
            ("<|P|>{text}", "<|P|>{text}"),
            ("<P>{ text }", "<|P|>{text}"),
            ("{{}}<P>{{{text}}}", "{{}}<|P|>{{{text}}}"),
            ("<P>{a}{a}", "<|P|>{a}{a}"),
            ("<P>on</P>{text}", "<|P|>{text}"),
            ("<P>tedon</P>{text}<P>\nab</P>", "<|P|><|P|><|P|>{text}<|P|><|P|><|P|>"),
            ("<P>{text}<P>on</P>", "<|P|>{text}<|P|>"),
            ("</P>{text}</P>", "</P>{text}</P>"),
            ("<P><P>on</P></P>", "<|P|><|P|></P>"),
            ("<P*2></P>", "<|P|><|P|></P>"),
            ("<P *3><p>{text}", "<P *3><p>{text}"),
            ("<P>{имя поля}", "<|P|>{имя поля}"),
        ],
    )
    def test_compiled(self, template: str, expected: str) -> None:
        format = compiled(template)
        assert format.compiled_template == expected
        assert format.prompt_length == expected.count("<|P|>")

    @pytest.mark.parametrize(
        ("template", "reason"),
        [
            ("{", "brace"),
            ("}", "brace"),
            ("<P>{text", "brace"),
            ("{}", "without a name"),
            ("{ }", "without a name"),
            ("{0}", "without a name"),
            ("{a.b}", "attribute"),
            ("{a[0]}", "attribute"),
            ("{a!r}", "formats"),
            ("{a:>10}", "formats"),
            ("<P*>", "number of rows"),
            ("<P*x>", "number of rows"),
            ("<P*-1>", "number of rows"),
            ("<P*1.5>", "number of rows"),
            ("<P*²>", "number of rows"),
            ("<P*99999999>", "number of rows"),
            ("<P*19999><P*2>", "at most 20000 rows"),
            ("<P></P>", "nothing between"),
            ("<P>{text}</P>", "a field or a special token between"),
            ("<P>a {text} b</P>", "a field or a special token between"),
            ("<|[key]P|>{text}", "set_key"),
            (None, "must be a string"),
        ],
    )
    def test_malformed(self, template: str, reason: str) -> None:
        with pytest.raises(TemplateError, match=reason) as caught:
            PromptFormat(template)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, RupromptError)

    def test_text_without_tokens(self) -> None:
        format = PromptFormat("<P> </P>{text}")
        with pytest.raises(TemplateError, match="no tokens"):
            format.initialize(shared("wordpiece"))
        assert not format.is_initialized

    def test_init_tokens_are_by_row_and_without_special_tokens(self) -> None:
        tokenizer = shared("metaspace_always")
        format = PromptFormat("<P*2><P>the answer</P>{text}<P><P>two</P>", tokenizer=tokenizer)
        first = tokenizer("the answer", add_special_tokens=False).input_ids
        second = tokenizer("two", add_special_tokens=False).input_ids
        expected = dict(enumerate(first, start=2)) | dict(enumerate(second, start=3 + len(first)))
        assert format.init_tokens == expected
        assert format.prompt_length == 3 + len(first) + len(second)

    def test_braces_in_an_initialization_text(self) -> None:
        tokenizer = shared("byte_level")
        format = PromptFormat("<P>{{x}}</P>{text}", tokenizer=tokenizer)
        assert list((format.init_tokens or {}).values()) == tokenizer("{x}").input_ids

    def test_fields(self) -> None:
        format = PromptFormat("<P>{b}{a} {b}{ c }")
        assert format.fields == ("b", "a", "c")
        assert PromptFormat("x", "<|P|>{b}{a}{b}").fields == ("b", "a")

    def test_published_templates(self) -> None:
        template = "<P>Passage:</P>{passage}<P>\nQuestion:</P>{question}<P>\nAnswer:</P>"
        format = PromptFormat(template, tokenizer=shared("byte_level"))
        text = format(passage="p", question="q")
        assert text.replace("<|P|>", "") == "pq"
        assert text.endswith("q" + "<|P|>" * len(shared("byte_level")("\nAnswer:").input_ids))


class TestBeforeInitialization:
    def test_what_is_known(self) -> None:
        format = PromptFormat("<P>{text}")
        assert not format.is_initialized
        assert format.prompt_length is None
        assert format.init_tokens is None
        assert format.prompt_token_ids == []

    def test_use_is_refused(self) -> None:
        format = PromptFormat("<P>{text}")
        for use in (
            lambda: format(text="a"),
            lambda: format(text="a", return_ranges=True),
            format.as_dict,
            lambda: format.encode({"text": "a"}, TOKENIZER),
            lambda: format.static_prefix(TOKENIZER),
        ):
            with pytest.raises(NotInitializedError, match="initialize") as caught:
                use()
            assert isinstance(caught.value, UserWarning)


class TestCalls:
    def test_ways_to_pass_fields(self) -> None:
        format = compiled("<P>{text}<P>{other}")
        item = {"text": "a", "other": "b"}
        expected = "<|P|>a<|P|>b"
        ranges = {"text": slice(5, 6), "other": slice(11, 12)}
        assert format(text="a", other="b") == expected
        assert format(item) == expected
        assert format([item, {"text": "c", "other": ""}]) == [expected, "<|P|>c<|P|>"]
        assert format(item, return_ranges=True) == (expected, ranges)
        assert format(text="a", other="b", return_ranges=True) == (expected, ranges)
        texts, all_ranges = format([item, item], return_ranges=True)
        assert (texts, all_ranges) == ([expected] * 2, [ranges] * 2)
        assert format([]) == []
        assert format([], return_ranges=True) == ([], [])
        assert format(items=item) == expected

    def test_a_field_named_items(self) -> None:
        assert compiled("<P>{items}")(items="x") == "<|P|>x"

    def test_further_entries_are_ignored(self) -> None:
        assert compiled("<P>{text}")({"text": "a", "label": 3}) == "<|P|>a"

    def test_missing_field(self) -> None:
        with pytest.raises(MissingFieldError, match=r"'b' has no value.*\['a', 'b'\]") as caught:
            compiled("{a}{b}")(a="x", c="y")
        assert isinstance(caught.value, KeyError)
        with pytest.raises(MissingFieldError):
            compiled("{a}")(a=None)

    @pytest.mark.parametrize("value", [1, 1.5, b"x", ["x"]])
    def test_values_must_be_strings(self, value: object) -> None:
        with pytest.raises(FieldTypeError, match="'a' must be a string") as caught:
            compiled("<P>{a}")(a=value)
        assert isinstance(caught.value, TypeError)

    def test_items_must_be_mappings(self) -> None:
        format = compiled("<P>{text}")
        for use in (lambda: format("x"), lambda: format(["x"]), lambda: format.encode("x", TOKENIZER)):
            with pytest.raises(FieldTypeError, match=r"found str.*\['text'\]"):
                use()

    @pytest.mark.parametrize("value", ["<|P|>", "x<|P|>y", "<|[other]P|>", "<|[a b]P|>", "P|><|P|>"])
    def test_markers_in_fields_are_refused(self, value: str) -> None:
        format = compiled("<P>{a}{b}")
        for return_ranges in (False, True):
            with pytest.raises(MarkerInFieldError, match=r"text of \['a'\]") as caught:
                format(a=value, b="fine", return_ranges=return_ranges)
            assert isinstance(caught.value, ValueError)

    def test_markers_made_of_two_fields_are_refused(self) -> None:
        with pytest.raises(MarkerInFieldError):
            compiled("<P>{a}{b}")(a="<|", b="P|>")
        with pytest.raises(MarkerInFieldError):
            compiled("<P><|{a}")(a="P|>")

    @pytest.mark.parametrize("value", ["<P>", "<P*3>", "</P>", "P|>", "{text}", "{{", "<|p|>", "<|["])
    def test_what_only_looks_like_a_marker_is_text(self, value: str) -> None:
        assert compiled("<P>{a}")(a=value) == "<|P|>" + value
        assert compiled("<P>P|>{a}")(a=value) == "<|P|>P|>" + value

    @given(st.text(), st.text(), st.text())
    def test_ranges(self, a: str, b: str, c: str) -> None:
        format = compiled("x<P*2>{a}y{{{b}<P>{c}")
        if any("P|>" in text for text in (a, b, c, a + b)):
            return
        text, ranges = format(a=a, b=b, c=c, return_ranges=True)
        assert text == f"x<|P|><|P|>{a}y{{{b}<|P|>{c}"
        assert {name: text[place] for name, place in ranges.items()} == {"a": a, "b": b, "c": c}


class TestKeys:
    def test_before_and_after_initialization(self) -> None:
        early = PromptFormat("<P*2>{a}")
        early.set_key("one")
        early.initialize(TOKENIZER)
        late = compiled("<P*2>{a}")
        late.set_key("one")
        for format in (early, late):
            assert format.key == "one"
            assert format.prompt_tokens == ["<|[one]P|>"]
            assert format(a="x") == "<|[one]P|><|[one]P|>x"
            assert format.prompt_length == 2
        late.set_key("two")
        assert late(a="x") == "<|[two]P|><|[two]P|>x"
        late.set_key(None)
        assert late(a="x") == "<|P|><|P|>x"
        late.set_key()
        assert late.compiled_template == "<|P|><|P|>{a}"

    @pytest.mark.parametrize("key", ["", "имя", "a b", "{x}", "<P>", "]", "a]b", "\n"])
    def test_any_key(self, key: str) -> None:
        format = compiled("<P>{a}<P>")
        format.set_key(key)
        marker = f"<|[{key}]P|>"
        assert format(a="x") == f"{marker}x{marker}"
        loaded = PromptFormat(**format.as_dict())
        assert loaded.key == key
        assert loaded(a="x", return_ranges=True) == format(a="x", return_ranges=True)

    @pytest.mark.parametrize("key", ["P|>", "a]P|>b", "<|[", "x<|[y", 3])
    def test_keys_that_would_break_the_marker(self, key: str) -> None:
        format = compiled("<P>{a}")
        with pytest.raises(TemplateError, match="key"):
            format.set_key(key)
        assert format.prompt_token == "<|P|>"

    def test_is_marker(self) -> None:
        assert all(map(is_marker, ("<|P|>", "<|[]P|>", "<|[a]P|>")))
        assert not any(map(is_marker, ("<P>", "<|P|><|P|>", "<|endoftext|>", " <|P|>")))


class TestReloading:
    def test_everything_but_initialization_survives(self) -> None:
        format = compiled("<P>on</P>{text} {{x}}<P*2>")
        loaded = PromptFormat(**format.as_dict())
        assert loaded.is_initialized
        assert loaded.as_dict() == format.as_dict()
        assert loaded.prompt_length == 3
        assert loaded.init_tokens == {}
        assert loaded(text="a", return_ranges=True) == format(text="a", return_ranges=True)
        loaded.initialize(TOKENIZER)
        assert loaded.as_dict() == format.as_dict()

    def test_a_compiled_template_is_kept_as_it_was_written(self) -> None:
        stored = {"template": "<P>{ a }", "compiled_template": "<|P|>{ a }"}
        format = PromptFormat(**stored)
        assert format.as_dict() == stored
        assert format(a="x") == "<|P|>x"

    def test_saved_under_a_key(self) -> None:
        format = PromptFormat("<P*2>{a}", "<|[one]P|><|[one]P|>{a}")
        assert (format.key, format.prompt_token, format.prompt_length) == ("one", "<|[one]P|>", 2)
        format.set_key(None)
        assert format(a="x") == "<|P|><|P|>x"

    def test_two_kinds_of_markers(self) -> None:
        with pytest.raises(TemplateError, match="one marker, repeated"):
            PromptFormat("x", "<|[one]P|><|P|>{a}")

    def test_short_markers_are_text_there(self) -> None:
        assert PromptFormat("x", "<|P|><P>{a}")(a="y") == "<|P|><P>y"

    def test_copies(self) -> None:
        format = compiled("<P>{a}")
        format.encode({"a": "x"}, TOKENIZER)
        for twin in (copy.deepcopy(format), pickle.loads(pickle.dumps(format))):
            assert twin(a="x") == format(a="x")
            twin.set_key("other")
            assert format.key is None


class TestAddTokens:
    def test_marker_joins_the_tokenizer_once(self, tokenizer: PreTrainedTokenizerFast) -> None:
        format = PromptFormat("<P>{a}", tokenizer=tokenizer)
        size = len(tokenizer)
        assert format.add_tokens(tokenizer) == [size]
        assert format.add_tokens(tokenizer) == [size]
        assert format.prompt_token_ids == [size]
        assert len(tokenizer) == size + 1
        assert tokenizer(format(a="on")).input_ids[0] == size

    def test_a_new_key_needs_a_new_token(self, tokenizer: PreTrainedTokenizerFast) -> None:
        format = PromptFormat("<P>{a}", tokenizer=tokenizer)
        format.add_tokens(tokenizer)
        format.set_key("k")
        assert format.prompt_token_ids == []
        assert format.add_tokens(tokenizer) == [len(tokenizer) - 1]

    @pytest.mark.parametrize("family", ["wordpiece", "prepending_normalizer"])
    def test_markers_survive_normalizers(self, family: str) -> None:
        tokenizer = copy.deepcopy(shared(family))
        format = with_text_form("<P*3>{a}<P>", tokenizer)
        [marker] = format.add_tokens(tokenizer)
        assert tokenizer(format(a="two <|p|>")).input_ids.count(marker) == 4
