"""Text after an input: input and text read as the tokenizer decodes all tokens, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import every_tokenizer
import pytest
from every_tokenizer import TOKENIZERS, each_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from ruprompt_fast import PromptFormat
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.text_stream import TextStream

ROW = 10_000
TEXTS = ["one two", "question: what is", "день чудесный!", "one 🐪", "five  six ", "зверь"]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@each_tokenizer
@settings(max_examples=80)
@given(st.data())
def test_input_and_text_read_as_all_tokens(tokenizer: PreTrainedTokenizerBase, data: st.DataObject) -> None:
    before = ids_of(tokenizer, data.draw(st.sampled_from(TEXTS)))
    new = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    leading = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    given_text, whole = decode(tokenizer, before), decode(tokenizer, [*before, *new])
    for around in ([], leading, [ROW, ROW + 1], [*leading, ROW]):
        text = TextDecoder(tokenizer, ROW).text([*around, *before], new)
        if whole.startswith(given_text):
            assert given_text + text == whole
        else:  # bytes of the input's last character and new ones, which are none together
            assert "\N{REPLACEMENT CHARACTER}" in whole


@each_tokenizer
@settings(max_examples=80)
@given(st.data())
def test_pieces_add_up_after_an_input(tokenizer: PreTrainedTokenizerBase, data: st.DataObject) -> None:
    before = ids_of(tokenizer, data.draw(st.sampled_from(TEXTS)))
    before = [*before, *data.draw(st.sampled_from([[], [ROW], [tokenizer.eos_token_id]]))]
    new = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    decoder = TextDecoder(tokenizer, ROW)
    stream = TextStream(decoder, before)
    given_out = ""
    for count, token in enumerate(new, start=1):
        given_out += stream.push([token])
        assert decoder.text(before, new[:count]).startswith(given_out)
    assert given_out + stream.flush() == decoder.text(before, new)


@pytest.mark.parametrize("name", ["llama2", "mistral", "metaspace_always", "metaspace_first", "unigram", "wordpiece"])
def test_the_first_space_is_kept(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    before, new = ids_of(tokenizer, "one"), ids_of(tokenizer, "two")
    assert TextDecoder(tokenizer).text(before, new) == " two"
    assert TextDecoder(tokenizer).text([], new) == "two"
    leading = [tokenizer.bos_token_id]
    assert TextDecoder(tokenizer).text(leading, new) == "two"


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "replacing_normalizer"])  # has T5's decoder
@pytest.mark.parametrize("text", ["one", " two", "two three"])
@pytest.mark.parametrize("template", ["<P*2>{text}<P>{target}", "<P*2>{target}", "{text}<P>{target}"])
def test_a_text_that_was_trained_after_rows_comes_out_as_it_was_written(name: str, text: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]

    def trained(target: str) -> tuple[list[int], list[int]]:
        format = PromptFormat(template, tokenizer=tokenizer)
        encoded = format.encode({"text": "question:", "target": target}, tokenizer, ROW)
        place = encoded.field_ranges["target"]
        return encoded.input_ids[: place.start], encoded.input_ids[place]

    # Some tokenizers give a space that the text begins with no token of its own.
    alike = (text.lstrip(), text)
    like = [candidate for candidate in alike if trained(candidate) == trained(text)]
    assert TextDecoder(tokenizer, ROW).text(*trained(text)) == like[0]


def test_text_of_unknown_characters_is_text() -> None:
    tokenizer = TOKENIZERS["metaspace_first"]
    before = ids_of(tokenizer, "☃")
    assert before[-1] == tokenizer.unk_token_id
    assert TextDecoder(tokenizer).text(before, ids_of(tokenizer, "two")) == " two"


@each_tokenizer
def test_no_tokens_have_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    for before in ([], ids_of(tokenizer, "one"), [ROW]):
        assert TextDecoder(tokenizer, ROW).text(before, []) == ""


def test_tokens_that_are_added_later_are_known() -> None:
    tokenizer = every_tokenizer.llama2()
    decoder = TextDecoder(tokenizer)
    assert decoder.text(ids_of(tokenizer, "one"), ids_of(tokenizer, "two")) == " two"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    new = [tokenizer.convert_tokens_to_ids("<sep>"), *ids_of(tokenizer, "two")]
    stream = TextStream(decoder, ids_of(tokenizer, "one"))
    assert stream.push(new) + stream.flush() == " two"
