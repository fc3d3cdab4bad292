"""Encoding gives the ids of the tokenized text form, for every family of tokenizers."""

from __future__ import annotations

import copy
import gc
import threading
import timeit
import weakref
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prompts.families import BUILDERS, CORPUS, shared, with_text_form
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ruprompt_fast.errors import FieldTypeError, MissingFieldError, TokenIdError, UnsupportedModelError
from ruprompt_fast.prompts import EncodedPrompt, PromptFormat
from ruprompt_fast.prompts.format.tokenizer_state import tokenizer_state

FAMILIES = list(BUILDERS)
FIRST = 10_000

WORDS = [
    "",
    " ",
    "  ",
    "\n",
    "солнце",
    " день;",
    "the answer",
    "two",
    " three  ",
    "Ё",
    "é",
    "e\u0301",
    "…",
    "a\tb",
    "🙂",
    "x" * 30,
]
LITERALS = ["", "", "", " ", "Q: ", "\nanswer:", "день ", "x", "{{", "<", "|"]
ROWS = ["", "<P>", "<P*3>", "<P*20>", "<P>the answer</P>", "<P>день</P>"]


@st.composite
def templates(draw: st.DrawFn) -> str:
    pieces = []
    for field in draw(st.permutations(["{a}", "{b}", "{a}"]))[: draw(st.integers(0, 3))]:
        pieces += [draw(st.sampled_from(ROWS)), draw(st.sampled_from(LITERALS)), field]
        pieces += [draw(st.sampled_from(LITERALS)), draw(st.sampled_from(ROWS))]
    return "".join(pieces) + draw(st.sampled_from(["<P>", "<P*2>x"]))


texts = st.lists(st.sampled_from(WORDS), max_size=4).map("".join) | st.text(max_size=12)
fields = st.fixed_dictionaries({"a": texts, "b": texts})


def through_text(format: PromptFormat, item: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Add the marker to a copy of the tokenizer, tokenize the text form, and number the markers."""
    tokenizer = copy.deepcopy(tokenizer)
    [marker] = format.add_tokens(tokenizer)
    rows = iter(range(FIRST, FIRST + 1000))
    return [next(rows) if token == marker else token for token in tokenizer(format(item)).input_ids]


@pytest.mark.parametrize("family", FAMILIES)
class TestAllFamilies:
    @settings(max_examples=80, deadline=None)
    @given(template=templates(), item=fields)
    def test_equals_the_tokenized_text(self, family: str, template: str, item: dict[str, str]) -> None:
        assume(not any("P|>" in text or "\ud800" <= text[:1] <= "\udfff" for text in item.values()))
        tokenizer = shared(family)
        format = with_text_form(template, tokenizer)
        expected = through_text(format, item, tokenizer)
        # A combining character after a marker can swallow it in the text form; encode() keeps every row.
        assume(sum(token >= FIRST for token in expected) == format.prompt_length)
        encoded = format.encode(item, tokenizer, first_row_id=FIRST)
        assert encoded.input_ids == expected

    @settings(max_examples=40, deadline=None)
    @given(template=templates(), items=st.lists(fields, max_size=4))
    def test_batches_prefixes_and_ranges(self, family: str, template: str, items: list[dict[str, str]]) -> None:
        tokenizer = shared(family)
        format = with_text_form(template, tokenizer)
        batch = format.encode_batch(items, tokenizer)
        assert batch == [format.encode(item, tokenizer) for item in items]
        prefix = format.static_prefix(tokenizer)
        first_row = tokenizer_state(tokenizer).first_free_id
        assert not prefix or prefix[-1] >= first_row
        for encoded, item in zip(batch, items, strict=True):
            assert encoded.input_ids[: encoded.prefix_len] == prefix
            rows = [token for token in encoded.input_ids if token >= first_row]
            assert rows == list(range(first_row, first_row + (format.prompt_length or 0)))
            for name, place in encoded.field_ranges.items():
                inside = encoded.input_ids[place]
                assert not [token for token in inside if token >= first_row]
                assert 0 <= place.start <= place.stop <= len(encoded.input_ids)
                if place.start == place.stop:
                    assert not item[name].strip() or not tokenizer(item[name], add_special_tokens=False).input_ids

    def test_text_that_looks_like_a_marker_is_text(self, family: str) -> None:
        tokenizer = copy.deepcopy(shared(family))
        format = with_text_form("<P*2>{a}<P>", tokenizer)
        other = with_text_form("<P>{a}", tokenizer)
        other.set_key("x")
        value = "<P><|P|> {braces} {{ <|[x]P|> </P>"
        untouched = tokenizer(value, add_special_tokens=False).input_ids
        before = format.encode({"a": value}, tokenizer, FIRST)
        format.add_tokens(tokenizer)
        other.add_tokens(tokenizer)
        after = format.encode({"a": value}, tokenizer, FIRST)
        assert after == before
        assert [token for token in after.input_ids if token >= FIRST] == [FIRST, FIRST + 1, FIRST + 2]
        assert len(after.input_ids[after.field_ranges["a"]]) >= len(untouched) - 1
        assert not {*format.prompt_token_ids, *other.prompt_token_ids} & set(after.input_ids)

    def test_special_tokens(self, family: str) -> None:
        tokenizer = shared(family)
        format = with_text_form("<P*2>{a}<P>", tokenizer)
        plain = format.encode({"a": "two"}, tokenizer, FIRST, add_special_tokens=False)
        assert plain.input_ids[:2] == [FIRST, FIRST + 1]
        assert plain.input_ids[-1] == FIRST + 2
        assert plain.prefix_len == 2
        full = format.encode({"a": "two"}, tokenizer, FIRST)
        around = len(tokenizer("").input_ids)
        assert len(full.input_ids) == len(plain.input_ids) + around
        assert full.input_ids[full.field_ranges["a"]] == plain.input_ids[plain.field_ranges["a"]]
        assert format.static_prefix(tokenizer, FIRST, add_special_tokens=False) == [FIRST, FIRST + 1]

    def test_ranges_between_rows_are_exact(self, family: str) -> None:
        tokenizer = shared(family)
        format = with_text_form("<P>{a}<P>{b}", tokenizer)
        encoded = format.encode({"a": "the answer", "b": "two"}, tokenizer, FIRST)
        rows = [position for position, token in enumerate(encoded.input_ids) if token >= FIRST]
        assert encoded.field_ranges["a"] == slice(rows[0] + 1, rows[1])
        trailing = len(tokenizer("").input_ids) - rows[0]
        assert encoded.field_ranges["b"] == slice(rows[1] + 1, len(encoded.input_ids) - trailing)

    def test_ranges_inside_text(self, family: str) -> None:
        tokenizer = shared(family)
        format = with_text_form("<P>question: {a}, {b}\n{a}{c}", tokenizer)
        item = {"a": "солнце", "b": "two  three", "c": "день"}
        encoded = format.encode(item, tokenizer, FIRST)
        for name, value in item.items():
            found = tokenizer.decode(encoded.input_ids[encoded.field_ranges[name]])
            assert value.replace(" ", "") in found.replace(" ", "")
            # Neighbours' characters come along only inside a token that joins both.
            assert len(found.strip()) <= len(value) + 4
        assert encoded.field_ranges["b"].start < encoded.field_ranges["a"].start


class TestMarkersOfTheTextForm:
    """The flags of ``tokenizer.add_tokens(["<|P|>"])`` are honoured where a caller has used it."""

    @pytest.mark.parametrize("family", FAMILIES)
    def test_marker_added_by_its_text(self, family: str) -> None:
        tokenizer = copy.deepcopy(shared(family))
        tokenizer.add_tokens(["<|P|>"])
        format = with_text_form("Q: <P*3>{a} two<P>{b}", tokenizer)
        item = {"a": " the answer ", "b": "день"}
        expected = through_text(format, item, tokenizer)
        encoded = format.encode(item, tokenizer, FIRST).input_ids
        if family == "prepending_normalizer":
            # Its normalizer makes "▁<|P|>" of the marker, and the text form finds none of the later ones.
            assert sum(token >= FIRST for token in expected) < 4
            assert sum(token >= FIRST for token in encoded) == 4
        else:
            assert encoded == expected

    @pytest.mark.parametrize("family", ["byte_level", "metaspace_always", "unigram", "wordpiece"])
    @pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"normalized": False}])
    def test_marker_added_with_flags(self, family: str, flags: dict[str, bool]) -> None:
        tokenizer = copy.deepcopy(shared(family))
        tokenizer.add_tokens([AddedToken("<|P|>", **flags)])
        format = with_text_form("Q: <P*3> {a} two <P> {b}", tokenizer)
        item = {"a": " the answer ", "b": " день"}
        assert format.encode(item, tokenizer, FIRST).input_ids == through_text(format, item, tokenizer)


class TestRowIds:
    def test_default_is_the_first_free_id(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = with_text_form("<P*2>{a}", tokenizer)
        size = len(tokenizer)
        assert format.encode({"a": ""}, tokenizer).input_ids == [size, size + 1]
        format.add_tokens(tokenizer)
        assert format.encode({"a": ""}, tokenizer).input_ids == [size + 1, size + 2]

    def test_ids_of_tokens_are_refused(self) -> None:
        tokenizer = shared("byte_level")
        format = with_text_form("<P>{a}", tokenizer)
        size = len(tokenizer)
        assert format.encode({"a": ""}, tokenizer, size).input_ids == [size]
        for wrong in (0, size - 1):
            with pytest.raises(TokenIdError, match=str(size)):
                format.encode({"a": ""}, tokenizer, wrong)

    def test_no_rows(self) -> None:
        tokenizer = shared("metaspace_first")
        format = with_text_form("Q: {a}", tokenizer)
        assert format.encode({"a": "two"}, tokenizer).input_ids == tokenizer("Q: two").input_ids
        assert format.static_prefix(tokenizer) == []

    def test_no_fields(self) -> None:
        tokenizer = shared("metaspace_first")
        format = with_text_form("x<P*2>two", tokenizer)
        encoded = format.encode({}, tokenizer, FIRST)
        assert encoded.field_ranges == {}
        assert format.static_prefix(tokenizer, FIRST) == encoded.input_ids[: encoded.prefix_len]
        assert encoded.input_ids[encoded.prefix_len - 1] == FIRST + 1
        assert len(encoded.input_ids) > encoded.prefix_len

    def test_literal_text_after_the_last_row_is_not_in_the_prefix(self) -> None:
        tokenizer = shared("byte_level_nfc")
        format = with_text_form("Q: <P*2>passage {a}<P>", tokenizer)
        prefix = format.static_prefix(tokenizer, FIRST)
        assert prefix == [*tokenizer("Q: ").input_ids, FIRST, FIRST + 1]

    def test_missing_and_wrong_fields(self) -> None:
        tokenizer = shared("byte_level")
        format = with_text_form("<P>{a}", tokenizer)
        with pytest.raises(MissingFieldError):
            format.encode({}, tokenizer)
        with pytest.raises(FieldTypeError):
            format.encode_batch([{"a": "x"}, {"a": 3}], tokenizer)  # type: ignore[dict-item]

    def test_result_is_frozen(self) -> None:
        encoded = EncodedPrompt([1], {}, 0)
        with pytest.raises(AttributeError):
            encoded.prefix_len = 1  # type: ignore[misc]


class _ShoutingTokenizer(PreTrainedTokenizerFast):
    """A model's own class may do more than its backend."""

    def __call__(self, text: str, **kwargs: object) -> object:  # type: ignore[override]
        return super().__call__(text.replace("two", "three"), **kwargs)


class TestStateOfTokenizers:
    def test_the_tokenizer_is_not_changed(self) -> None:
        tokenizer = copy.deepcopy(shared("metaspace_first"))
        before = tokenizer.backend_tokenizer.to_str()
        with_text_form("<P>{a}", tokenizer).encode({"a": "x"}, tokenizer)
        assert tokenizer.backend_tokenizer.to_str() == before

    def test_added_tokens_are_noticed(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = with_text_form("<P>{a}", tokenizer)
        format.encode({"a": "the answer"}, tokenizer)
        tokenizer.add_tokens(["answer"])
        assert format.encode({"a": "the answer"}, tokenizer, FIRST).input_ids[-1] == len(tokenizer) - 1

    def test_a_new_post_processor_is_noticed(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = with_text_form("<P>{a}", tokenizer)
        assert format.encode({"a": ""}, tokenizer, FIRST).input_ids == [FIRST]
        tokenizer.add_bos_token = True
        assert format.encode({"a": ""}, tokenizer, FIRST).input_ids == [tokenizer.bos_token_id, FIRST]

    def test_split_special_tokens_is_noticed_where_control_text_is_read(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = with_text_form("<P>{a}", tokenizer)
        item = {"a": "</s>"}
        read = format.encode(item, tokenizer, FIRST, reads_control_text=True)
        assert read.input_ids == [FIRST, tokenizer.eos_token_id]
        plain = format.encode(item, tokenizer, FIRST).input_ids
        tokenizer.split_special_tokens = True
        assert plain == [FIRST, *tokenizer("</s>").input_ids]
        assert format.encode(item, tokenizer, FIRST, reads_control_text=True).input_ids == plain

    def test_markers_between_other_added_tokens(self) -> None:
        """Taking a marker out must not move the ids after it."""
        tokenizer = copy.deepcopy(shared("byte_level"))
        tokenizer.add_tokens(["<first>"])
        format = with_text_form("<P>{a}", tokenizer)
        format.add_tokens(tokenizer)
        tokenizer.add_tokens(["<last>"])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<special>"]})
        item = {"a": "<first><last><special>"}
        ids = format.encode(item, tokenizer, FIRST, reads_control_text=True).input_ids
        assert ids == [FIRST, *tokenizer.convert_tokens_to_ids(["<first>", "<last>", "<special>"])]

    @pytest.mark.parametrize("kind", [PreTrainedTokenizerFast, _ShoutingTokenizer])
    def test_a_marker_of_the_base_vocabulary(self, kind: type[PreTrainedTokenizerFast]) -> None:
        """Renamed it is a new token, so it moves the ids after it; they must come out as they were."""
        base = Tokenizer(models.BPE())
        base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        base.decoder = decoders.ByteLevel()
        special = ["<|P|>", "</s>", "<|[x]P|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        base.train_from_iterator(
            CORPUS, BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        )
        tokenizer = kind(tokenizer_object=base, eos_token="</s>")
        tokenizer.add_tokens(["<last>"])
        format = with_text_form("<P*2>{a}", tokenizer)
        assert format.add_tokens(tokenizer) == [0]
        item = {"a": "the<last> answer"}
        encoded = format.encode(item, tokenizer, FIRST)
        assert encoded.input_ids == through_text(format, item, tokenizer)
        assert len(tokenizer) - 1 in encoded.input_ids
        plain = format.encode({"a": "<|P|>"}, tokenizer, FIRST)
        assert tokenizer.decode(plain.input_ids[2:]) == "<|P|>"
        assert 0 not in plain.input_ids

    def test_tokenizers_are_not_kept_alive(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = with_text_form("<P>{a}", tokenizer)
        format.encode({"a": "x"}, tokenizer)
        reference = weakref.ref(tokenizer)
        del tokenizer
        gc.collect()
        assert reference() is None

    def test_guessed_marker(self) -> None:
        """A text with the private marker itself gets another marker."""
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = with_text_form("<P>{a}<P>", tokenizer)
        marker = tokenizer_state(tokenizer).private(tokenizer, "<|P|>").marker
        encoded = format.encode_batch([{"a": "x"}, {"a": f"x{marker}y"}], tokenizer, FIRST)[1]
        assert encoded.input_ids[1:-1] == tokenizer(f"x{marker}y").input_ids
        assert (encoded.input_ids[0], encoded.input_ids[-1]) == (FIRST, FIRST + 1)

    def test_threads(self) -> None:
        tokenizer = copy.deepcopy(shared("metaspace_always"))
        format = with_text_form("<P*5>{a}<P>", tokenizer)
        expected = format.encode({"a": "the answer"}, copy.deepcopy(tokenizer), FIRST)
        results = []

        def work() -> None:
            results.extend(format.encode({"a": "the answer"}, tokenizer, FIRST) for _ in range(50))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 400


class TestOtherTokenizers:
    def test_a_class_that_adds_to_its_backend(self) -> None:
        tokenizer = _ShoutingTokenizer(tokenizer_object=shared("metaspace_first").backend_tokenizer, eos_token="</s>")
        format = with_text_form("Q <P*2>{a}x", tokenizer)
        item = {"a": "one two"}
        encoded = format.encode(item, tokenizer, FIRST)
        assert encoded.input_ids == through_text(format, item, tokenizer)
        assert "three" in tokenizer.decode(encoded.input_ids[encoded.field_ranges["a"]])
        format.add_tokens(tokenizer)
        assert format.encode(item, tokenizer, FIRST) == encoded

    def test_a_tokenizer_that_splits_its_added_tokens(self) -> None:
        tokenizer = ByT5Tokenizer(extra_ids=0, split_special_tokens=True)
        with pytest.raises(UnsupportedModelError, match="in one piece"):
            with_text_form("<P>{a}", tokenizer).encode({"a": "x"}, tokenizer)

    def test_python_tokenizer_that_cannot_take_tokens(self) -> None:
        class Closed(ByT5Tokenizer):
            def _add_tokens(self, new_tokens: object, special_tokens: bool = False) -> int:
                if special_tokens:
                    return super()._add_tokens(new_tokens, special_tokens)
                raise NotImplementedError

        tokenizer = Closed(extra_ids=0)
        format = PromptFormat("<P>{a}", "<|P|>{a}")
        with pytest.raises(UnsupportedModelError, match="cannot take new tokens"):
            format.encode({"a": "x"}, tokenizer)


def test_is_faster_than_the_text_form() -> None:
    """By about four times for this prompt; the bound leaves room for a busy machine."""
    tokenizer = copy.deepcopy(shared("byte_level"))
    format = with_text_form("<P*60>{text}<P*20>", tokenizer)
    format.add_tokens(tokenizer)
    item = {"text": "Мороз и солнце; день чудесный!"}

    def fastest(work: Callable[[], object]) -> float:
        return min(timeit.repeat(work, number=20, repeat=15))

    assert fastest(lambda: format.encode(item, tokenizer)) < fastest(lambda: tokenizer(format(item))["input_ids"])
