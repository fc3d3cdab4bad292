"""Training examples: their ids are the tokenizer's own, their labels the target's, and truncation keeps its word."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prompts.families import BUILDERS, shared, with_text_form
from prompts.tiny import EOS, tiny_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ruprompt_fast.errors import (
    BatchMismatchError,
    ContextLengthError,
    FieldTypeError,
    MissingFieldError,
    NotInitializedError,
    UnsupportedModelError,
)
from ruprompt_fast.prompts import PromptFormat, Text2TextPreprocessor

FAMILIES = [name for name in BUILDERS if name != "prepending_normalizer"]
WORDS = ["", " ", "\n", "солнце", " день", "the answer", "two", "…", "🙂"]
texts = st.lists(st.sampled_from(WORDS), max_size=5).map("".join)
# Special tokens that the tokenizer puts after every text; a decoder goes on with the text, so it reads none of them.
NUM_TRAILING = {"metaspace_always": 1, "unigram": 1, "wordpiece": 1, "python_bytes": 1}
TEMPLATES = ("<P*2>{text}<P>", "<P>Q: {text} A:<P>", "<P>{text} A: ", "{other} <P*3>x{text}")


def ready(template: str, family: str) -> tuple[PromptFormat, PreTrainedTokenizerBase]:
    tokenizer = copy.deepcopy(shared(family))
    if tokenizer.eos_token is None:
        tokenizer.eos_token = "[SEP]"
    format = with_text_form(template, tokenizer)
    format.add_tokens(tokenizer)
    return format, tokenizer


READY = {(family, template): ready(template, family) for family in FAMILIES for template in TEMPLATES}


def labelled(example: dict[str, list[int]]) -> list[int]:
    return [label for label in example["labels"] if label != -100]


@pytest.fixture
def format(tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    format = PromptFormat("<P*2>{text}<P>", tokenizer=tokenizer)
    format.add_tokens(tokenizer)
    return format


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("family", FAMILIES)
class TestAllFamilies:
    @settings(max_examples=40, deadline=None)
    @given(template=st.sampled_from(TEMPLATES), text=texts, other=texts, target=texts)
    def test_ids_and_labels(self, family: str, template: str, text: str, other: str, target: str) -> None:
        format, tokenizer = READY[family, template]
        item = {"text": text, "other": other, "target": target}
        example = Text2TextPreprocessor(format, tokenizer, "target")(item)
        around = tokenizer(format(item) + target).input_ids
        without = tokenizer(format(item) + target, add_special_tokens=False).input_ids
        leading = around[: len(around) - len(without) - NUM_TRAILING.get(family, 0)]
        assert example["input_ids"] == [*leading, *without, tokenizer.eos_token_id]
        assert example["attention_mask"] == [1] * len(example["input_ids"])
        labels = example["labels"]
        assert len(labels) == len(example["input_ids"])
        found = labelled(example)
        assert found[-1] == tokenizer.eos_token_id
        start = labels.index(found[0])
        assert labels[start : start + len(found)] == found == example["input_ids"][start : start + len(found)]
        if not target:
            assert found == [tokenizer.eos_token_id]
        if template.endswith("<P>"):
            # After a row the target's tokens are its own.
            row = max(i for i, token in enumerate(example["input_ids"]) if token == format.prompt_token_ids[0])
            assert start == row + 1

    @settings(max_examples=40, deadline=None)
    @given(template=st.sampled_from(TEMPLATES), text=texts, target=texts, excess=st.integers(1, 12))
    def test_truncation(self, family: str, template: str, text: str, target: str, excess: int) -> None:
        format, tokenizer = READY[family, template]
        item = {"text": text, "other": "one", "target": target}
        whole = Text2TextPreprocessor(format, tokenizer, "target")(item)
        limit = len(whole["input_ids"]) - excess
        assume(limit > 0)
        preprocess = Text2TextPreprocessor(format, tokenizer, "target", max_tokens=limit, truncation_field="text")
        encoded = format.encode(item, tokenizer)
        length = len(encoded.input_ids[encoded.field_ranges["text"]])
        if template == "<P*2>{text}<P>" and length < excess:
            with pytest.raises(ContextLengthError):
                preprocess(item)
            return
        try:
            cut = preprocess(item)
        except ContextLengthError:
            # Beside literal text or the target a field may share all of its tokens (a WordPiece word that is one
            # unknown token), and those are not cut.
            assert template != "<P*2>{text}<P>"
            return
        assert len(cut["input_ids"]) == len(cut["labels"]) == len(cut["attention_mask"]) == limit
        assert labelled(cut) == labelled(whole)
        assert cut["input_ids"].count(format.prompt_token_ids[0]) == format.prompt_length
        assert any(
            cut["input_ids"] == whole["input_ids"][:i] + whole["input_ids"][i + excess :] for i in range(limit + 1)
        )


class TestExamples:
    def test_by_hand(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        [marker] = format.prompt_token_ids
        example = Text2TextPreprocessor(format, tokenizer, "target")({"text": "two", "target": "on"})
        tw, o, on = tokenizer.convert_tokens_to_ids(["tw", "o", "on"])
        assert example == {
            "input_ids": [marker, marker, tw, o, marker, on, tokenizer.eos_token_id],
            "attention_mask": [1] * 7,
            "labels": [-100] * 5 + [on, tokenizer.eos_token_id],
        }

    def test_border_inside_a_token(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """A template that ends in a space: the model predicts it together with the word."""
        format = PromptFormat("<P>{text} ", tokenizer=tokenizer)
        format.add_tokens(tokenizer)
        example = Text2TextPreprocessor(format, tokenizer, "target")({"text": "a", "target": "o"})
        assert tokenizer.convert_ids_to_tokens(labelled(example)) == ["Ġo", EOS]

    def test_the_target_may_be_a_field(self, tokenizer: PreTrainedTokenizerFast) -> None:
        format = PromptFormat("<P>{text}", tokenizer=tokenizer)
        format.add_tokens(tokenizer)
        example = Text2TextPreprocessor(format, tokenizer, "text")({"text": "on"})
        assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == ["<|P|>", "on", "on", EOS]
        assert len(labelled(example)) == 2

    def test_markers_in_data_are_text(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        item = {"text": "<|P|>{x}", "target": "<|P|>"}
        example = Text2TextPreprocessor(format, tokenizer, "target")(item)
        assert example["input_ids"].count(format.prompt_token_ids[0]) == 3

    def test_the_end_comes_once(self) -> None:
        """The tokenizer itself puts an end token after every text."""
        format, tokenizer = READY["unigram", "<P*2>{text}<P>"]
        example = Text2TextPreprocessor(format, tokenizer, "target")({"text": "two", "target": ""})
        assert example["input_ids"].count(tokenizer.eos_token_id) == 1
        assert example["labels"][-2:] == [-100, tokenizer.eos_token_id]

    def test_token_types(self) -> None:
        format, tokenizer = ready("<P>{text}", "wordpiece")
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        example = Text2TextPreprocessor(format, tokenizer, "target")({"text": "two", "target": "one"})
        assert example["token_type_ids"] == [0] * len(example["input_ids"])


class TestTruncation:
    def test_end_of_the_field_is_cut(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        preprocess = Text2TextPreprocessor(format, tokenizer, "target", max_tokens=8, truncation_field="text")
        example = preprocess({"text": "abcd" * 20, "target": "on"})
        [marker] = format.prompt_token_ids
        kept = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
        on = tokenizer.convert_tokens_to_ids("on")
        assert example["input_ids"] == [marker, marker, *kept, marker, on, tokenizer.eos_token_id]
        assert labelled(example) == [on, tokenizer.eos_token_id]

    def test_exactly_at_the_limit(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        item = {"text": "abcd", "target": "on"}
        whole = Text2TextPreprocessor(format, tokenizer, "target")(item)
        preprocess = Text2TextPreprocessor(format, tokenizer, "target", max_tokens=9, truncation_field="text")
        assert preprocess(item) == whole
        preprocess.max_tokens = 5
        assert len(preprocess(item)["input_ids"]) == 5
        preprocess.max_tokens = 4
        with pytest.raises(ContextLengthError, match="5 more than max_tokens=4 .*'text' has only 4"):
            preprocess(item)

    def test_nothing_to_cut(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        preprocess = Text2TextPreprocessor(format, tokenizer, "target", max_tokens=5)
        assert not preprocess.is_truncation_enabled
        assert len(preprocess({"text": "a", "target": ""})["input_ids"]) == 5
        with pytest.raises(ContextLengthError, match="truncation_field"):
            preprocess({"text": "ab", "target": ""})

    def test_unknown_field(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        preprocess = Text2TextPreprocessor(format, tokenizer, "target", 20, truncation_field="summary")
        with pytest.raises(MissingFieldError, match=r"one of \['text'\]; found 'summary'"):
            preprocess({"text": "a", "target": "b"})


class TestContainers:
    ITEMS = ({"text": "two", "target": "on", "id": 1}, {"text": "a", "target": "", "id": 2})

    @pytest.fixture
    def preprocess(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> Text2TextPreprocessor:
        return Text2TextPreprocessor(format, tokenizer, "target")

    def test_list_and_batch(self, preprocess: Text2TextPreprocessor) -> None:
        single = [preprocess(item) for item in self.ITEMS]
        assert preprocess(list(self.ITEMS)) == single
        batch = {name: [item[name] for item in self.ITEMS] for name in ("text", "target", "id")}
        columns = {name: [example[name] for example in single] for name in single[0]}
        assert preprocess(batch) == preprocess.batch_process(batch) == columns
        assert preprocess.process(self.ITEMS[0]) == single[0]
        assert preprocess([]) == []
        assert preprocess({"text": [], "target": []}) == {"input_ids": [], "attention_mask": [], "labels": []}

    @pytest.mark.parametrize("batched", [False, True])
    def test_datasets(self, preprocess: Text2TextPreprocessor, batched: bool, tmp_path: Any) -> None:
        data = Dataset.from_list(list(self.ITEMS))
        mapped = data.map(preprocess, batched=batched, cache_file_name=str(tmp_path / "cache.arrow"))
        for row, item in zip(mapped, self.ITEMS, strict=True):
            expected = preprocess(item)
            assert {name: row[name] for name in expected} == expected

    def test_collate(self, preprocess: Text2TextPreprocessor, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.pad_token = tokenizer.eos_token
        batch = preprocess.collate_fn(pad_to_multiple_of=8)(preprocess(list(self.ITEMS)))
        assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
            "input_ids": (2, 8),
            "attention_mask": (2, 8),
            "labels": (2, 8),
        }
        assert batch["labels"][1, -1] == -100
        assert batch["attention_mask"].sum() == 7 + 5
        assert batch["input_ids"].dtype == torch.long

    def test_lengths_of_columns(self, preprocess: Text2TextPreprocessor) -> None:
        with pytest.raises(BatchMismatchError, match="'text': 2"):
            preprocess({"text": ["a", "b"], "target": ["c"]})


class TestRefusals:
    def test_missing_and_wrong_values(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        preprocess = Text2TextPreprocessor(format, tokenizer, "target")
        for item in ({"target": "a"}, {"text": "a"}, {"text": "a", "target": None}):
            with pytest.raises(MissingFieldError):
                preprocess(item)
        for item in ({"text": 3, "target": "a"}, {"text": "a", "target": 3}):
            with pytest.raises(FieldTypeError):
                preprocess(item)

    def test_not_ready(self) -> None:
        tokenizer = tiny_tokenizer()
        format = PromptFormat("<P>{text}")
        with pytest.raises(NotInitializedError, match="initialize"):
            Text2TextPreprocessor(format, tokenizer, "target")({"text": "a", "target": "b"})
        format.initialize(tokenizer)
        with pytest.raises(NotInitializedError, match="does not know the marker"):
            Text2TextPreprocessor(format, tokenizer, "target")({"text": "a", "target": "b"})

    def test_no_end_token(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.eos_token = None
        with pytest.raises(UnsupportedModelError, match="eos_token"):
            Text2TextPreprocessor(format, tokenizer, "target")({"text": "a", "target": "b"})
