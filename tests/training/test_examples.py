"""From rows to examples: which ids, and which of them are to be generated."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from tiny_models import CONTEXT, tiny_model, tiny_tokenizer
from tokenizers import processors
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from ruprompt_fast import PromptFormat
from ruprompt_fast.errors import ContextLengthError, FieldTypeError, LabelError, MissingFieldError, TaskError
from ruprompt_fast.prompts.format.preprocessing import IGNORED_LABEL
from ruprompt_fast.training.examples import Example, ExampleEncoder
from ruprompt_fast.training.task import Task

TOKENIZER = tiny_tokenizer()
FIRST_ROW = 100
EOS = TOKENIZER.eos_token_id
CONFIG = tiny_model("gpt2").config


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def plain(text: str) -> list[int]:
    """The ids of a text's characters, none of them as part of a special token."""
    return [token for character in text for token in ids(character)]


def rows(*indices: int) -> list[int]:
    return [FIRST_ROW + index for index in indices]


def encode(task: Task, *data: dict[str, Any], config: PretrainedConfig = CONFIG, **settings: int) -> list[Example]:
    format = PromptFormat(task.template, tokenizer=TOKENIZER)
    return ExampleEncoder(task, format, TOKENIZER, model_config=config, first_row_id=FIRST_ROW, **settings).encode(data)


def labels_of(example: Example) -> list[int]:
    return [label for label in example["labels"] if label != IGNORED_LABEL]


def test_text2text_labels_the_target_and_the_end() -> None:
    [example] = encode(Task("<P*2>{text}<P>", target=" {out}"), {"text": "аб", "out": "вг"})
    assert example["input_ids"] == [*rows(0, 1), *ids("аб"), *rows(2), *ids(" вг"), EOS]
    assert example["prefix_len"] == 2
    assert example["labels"] == [IGNORED_LABEL] * 5 + [*ids(" вг"), EOS]


def test_style_labels_the_fields_and_no_rows() -> None:
    task = Task("да <P*2>x{text}<P>", "style", target="{out}")
    [example] = encode(task, {"text": "аб", "out": "вг"})
    assert example["input_ids"] == [*ids("да "), *rows(0, 1), *ids("xаб"), *rows(2), *ids("вг"), EOS]
    assert example["prefix_len"] == 5
    assert labels_of(example) == [*ids("абвг"), EOS]
    assert example["labels"][6:8] == ids("аб")


def test_a_deep_prompt_generates_a_whole_target_after_an_empty_text() -> None:
    """It is served with a beginning-of-text token then, which gives the target's first token."""
    task = Task("<P*2>{text}", target="{out}")
    [example] = encode(task, {"text": "", "out": "вг"}, num_deep_rows=2)
    assert example["input_ids"] == [TOKENIZER.bos_token_id, *ids("вг"), EOS]
    assert example["labels"] == [IGNORED_LABEL, *ids("вг"), EOS]
    with pytest.raises(ContextLengthError):
        encode(Task("<P*2>{text}", target="{out}", max_tokens=5), {"text": "", "out": "вг"}, num_deep_rows=2)


def test_style_without_fields_has_the_text_as_target() -> None:
    [example] = encode(Task("<s><P*2>", "style"), {"text": "аб"})
    assert example["input_ids"] == [*ids("<s>"), *rows(0, 1), *ids("аб"), EOS]
    assert (example["prefix_len"], labels_of(example)) == (3, [*ids("аб"), EOS])


def test_classification_has_candidates() -> None:
    task = Task("<P>{text}<P>", "classification", label_field="k", labels={"a": "да", "b": "нет"})
    examples = encode(task, {"text": "аб", "k": "b"}, {"text": "", "k": "a"})
    assert examples[0]["input_ids"] == [*rows(0), *ids("аб"), *rows(1)]
    assert [example["candidates"] for example in examples] == [[ids("да"), ids("нет")]] * 2
    assert [example["gold"] for example in examples] == [1, 0]


def test_deep_rows_are_not_among_the_ids() -> None:
    [example] = encode(Task("<P*4><s>{text}", target="{out}"), {"text": "аб", "out": "в"}, num_deep_rows=4)
    assert example["input_ids"] == [*ids("<s>абв"), EOS]
    assert example["prefix_len"] == 0


def test_encoder_decoders_have_the_target_in_the_decoder() -> None:
    config = tiny_model("t5").config
    [example] = encode(Task("<P>{text}", target="{out}"), {"text": "аб", "out": "вг"}, config=config)
    assert example["input_ids"] == [*rows(0), *ids("аб")]
    assert example["labels"] == [*ids("вг"), EOS]
    with pytest.raises(TaskError, match="encoder-decoder"):
        encode(Task("<P>{text}", "style"), config=config)


def test_long_fields_are_cut_where_asked() -> None:
    task = Task("<P*2>{text}<P>", target="{out}", max_tokens=9, truncation_field="text")
    [example] = encode(task, {"text": "абвгдежз", "out": "ы"})
    assert example["input_ids"] == [*rows(0, 1), *ids("абвг"), *rows(2), *ids("ы"), EOS]
    assert labels_of(example) == [*ids("ы"), EOS]


def test_the_last_token_of_a_label_word_needs_no_position() -> None:
    task = Task("<P>{text}", "classification", label_field="k", labels={"a": "да", "b": "н"}, max_tokens=5)
    assert encode(task, {"text": "абв", "k": "a"})
    with pytest.raises(ContextLengthError, match="row 0"):
        encode(task, {"text": "абвг", "k": "a"})


def test_errors_name_the_row() -> None:
    task = Task("<P>{text}", target="{out}")
    good = {"text": "а", "out": "б"}
    with pytest.raises(MissingFieldError, match="row 1: the column 'out'"):
        encode(task, good, {"text": "а"})
    with pytest.raises(FieldTypeError, match="row 2"):
        encode(task, good, good, {"text": 5, "out": "б"})
    with pytest.raises(ContextLengthError, match="row 1: .*truncation_field"):
        encode(task, good, {"text": "а" * CONTEXT, "out": "б"})
    labelled = Task("<P>{text}", "classification", label_field="k", labels={"a": "да", "b": "нет"})
    with pytest.raises(LabelError, match="row 0"):
        encode(labelled, {"text": "а", "k": "c"})


def test_label_words_must_differ_in_their_first_token() -> None:
    task = Task("<P>{text}", "classification", label_field="k", labels={"a": "да", "b": "дно"})
    with pytest.raises(LabelError, match="begin with the same token, 'д'"):
        encode(task)


def test_a_task_of_another_prompt() -> None:
    format = PromptFormat("<P>{body}", tokenizer=TOKENIZER)
    with pytest.raises(TaskError, match="the prompt's own template"):
        ExampleEncoder(
            Task("<P>{text}", target="{out}"), format, TOKENIZER, model_config=CONFIG, first_row_id=FIRST_ROW
        )


class _Languages(PreTrainedTokenizerFast):
    """Texts to generate hold the token of their language: in front as NLLB's, or after the end token as mBART's."""

    target = "<pad> $A </s>"

    def _switch_to_input_mode(self) -> None:
        self._put_around("<s> $A </s>")

    def _switch_to_target_mode(self) -> None:
        self._put_around(self.target)

    def _put_around(self, single: str) -> None:
        ids = [(name, self.convert_tokens_to_ids(name)) for name in ("<pad>", "<s>", "</s>")]
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=ids)


def with_special_tokens(leading: str, trailing: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    single = " ".join(part for part in (leading, "$A", trailing) if part)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=ids)
    return tokenizer


class TestSpecialTokens:
    """Data never gives a special token, and an example begins with the ids that a request has when it is served."""

    DATA: ClassVar[dict[str, str]] = {"text": "а</s>", "out": "б</s><s>в"}

    def encode(
        self, task: Task, tokenizer: PreTrainedTokenizerFast, family: str = "gpt2", row: dict[str, str] = DATA
    ) -> tuple[Example, PromptFormat]:
        format = PromptFormat(task.template, tokenizer=tokenizer)
        config = tiny_model(family).config
        encoder = ExampleEncoder(task, format, tokenizer, model_config=config, first_row_id=FIRST_ROW)
        return encoder.encode([row])[0], format

    @pytest.mark.parametrize("leading", ["", "<s>"])
    @pytest.mark.parametrize("trailing", ["", "</s>"])
    @pytest.mark.parametrize("template", ["<P*2>{text}", "<P*2>{text}<eos>", "<P>{text}<|trailing|><P>"])
    @pytest.mark.parametrize("objective", ["text2text", "style"])
    def test_decoders(self, objective: Any, template: str, leading: str, trailing: str) -> None:
        tokenizer = with_special_tokens(leading, trailing)
        example, format = self.encode(Task(template, objective, target="{out}"), tokenizer)
        served = format.encode(self.DATA, tokenizer, FIRST_ROW, is_continued=True)
        target = [*plain("б</s><s>в"), EOS]
        assert example["input_ids"] == [*served.input_ids, *target]
        assert example["prefix_len"] == served.prefix_len
        assert labels_of(example)[-len(target) :] == target

    @pytest.mark.parametrize("trailing", ["", "</s>"])
    def test_classification(self, trailing: str) -> None:
        tokenizer = with_special_tokens("<s>", trailing)
        task = Task("<P*2><|leading|>{text}", "classification", label_field="out", labels={"x": "да", "y": "нет"})
        example, format = self.encode(task, tokenizer, row={"text": "а</s>", "out": "x"})
        served = format.encode(self.DATA, tokenizer, FIRST_ROW, is_continued=True)
        assert example["input_ids"] == served.input_ids == [*rows(0, 1), 1, *plain("а</s>")]

    @pytest.mark.parametrize(
        ("leading", "trailing", "expected"), [("", "", [2]), ("", "</s>", [2]), ("<s>", "</s>", [2]), ("<s>", "", [2])]
    )
    def test_encoder_decoders(self, leading: str, trailing: str, expected: list[int]) -> None:
        tokenizer = with_special_tokens(leading, trailing)
        example, format = self.encode(Task("<P*2>{text}", target="{out}"), tokenizer, "t5")
        assert example["input_ids"] == format.encode(self.DATA, tokenizer, FIRST_ROW).input_ids
        target = [*plain("б</s><s>в")]
        assert example["labels"] == [*([1] if leading else []), *target, *expected]

    @pytest.mark.parametrize(("target", "expected"), [("<pad> $A </s>", [0, "", 2]), ("$A </s> <pad>", ["", 2, 0])])
    def test_target_language(self, target: str, expected: list[Any]) -> None:
        tokenizer = _Languages(
            tokenizer_object=tiny_tokenizer().backend_tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
        )
        tokenizer.target = target
        tokenizer._switch_to_input_mode()
        example, _ = self.encode(
            Task("<P><|leading|>{text}", target="{out}"), tokenizer, "t5", {"text": "а", "out": "б</s>"}
        )
        assert example["input_ids"] == [*rows(0), 1, *ids("а"), 2]
        start = expected.index("")
        assert example["labels"] == [*expected[:start], *plain("б</s>"), *expected[start + 1 :]]

    @pytest.mark.parametrize("target", ["{out}</s>", "<s> {out}"])
    def test_a_target_spells_no_special_token(self, target: str) -> None:
        """It would be trained as the characters of the token's name."""
        task = Task("<P>{text}", target=target)
        for family in ("gpt2", "t5"):
            with pytest.raises(TaskError, match="a target is data, and the end-of-text token is added"):
                self.encode(task, with_special_tokens("", "</s>"), family)

    def test_the_end_label_is_one_token(self) -> None:
        tokenizer = with_special_tokens("", "")
        tokenizer.split_special_tokens = True
        for family in ("gpt2", "t5"):
            example, _ = self.encode(Task("<P>{text}", target="{out}"), tokenizer, family, {"text": "а", "out": "б "})
            assert labels_of(example) == [*ids("б "), EOS]
