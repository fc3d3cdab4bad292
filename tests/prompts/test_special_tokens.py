"""Special tokens are where the template says, by their ids; fields and targets are data and never give any."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts.families import BUILDERS, shared, with_text_form
from prompts.tiny import tiny_model, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ruprompt_fast import MultiPrompt, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.errors import MarkerInFieldError, NotInitializedError, PromptFileError, TemplateError, TextFormError
from ruprompt_fast.prompts import Text2TextPreprocessor

FAMILIES = list(BUILDERS)
FIRST = 10_000


def bare(family: str) -> PreTrainedTokenizerBase:
    """A tokenizer of the family that adds no special tokens, with its texts otherwise as they are."""
    tokenizer = copy.deepcopy(shared(family))
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


TOKENIZERS = {family: shared(family) for family in FAMILIES} | {
    f"{family}_bare": bare(family) for family in FAMILIES if shared(family).is_fast
}


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All special tokens but the one for unknown text, which any text may give."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts in front of a text and after it."""
    whole, text = tokenizer("two").input_ids, tokenizer("two", add_special_tokens=False).input_ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    return whole[:start], whole[start + len(text) :]


PIECES = [
    "",
    "two",
    " день",
    "<",
    "/s>",
    "</s>",
    "<s>",
    "[SEP]",
    "[CLS]",
    "<pad>",
    "<extra_id_0>",
    "<|P|>",
    "<P>",
    ">",
    "s",
]
data = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
LITERALS = ["", "", "Q: ", " day", "\n"]
SLOTS = ["", "", "<P>", "<P*3>", "<eos>"]


@st.composite
def templates(draw: st.DrawFn) -> str:
    """Templates with rows, special tokens, texts and up to three fields."""
    pieces = [draw(st.sampled_from(["", "", "<P*2>", "<P>Q"])), draw(st.sampled_from(["", "<|leading|>"]))]
    for field in draw(st.permutations(["{a}", "{b}", "{a}"]))[: draw(st.integers(0, 3))]:
        pieces += [draw(st.sampled_from(SLOTS)), draw(st.sampled_from(LITERALS)), field]
        pieces += [draw(st.sampled_from(LITERALS)), draw(st.sampled_from(SLOTS))]
    pieces += [draw(st.sampled_from(["", "<|trailing|>"])), draw(st.sampled_from(["", "<P>", "x"]))]
    return "".join(pieces)


def with_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.eos_token = tokenizer.all_special_tokens[0]
    return tokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
class TestAllTokenizers:
    @settings(max_examples=60, deadline=None)
    @given(template=templates(), item=st.fixed_dictionaries({"a": data, "b": data}), is_continued=st.booleans())
    def test_no_special_token_comes_from_a_field(
        self, name: str, template: str, item: dict[str, str], is_continued: bool
    ) -> None:
        tokenizer = with_end(TOKENIZERS[name])
        format = PromptFormat(template, tokenizer=tokenizer)
        encoded = format.encode(item, tokenizer, FIRST, is_continued=is_continued)
        empty = format.encode({"a": "", "b": ""}, tokenizer, FIRST, is_continued=is_continued)
        special = special_ids(tokenizer)
        assert [i for i in encoded.input_ids if i in special] == [i for i in empty.input_ids if i in special]
        rows = [i for i in encoded.input_ids if i >= FIRST]
        assert rows == list(range(FIRST, FIRST + (format.prompt_length or 0)))
        assert encoded.input_ids[: encoded.prefix_len] == format.static_prefix(tokenizer, FIRST)
        for place in encoded.field_ranges.values():
            assert special.isdisjoint(encoded.input_ids[place])
        assert format.encode_batch([item, item], tokenizer, FIRST, is_continued=is_continued) == [encoded, encoded]

    @settings(max_examples=30, deadline=None)
    @given(text=data, target=data)
    def test_no_special_token_comes_from_a_target(self, name: str, text: str, target: str) -> None:
        tokenizer = copy.deepcopy(with_end(TOKENIZERS[name]))
        format = PromptFormat("<P*2>{text}", tokenizer=tokenizer)
        format.add_tokens(tokenizer)
        example = Text2TextPreprocessor(format, tokenizer, "target")({"text": text, "target": target})
        leading, _ = around(tokenizer)
        found = [i for i in example["input_ids"] if i in special_ids(tokenizer)]
        assert found == [*(i for i in leading if i in special_ids(tokenizer)), tokenizer.eos_token_id]
        assert example["labels"][-1] == tokenizer.eos_token_id

    def test_rows_then_what_the_tokenizer_gives(self, name: str) -> None:
        tokenizer = TOKENIZERS[name]
        peft = PromptFormat("<P*2>{text}", "<|P|><|P|><|leading|>{text}<|trailing|>")
        for text in ("", "two", " three  ", "солнце\nдень"):
            expected = [FIRST, FIRST + 1, *tokenizer(text).input_ids]
            for is_continued in (False, True):
                assert peft.encode({"text": text}, tokenizer, FIRST, is_continued=is_continued).input_ids == expected
        leading, _ = around(tokenizer)
        ours = PromptFormat("<P*2><|leading|>{text}", tokenizer=tokenizer)
        assert ours.encode({"text": "two"}, tokenizer, FIRST).input_ids == [
            FIRST,
            FIRST + 1,
            *tokenizer("two").input_ids,
        ]
        assert ours.static_prefix(tokenizer, FIRST) == [FIRST, FIRST + 1, *leading]

    def test_a_new_template_that_says_nothing_comes_after_the_leading_tokens(self, name: str) -> None:
        tokenizer = TOKENIZERS[name]
        leading, _ = around(tokenizer)
        format = PromptFormat("<P*2>{text}", tokenizer=tokenizer)
        assert format.compiled_template == "<|P|><|P|>{text}"
        assert format.static_prefix(tokenizer, FIRST) == [*leading, FIRST, FIRST + 1]

    def test_a_template_that_says_nothing_keeps_the_order_it_was_saved_with(self, name: str) -> None:
        tokenizer = TOKENIZERS[name]
        leading, trailing = around(tokenizer)
        encoded = PromptFormat("<P>{text}", "<|P|>{text}").encode({"text": "two"}, tokenizer, FIRST)
        assert encoded.input_ids[: len(leading) + 1] == [*leading, FIRST]
        assert encoded.input_ids[len(encoded.input_ids) - len(trailing) :] == trailing
        assert encoded.prefix_len == len(leading) + 1

    def test_a_decoder_goes_on_with_the_text(self, name: str) -> None:
        tokenizer = with_end(TOKENIZERS[name])
        _, trailing = around(tokenizer)
        format = PromptFormat("<P>{text}", tokenizer=tokenizer)
        whole = format.encode({"text": "two"}, tokenizer, FIRST).input_ids
        assert (
            format.encode({"text": "two"}, tokenizer, FIRST, is_continued=True).input_ids
            == whole[: len(whole) - len(trailing)]
        )
        for template in (
            "<P>{text}<|trailing|>",
            *(["<P>{text}<eos>"] if trailing == [tokenizer.eos_token_id] else []),
        ):
            said = PromptFormat(template, tokenizer=tokenizer)
            for is_continued in (False, True):
                assert said.encode({"text": "two"}, tokenizer, FIRST, is_continued=is_continued).input_ids == whole

    def test_leading_tokens_that_the_template_holds_are_not_added_again(self, name: str) -> None:
        tokenizer = TOKENIZERS[name]
        leading, _ = around(tokenizer)
        if not leading:
            return
        begin = tokenizer.convert_ids_to_tokens(leading[0])
        expected = [FIRST, *tokenizer("two").input_ids]
        spellings = [begin, "<|leading|>", *(["<bos>"] if tokenizer.bos_token == begin else [])]
        for spelling in spellings:
            format = PromptFormat(f"<P>{spelling}{{text}}", tokenizer=tokenizer)
            assert format.encode({"text": "two"}, tokenizer, FIRST).input_ids == expected
            loaded = PromptFormat(**format.as_dict())
            assert loaded.encode({"text": "two"}, tokenizer, FIRST).input_ids == expected

    @settings(max_examples=30, deadline=None)
    @given(text=st.text(max_size=8))
    def test_plain_requests_are_what_the_tokenizer_reads(self, name: str, text: str) -> None:
        tokenizer = TOKENIZERS[name]
        plain = PromptFormat("{text}", "{text}")
        for value in (text, "two</s> one[SEP]"):
            if tokenizer.is_fast:
                found = plain.encode({"text": value}, tokenizer, reads_control_text=True).input_ids
                assert found == tokenizer(value).input_ids


class TestTemplates:
    TOKENIZER = shared("byte_level_nfc")

    def ids(self, template: str, text: str = "two", tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> list[int]:
        return PromptFormat(template, tokenizer=tokenizer).encode({"text": text}, tokenizer, FIRST).input_ids

    def test_inside_the_text(self) -> None:
        two, q = (self.TOKENIZER(text, add_special_tokens=False).input_ids for text in ("two", "Q:"))
        assert self.ids("{text}<eos>Q:<P><bos>") == [1, *two, 2, *q, FIRST, 1]
        assert self.ids("<P></s>{text}</s>") == [1, FIRST, 2, *two, 2]
        assert self.ids("Q:<P><s>{text}") == [*q, FIRST, 1, *two]
        assert self.ids("<|leading|><P>{text}") == [1, FIRST, *two]

    def test_without_the_tokenizers_own(self) -> None:
        format = PromptFormat("<P><|leading|>{text}", tokenizer=self.TOKENIZER)
        two = self.TOKENIZER("two", add_special_tokens=False).input_ids
        assert format.encode({"text": "two"}, self.TOKENIZER, FIRST, add_special_tokens=False).input_ids == [
            FIRST,
            *two,
        ]

    def test_ends_of_the_tokenizer_stand_around_the_fields_once(self) -> None:
        for template in ("{a}<|leading|>", "<|trailing|>{a}", "<|leading|><P><|leading|>", "{a}<|trailing|>{b}"):
            for read in (PromptFormat, lambda text: PromptFormat("x", text)):
                with pytest.raises(TemplateError, match="appears once in a template"):
                    read(template)

    def test_a_tokenizer_without_the_token(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.bos_token = None
        with pytest.raises(TemplateError, match="no beginning-of-text token"):
            PromptFormat("<P><bos>{text}", tokenizer=tokenizer)
        tokenizer.bos_token = tokenizer.eos_token  # no other special token than before
        ids = self.ids("<P><bos>{text}", "", tokenizer)
        assert ids == [FIRST, tokenizer.eos_token_id]

    def test_a_tokenizer_that_the_template_was_not_compiled_for(self) -> None:
        format = PromptFormat("<P><eos>{text}", tokenizer=shared("byte_level"))
        with pytest.raises(TemplateError, match="</s>, and the tokenizer has no such special token"):
            format.encode({"text": "one"}, shared("wordpiece"), FIRST)

    def test_a_compiled_template_is_taken_at_its_word(self) -> None:
        """Files of before keep their meaning: a token that is in one does not take the place of those added."""
        tokenizer = shared("byte_level_nfc")
        [one] = tokenizer("one", add_special_tokens=False).input_ids
        for compiled, expected in {
            "<|P|>{text}": [1, FIRST, one],
            "<s><|P|>{text}": [1, 1, FIRST, one],
            "<|P|><s>{text}</s>": [1, FIRST, 1, one, 2],
            "<|P|><|leading|>{text}<s>": [FIRST, 1, one, 1],
            "<|P|><bos>{text}": [1, FIRST, *tokenizer("<bos>one", add_special_tokens=False).input_ids],
        }.items():
            format = PromptFormat("<P>{text}", compiled, tokenizer)
            assert format.encode({"text": "one"}, tokenizer, FIRST).input_ids == expected
            assert format.compiled_template == compiled

    @pytest.mark.parametrize(
        ("template", "compiled"),
        [
            ("<P*2><bos>{text}", "<|P|><|P|><|leading|>{text}"),
            ("<P><s>{text}<eos>", "<|P|><|leading|>{text}</s>"),
            ("<bos><P>{text}</s>", "<|leading|><|P|>{text}</s>"),
            ("Q<P>{text}", "Q<|P|>{text}"),
            ("<P><eos>{text}<bos>", "<|P|></s>{text}<s>"),
        ],
    )
    def test_compiled_for_a_tokenizer(self, template: str, compiled: str) -> None:
        tokenizer = shared("byte_level_nfc")
        format = PromptFormat(template, tokenizer=tokenizer)
        assert format.compiled_template == compiled
        stored = PromptFormat(template, compiled, tokenizer)
        fields = {"text": "one </s>"}
        assert stored.encode(fields, tokenizer, FIRST) == format.encode(fields, tokenizer, FIRST)

    def test_an_ordinary_word_as_end_token_stays_a_word(self) -> None:
        """Some use the line break as their end token; it is no control token that fields must not hold."""
        tokenizer = copy.deepcopy(shared("byte_level"))
        plain = tokenizer("one\ntwo").input_ids
        tokenizer._special_tokens_map["eos_token"] = tokenizer.convert_ids_to_tokens(tokenizer("\n").input_ids)[0]
        format = PromptFormat("{text}", tokenizer=tokenizer)
        assert format.encode({"text": "one\ntwo"}, tokenizer).input_ids == plain

    def test_vocabulary_words_that_are_special(self) -> None:
        """A model that looks up whole words finds special tokens by itself."""
        words = {"<unk>": 0, "</s>": 1, "one": 2, "two": 3}
        base = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, unk_token="<unk>", eos_token="</s>")
        assert self.ids("<P>{text}", "one </s> two", tokenizer) == [FIRST, 2, 0, 3]
        assert tokenizer("one </s>").input_ids == [2, 1]

    def test_tokens_that_strip_spaces(self) -> None:
        """A token takes spaces of the template's own text, as the tokenizer reads it, and none of a field or target."""
        tokenizer = copy.deepcopy(shared("byte_level"))
        tokenizer.add_special_tokens({"eos_token": AddedToken("<end>", lstrip=True, rstrip=True, special=True)})
        format = PromptFormat("<P>{text}", tokenizer=tokenizer)
        format.add_tokens(tokenizer)
        example = Text2TextPreprocessor(format, tokenizer, "target")({"text": "one ", "target": "two  "})
        assert example["input_ids"][1:] == [*tokenizer("one two  ").input_ids, tokenizer.eos_token_id]
        said = self.ids("<P>{text}<eos> day", "two  ", tokenizer)
        assert said == [FIRST, *tokenizer("two  ").input_ids, tokenizer.eos_token_id, *tokenizer("day").input_ids]
        format = PromptFormat("<P>a <end>\n{text}<end> day", tokenizer=tokenizer)
        [marker] = format.add_tokens(tokenizer)
        ids = format.encode({"text": "two"}, tokenizer, FIRST).input_ids
        assert [marker if i >= FIRST else i for i in ids] == tokenizer(format(text="two")).input_ids
        beside = PromptFormat("<P><end>{text} day", tokenizer=tokenizer)
        for form, text in ((format, "two "), (format, " two"), (beside, "")):
            with pytest.raises(MarkerInFieldError, match="whitespace"):
                form(text=text)

    def test_split_special_tokens_does_not_split_the_end_label(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        tokenizer.split_special_tokens = True
        format = PromptFormat("<P>{text}", tokenizer=tokenizer)
        format.add_tokens(tokenizer)
        example = Text2TextPreprocessor(format, tokenizer, "target")({"text": "a", "target": "b"})
        assert [label for label in example["labels"] if label != -100] == [*tokenizer("b").input_ids, 2]

    def test_tokens_that_become_special_are_noticed(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        tokenizer.add_tokens(["<sep>"])
        assert self.ids("<P>{text}", "<sep>", tokenizer) == [FIRST, len(tokenizer) - 1]
        tokenizer.add_special_tokens({"sep_token": "<sep>"})
        assert len(tokenizer) - 1 not in self.ids("<P>{text}", "<sep>", tokenizer)


class TestTextForm:
    def test_control_text_in_fields(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = with_text_form("<P>{text}", tokenizer)
        with pytest.raises(MarkerInFieldError, match="special token"):
            format(text="one </s>")
        split = with_text_form("<P>{text}/s>", tokenizer)
        with pytest.raises(MarkerInFieldError, match="together with the template's own text"):
            split(text="one <")
        assert with_text_form("<P>{text}</s>", tokenizer)(text="one") == "<|P|>one</s>"

    def test_names_are_written_as_the_tokenizers_tokens(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        format = PromptFormat("<P><bos>{text}<eos><|trailing|>", tokenizer=tokenizer)
        assert format(text="one") == "<|P|><s>one</s>"
        [marker] = format.add_tokens(tokenizer)
        assert tokenizer(format(text="one")).input_ids[:2] == [marker, 1]
        assert PromptFormat("<P><bos>{text}", format.compiled_template)(text="one") == "<|P|><s>one</s>"

    def test_a_tokenizer_that_reads_no_special_tokens(self) -> None:
        tokenizer = copy.deepcopy(shared("byte_level"))
        tokenizer.split_special_tokens = True
        with pytest.raises(TextFormError, match="split_special_tokens"):
            PromptFormat("<P>{text}<eos>", tokenizer=tokenizer)(text="one")
        format = PromptFormat("<P>{text}", tokenizer=tokenizer)
        [marker] = format.add_tokens(tokenizer)
        ids = format.encode({"text": "one </s>"}, tokenizer, FIRST).input_ids
        assert [marker, *ids[1:]] == tokenizer(format(text="one </s>")).input_ids

    @pytest.mark.parametrize("family", ["byte_level_nfc", "metaspace_first", "wordpiece"])
    def test_rows_before_the_leading_tokens_have_none(self, family: str) -> None:
        tokenizer = copy.deepcopy(shared(family))
        with pytest.raises(TextFormError, match=r"prompt\.tokenize"):
            PromptFormat("<P><|leading|>{text}", tokenizer=tokenizer)(text="one")


class TestPrompts:
    @pytest.fixture
    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = tiny_tokenizer()
        tokenizer.add_bos_token = True
        return tokenizer

    def test_saved_and_loaded(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = Prompt(PromptFormat("<P*2><|leading|>{text}<eos>x"), TensorPromptProvider())
        prompt.initialize(tiny_model(), tokenizer)
        expected = prompt.format.encode({"text": "two"}, tokenizer, FIRST)
        prompt.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "prompt.json").read_text())["format"]["compiled_template"]
        assert stored == "<|P|><|P|><|leading|>{text}" + tokenizer.eos_token + "x"
        loaded = Prompt.from_pretrained(tmp_path)
        assert loaded.format.encode({"text": "two"}, tokenizer, FIRST) == expected
        prompts = MultiPrompt({"it": tmp_path})
        assert prompts.formats["it"].encode({"text": "two"}, tokenizer, FIRST) == expected

    def test_a_file_without_a_compiled_template(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = Prompt(PromptFormat("<P*2><bos>{text}"), TensorPromptProvider())
        prompt.initialize(tiny_model(), tokenizer)
        prompt.save_pretrained(tmp_path)
        content = json.loads((tmp_path / "prompt.json").read_text())
        del content["format"]["compiled_template"]
        (tmp_path / "prompt.json").write_text(json.dumps(content))
        with pytest.raises(PromptFileError, match="<bos>"):
            Prompt.from_pretrained(tmp_path)
        content["format"]["template"] = "<P*2><|leading|>{text}"
        (tmp_path / "prompt.json").write_text(json.dumps(content))
        ids = Prompt.from_pretrained(tmp_path).format.encode({"text": ""}, tokenizer, FIRST).input_ids
        assert ids == [FIRST, FIRST + 1, tokenizer.bos_token_id]

    def test_tokenize_for_a_patched_model(self, tokenizer: PreTrainedTokenizerFast) -> None:
        model = tiny_model()
        prompt = Prompt(PromptFormat("<P*2><|leading|>{text}"), TensorPromptProvider())
        with pytest.raises(NotInitializedError, match="patch"):
            prompt.tokenize("two")
        prompt.patch(model, tokenizer)
        encoded = prompt.tokenize("two <|P|>")
        [marker] = prompt.format.prompt_token_ids
        ids = encoded["input_ids"][0].tolist()
        assert ids[:3] == [marker, marker, tokenizer.bos_token_id]
        assert ids.count(marker) == 2
        table = torch.cat([prompt.rows(), model.get_input_embeddings().original.weight[ids[2:]]])
        assert torch.equal(model.get_input_embeddings()(encoded["input_ids"])[0], table)
        prompt.detach()
        prompts = MultiPrompt({"it": prompt})
        prompts.patch(model, tokenizer)
        again = prompts.tokenize("it", "two <|P|>")["input_ids"][0].tolist()
        assert again[2:] == ids[2:]

    def test_a_prompt_without_fields_stands_before_the_text(self, tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = Prompt(PromptFormat("<P*2><|leading|>"), TensorPromptProvider())
        prompt.patch(tiny_model(), tokenizer)
        alone, followed = (prompt.tokenize(*text)["input_ids"][0].tolist() for text in ((), ("two",)))
        assert followed == [*alone, *tokenizer("two", add_special_tokens=False).input_ids]
        assert alone[2:] == [tokenizer.bos_token_id]
