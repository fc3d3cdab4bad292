"""Streamed pieces add up to the decoding of all tokens, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ruprompt_fast.bundled import MODEL
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.text_stream import TextStream

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
SPELLED = [
    "▁",
    "▁▁",
    "▁▁▁▁▁▁",
    "a",
    "▁a",
    "n",
    "▁n",
    "'",
    "▁'",
    "t",
    "s",
    "v",
    "e",
    "n't",
    ".",
    "▁.",
    "?",
    ",",
    "ё",
    "▁ж",
]


def fast(tokenizer: Tokenizer, **settings: object) -> PreTrainedTokenizerFast:
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **settings)


def byte_level() -> PreTrainedTokenizerFast:
    """Every byte, and a few tokens that end or begin inside a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    yo, camel = spell("ё")[0][0], spell("🐪")[0][0]
    merged = [yo[1] + yo[0], camel[:3], camel[2:] + yo[0], yo, camel[0] + camel[0]]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *letters, *merged])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer)


def metaspace(clean_up: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram([(token, -1.0) for token in [*SPECIAL, *SPELLED]], unk_id=3))
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer, clean_up_tokenization_spaces=clean_up)


def byte_fallback() -> PreTrainedTokenizerFast:
    """The decoder of Llama 2 and Mistral; characters beside a few are spelled in bytes."""
    tokens = [*SPECIAL, *SPELLED, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[], byte_fallback=True)
    )
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return fast(tokenizer)


def word_piece() -> PreTrainedTokenizerFast:
    tokens = [*SPECIAL, "лес", "a", "n't", "'", "s", "##s", "##ы", "##.", ".", "?", "!", "'ve", "##ve", "n", "v"]
    tokenizer = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return fast(tokenizer, clean_up_tokenization_spaces=True)


MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "bundled": lambda: AutoTokenizer.from_pretrained(MODEL),
    "characters": tiny_tokenizer,
    "byte_level": byte_level,
    "metaspace": metaspace,
    "metaspace_clean_up": lambda: metaspace(clean_up=True),
    "byte_fallback": byte_fallback,
    "word_piece": word_piece,
    "python_bytes": ByT5Tokenizer,
}
TOKENIZERS = {name: make() for name, make in MAKERS.items()}
STOP_CHARACTERS = " .'nтаё�a"


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


def cut_length(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stops: Sequence[str]) -> int | None:
    """Length of the shortest beginning whose text contains a stop string."""
    texts = (decode(tokenizer, token_ids[:length]) for length in range(1, len(token_ids) + 1))
    return next((length for length, text in enumerate(texts, 1) if any(stop in text for stop in stops)), None)


def random_ids(tokenizer: PreTrainedTokenizerBase, max_size: int = 60) -> st.SearchStrategy[list[int]]:
    """Any tokens, and long stretches of a few."""
    every = st.integers(0, len(tokenizer) - 1)
    few = st.lists(every, min_size=1, max_size=3).flatmap(lambda some: st.lists(st.sampled_from(some), max_size=30))
    return st.lists(st.lists(every, max_size=20) | few, max_size=4).map(lambda parts: list(chain(*parts))[:max_size])


each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def assert_pieces_add_up(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> None:
    stream = TextStream(TextDecoder(tokenizer))
    given_out = ""
    for index, token in enumerate(token_ids):
        given_out += stream.push([token])
        assert decode(tokenizer, token_ids[: index + 1]).startswith(given_out)
    assert given_out + stream.flush() == decode(tokenizer, token_ids)
    assert stream.flush() == ""
    assert stream.num_tokens == len(token_ids)
    assert not stream.stopped


@each_tokenizer
@settings(max_examples=60)
@given(st.data())
def test_pieces_add_up(tokenizer: PreTrainedTokenizerBase, data: st.DataObject) -> None:
    assert_pieces_add_up(tokenizer, data.draw(random_ids(tokenizer)))


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["▁", "a", "▁n", "'", "▁'", "t", "s", "v", "e", "."]), max_size=12))
@example(["a", "▁n", "'", "t", "a"])
@example(["a", "▁'", "v", "e", "a"])
@example(["a", "▁n", "▁'", "▁", "t"])
def test_spaces_are_cleaned_up_across_pieces(tokens: list[str]) -> None:
    tokenizer = TOKENIZERS["metaspace_clean_up"]
    assert_pieces_add_up(tokenizer, tokenizer.convert_tokens_to_ids(tokens))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "python_bytes"])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_ids_that_only_the_model_has_are_no_text(name: str, count: int) -> None:
    tokenizer = TOKENIZERS[name]
    for last in range(len(SPECIAL), min(len(tokenizer), 40)):
        assert_pieces_add_up(tokenizer, [4, *[len(tokenizer) + 5] * count, last, last])


@each_tokenizer
@settings(max_examples=60)
@given(st.data())
def test_stop_strings_cut_at_the_first_token_that_completes_one(
    tokenizer: PreTrainedTokenizerBase, data: st.DataObject
) -> None:
    token_ids = data.draw(random_ids(tokenizer, max_size=40))
    text = decode(tokenizer, token_ids)
    inside = st.integers(0, len(text)).map(lambda start: text[start : start + 3])
    stops = data.draw(st.lists(st.text(STOP_CHARACTERS, max_size=3) | inside, min_size=1, max_size=3))
    stream = TextStream(TextDecoder(tokenizer), stop_strings=stops)
    pieces = [stream.push([token]) for token in token_ids]
    cut = cut_length(tokenizer, token_ids, [stop for stop in stops if stop])
    assert stream.stopped == (cut is not None)
    assert stream.num_tokens == (len(token_ids) if cut is None else cut)
    assert "".join(pieces) + stream.flush() == decode(tokenizer, token_ids[:cut])
    at_once = TextStream(TextDecoder(tokenizer), stop_strings=stops)
    assert at_once.push(token_ids) + at_once.flush() == decode(tokenizer, token_ids[:cut])
    assert at_once.num_tokens == stream.num_tokens


@given(st.text(max_size=40))
@example("Съешь ещё этих мягких французских булок 🐪🐪")
def test_text_of_any_language_comes_whole(text: str) -> None:
    tokenizer = TOKENIZERS["bundled"]
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(TextDecoder(tokenizer))
    pieces = [stream.push([token]) for token in token_ids] + [stream.flush()]
    assert "".join(pieces) == decode(tokenizer, token_ids)
    assert "�" in text or not any("�" in piece for piece in pieces)


def test_letters_are_never_split_nor_kept_waiting() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    text = "ёж 🐪\n"
    token_ids = [
        tokenizer.convert_tokens_to_ids(letter)
        for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        for letter in word
    ]
    stream = TextStream(TextDecoder(tokenizer))
    pieces = [stream.push([token]) for token in token_ids]
    assert pieces == ["", "ё", "", "ж", " ", "", "", "", "🐪", "\n"]


def test_a_replacement_character_that_was_meant_comes_out() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    lone = tokenizer.convert_tokens_to_ids(
        pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("ё")[0][0][1]
    )
    stream = TextStream(TextDecoder(tokenizer))
    assert [stream.push([lone]), stream.push([lone]), stream.flush()] == ["", "�", "�"]


def test_nothing_is_held_back_before_a_stop_string() -> None:
    tokenizer = tiny_tokenizer()
    stream = TextStream(TextDecoder(tokenizer), stop_strings=["абв"])
    token_ids = tokenizer("дабвг")["input_ids"]
    assert [stream.push([token]) for token in token_ids] == ["д", "а", "б", "в", ""]
    assert stream.stopped
    assert stream.num_tokens == 4
    assert stream.flush() == ""


@each_tokenizer
def test_no_tokens_have_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(TextDecoder(tokenizer), stop_strings=[""])
    assert stream.push([]) + stream.flush() == ""
    assert stream.num_tokens == 0


class CountingTokenizer(ByT5Tokenizer):
    """Counts the tokens that it decodes."""

    decoded = 0

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        self.decoded += len(tokens)
        return str(super().convert_tokens_to_string(tokens))


@pytest.mark.parametrize("text", ["a", "ж", "\xff"])
@pytest.mark.parametrize("stops", [(), ("конец",)])
@pytest.mark.parametrize("before", ["", "ж" * 500])
def test_work_per_token_does_not_grow(text: str, stops: Sequence[str], before: str) -> None:
    tokenizer = CountingTokenizer()
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"] * 500
    input_ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    decoder = TextDecoder(tokenizer)
    assert decoder.text(input_ids, []) == ""
    tokenizer.decoded = 0
    stream = TextStream(decoder, input_ids, stops)
    stream.push([*token_ids, *[tokenizer.pad_token_id] * 500])
    assert tokenizer.decoded < 25 * len(token_ids)
