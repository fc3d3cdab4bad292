"""What a ruPrompts program relies on, under ruPrompts' module names."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prompts.tiny import EOS, WIDTH
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ruprompt_fast import MultiPrompt as TopMultiPrompt
from ruprompt_fast import Prompt as TopPrompt
from ruprompt_fast import PromptFormat as TopFormat
from ruprompt_fast import TensorPromptProvider as TopProvider
from ruprompt_fast.preprocessing import BasePreprocessor, Text2TextPreprocessor
from ruprompt_fast.prompt import (
    PROMPT_FILE_NAME,
    PROMPT_PROVIDER_FILE_NAME,
    MultiPrompt,
    Prompt,
    PromptConfig,
    PromptContext,
)
from ruprompt_fast.prompt_format import (
    PROMPT_TOKEN,
    PROMPT_TOKEN_FOR_KEY,
    PROMPT_TOKEN_SHORT,
    BasePromptFormat,
    PromptFormat,
    _FormatStringWithRanges,
)
from ruprompt_fast.prompt_provider import BasePromptProvider, LSTMPromptProvider, TensorPromptProvider

Tokenizer = PreTrainedTokenizerFast


def test_names() -> None:
    assert (TopPrompt, TopMultiPrompt, TopFormat, TopProvider) == (
        Prompt,
        MultiPrompt,
        PromptFormat,
        TensorPromptProvider,
    )
    assert (PROMPT_FILE_NAME, PROMPT_PROVIDER_FILE_NAME) == ("prompt.json", "prompt_provider.bin")
    assert (PROMPT_TOKEN, PROMPT_TOKEN_FOR_KEY, PROMPT_TOKEN_SHORT) == ("<|P|>", "<|[{key}]P|>", "<P>")
    assert issubclass(PromptFormat, BasePromptFormat)
    assert issubclass(LSTMPromptProvider, BasePromptProvider)
    assert issubclass(Text2TextPreprocessor, BasePreprocessor)
    assert not PromptContext().is_attached
    assert PromptConfig().as_dict()["is_safe"] is False


class TestFormatStringWithRanges:
    names = st.text(string.ascii_letters + "_", min_size=1, max_size=20)
    texts = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=50)

    @given(values=st.dictionaries(names, texts, max_size=5), data=st.data())
    def test_agrees_with_str_format(self, values: dict[str, str], data: st.DataObject) -> None:
        pieces = [data.draw(self.texts) + "{" + name + "}" for name in values]
        template = "".join(pieces) + data.draw(self.texts)
        text, ranges = _FormatStringWithRanges(template).format(values)
        assert text == template.format(**values)
        assert {name: text[place] for name, place in ranges.items()} == values

    def test_missing_value(self) -> None:
        for item in ({}, {"a": None}):
            with pytest.raises(KeyError):
                _FormatStringWithRanges("{a}").format(item)


class TestFormat:
    def test_positions_of_initialized_rows(self, tokenizer: Tokenizer) -> None:
        format = PromptFormat("<P><P*3><P><P>www</P></P>text</P>")
        format.initialize(tokenizer)
        rows = len(tokenizer("www").input_ids)
        assert format.compiled_template == "<|P|>" * (5 + rows) + "</P>text</P>"
        assert sorted(format.init_tokens or ()) == list(range(5, 5 + rows))

    def test_key_changes_every_marker(self, tokenizer: Tokenizer) -> None:
        format = PromptFormat("<P*3>{a}")
        format.initialize(tokenizer)
        for key, marker in (("one", "<|[one]P|>"), (None, "<|P|>")):
            format.set_key(key)
            assert format(a="a") == marker * 3 + "a"
            assert format.prompt_length == 3

    def test_reloaded_format_gives_ranges(self, tokenizer: Tokenizer) -> None:
        """ruPrompts fails here."""
        format = PromptFormat("<P>{a}<P>{b}")
        format.initialize(tokenizer)
        loaded = PromptFormat(**format.as_dict())
        assert loaded(a="x", b="y", return_ranges=True) == format(a="x", b="y", return_ranges=True)


@pytest.mark.parametrize("cls", [TensorPromptProvider, LSTMPromptProvider])
class TestProviders:
    @pytest.mark.parametrize("init_tokens", [{}, {0: 1, 1: 1, 2: 1, 8: 8, 9: 9}])
    @pytest.mark.parametrize("rows", [0, 1, 10, 100])
    def test_initialize_and_save(
        self,
        cls: type[BasePromptProvider],
        model: GPT2LMHeadModel,
        tmp_path: Path,
        rows: int,
        init_tokens: dict[int, int],
    ) -> None:
        provider = cls()
        embedding = model.get_input_embeddings()
        arguments = {"embedding_dim": WIDTH, "embedding": embedding, "init_tokens": init_tokens if rows > 9 else {}}
        expected: type[Exception] | None = None
        if rows == 0 or (cls is LSTMPromptProvider and arguments["init_tokens"]):
            expected = ValueError
        elif cls is TensorPromptProvider and rows > embedding.num_embeddings:
            expected = UserWarning
        if expected is not None:
            with pytest.raises(expected):
                provider.initialize(prompt_length=rows, **arguments)
            return
        provider.initialize(prompt_length=rows, **arguments)
        assert provider().shape == (rows, WIDTH)
        provider.save_pretrained(tmp_path / "provider.bin")
        loaded = TensorPromptProvider.from_pretrained(torch.load(tmp_path / "provider.bin"))
        assert torch.equal(loaded(), provider())

    def test_unknown_argument_types(self, cls: type[BasePromptProvider]) -> None:
        with pytest.raises(TypeError):
            cls("something else")


class TestPrompts:
    def test_a_life(self, model: GPT2LMHeadModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
        prompt = Prompt(format=PromptFormat(template="<P>{text}<P>"), provider=TensorPromptProvider())
        for too_early in (
            lambda: prompt.attach(model, tokenizer),
            lambda: prompt.save_pretrained(tmp_path),
            prompt.as_dict,
        ):
            with pytest.raises(UserWarning):
                too_early()
        prompt.initialize(model, tokenizer)
        assert prompt.is_initialized == True  # noqa: E712 (a plain bool, as programs compare it)
        assert prompt.config.prompt_length == 2
        assert prompt.config.pretrained_model_name is not None
        prompt.attach(model, tokenizer)
        assert prompt.is_attached == True  # noqa: E712
        model(**tokenizer(prompt(text="text"), return_tensors="pt"))
        prompt.save_pretrained(tmp_path, save_bin=True)
        loaded = Prompt.from_pretrained(tmp_path)
        assert loaded.format.as_dict() == prompt.format.as_dict()
        for left, right in zip(loaded.provider.parameters(), prompt.provider.parameters(), strict=True):
            assert torch.equal(left, right)

    def test_several(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        def make(template: str) -> Prompt:
            return Prompt(format=PromptFormat(template=template), provider=TensorPromptProvider())

        prompts = MultiPrompt({"one": make("<P>{text}<P>")})
        with pytest.raises(UserWarning):
            prompts.attach(model, tokenizer)
        prompts.initialize(model, tokenizer)
        prompts.add_prompt(key="two", prompt=make("<P><P>{text}<P>"))
        with pytest.raises(UserWarning):
            prompts.add_prompt(key="one", prompt=make("<P>"))
        prompts.patch(model, tokenizer)
        with pytest.raises(UserWarning):
            prompts.attach(model, tokenizer)
        lengths = [
            model(**tokenizer(prompts(key=key, text="text"), return_tensors="pt")).logits.shape[1]
            for key in ("one", "two")
        ]
        assert lengths[1] == lengths[0] + 1


class TestPreprocessing:
    @pytest.fixture
    def format(self, tokenizer: Tokenizer) -> PromptFormat:
        format = PromptFormat("<P>{text}<P>")
        format.initialize(tokenizer)
        format.add_tokens(tokenizer)
        return format

    def test_ids(self, format: PromptFormat, tokenizer: Tokenizer) -> None:
        preprocess = Text2TextPreprocessor(prompt_format=format, tokenizer=tokenizer, target_field="target")
        encoding = preprocess({"text": "one", "target": "two"})
        assert encoding["input_ids"] == tokenizer(f"<|P|>one<|P|>two{EOS}")["input_ids"]
        assert encoding["labels"][-3:] == tokenizer(f"two{EOS}")["input_ids"]

    @pytest.mark.parametrize("target", ["", "ooo"])
    def test_truncation(self, format: PromptFormat, tokenizer: Tokenizer, target: str) -> None:
        preprocess = Text2TextPreprocessor(
            prompt_format=format,
            tokenizer=tokenizer,
            target_field="target",
            max_tokens=20,
            truncation_field="text",
        )
        encoding = preprocess({"text": "w" * 100, "target": target})
        labels = tokenizer(target + EOS)["input_ids"]
        [marker] = format.prompt_token_ids
        assert len(encoding["input_ids"]) == 20
        assert encoding["input_ids"][0] == encoding["input_ids"][-len(labels) - 1] == marker
        assert encoding["labels"] == [-100] * (20 - len(labels)) + labels
