"""Text behind an input: input and text read as the tokenizer decodes all tokens, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import families
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ruprompt_fast import PromptFormat
from ruprompt_fast.engine.decoding import TextDecoder
from ruprompt_fast.engine.text import TextStream

ROW = 10_000
TEXTS = ["one two", "question: what is", "день чудесный!", "one 🐪", "five  six ", "зверь"]
SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = sorted(set("one two three question: what is the answer день чудесный! зверь. five six".replace(" ", "")))


def _sentencepiece(
    *, prepends: bool, decoder: decoders.Decoder, pre_tokenizer: pre_tokenizers.PreTokenizer | None = None
) -> PreTrainedTokenizerFast:
    """Letters, bytes and a few words, as SentencePiece's BPE models are converted."""
    words = ["▁", "▁one", "▁two", "▁▁", "two"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *words]
    merges = [("▁", "▁"), ("t", "w"), ("tw", "o"), ("▁", "two"), ("o", "n"), ("on", "e"), ("▁", "one")]
    tokens += [left + right for left, right in merges if left + right not in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    if pre_tokenizer is None:
        replace = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepends else replace
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _pieces(*last: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])


def llama2() -> PreTrainedTokenizerFast:
    return _sentencepiece(prepends=True, decoder=_pieces(decoders.Strip(" ", 1, 0)))


def mistral() -> PreTrainedTokenizerFast:
    """Newer conversions: a boundary at the very beginning only."""
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _sentencepiece(prepends=False, decoder=_pieces(decoders.Strip(" ", 1, 0)), pre_tokenizer=first)


def gemma() -> PreTrainedTokenizerFast:
    return _sentencepiece(prepends=False, decoder=_pieces())


def metaspace_never() -> PreTrainedTokenizerFast:
    never = {"prepend_scheme": "never", "split": False}
    return _sentencepiece(
        prepends=False, decoder=decoders.Metaspace(**never), pre_tokenizer=pre_tokenizers.Metaspace(**never)
    )


def word_ends() -> PreTrainedTokenizerFast:
    """XLM's family: the end of a word is marked, not its beginning."""
    tokens = [*SPECIAL, *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    **families.BUILDERS,
    **{make.__name__: make for make in (llama2, mistral, gemma, metaspace_never, word_ends)},
}
TOKENIZERS = {name: make() for name, make in MAKERS.items()}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


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
def test_pieces_add_up_behind_an_input(tokenizer: PreTrainedTokenizerBase, data: st.DataObject) -> None:
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
def test_a_text_that_was_trained_behind_rows_comes_out_as_it_was_written(name: str, text: str, template: str) -> None:
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
    tokenizer = llama2()
    decoder = TextDecoder(tokenizer)
    assert decoder.text(ids_of(tokenizer, "one"), ids_of(tokenizer, "two")) == " two"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    new = [tokenizer.convert_tokens_to_ids("<sep>"), *ids_of(tokenizer, "two")]
    stream = TextStream(decoder, ids_of(tokenizer, "one"))
    assert stream.push(new) + stream.flush() == " two"
