"""Rows that are initialized from text take the tokens that the text would have in their place."""

from __future__ import annotations

import pytest
import torch
from prompts.families import BUILDERS, shared
from torch import nn

from ruprompt_fast import PromptFormat, TensorPromptProvider

BYTE_LEVEL = ["byte_level", "byte_level_nfc", "python_bytes"]


def init_tokens(template: str, family: str) -> list[int]:
    format = PromptFormat(template, tokenizer=shared(family))
    return list((format.init_tokens or {}).values())


def alone(text: str, family: str) -> list[int]:
    return shared(family)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", BUILDERS)
def test_a_text_that_begins_the_template_stands_alone(family: str) -> None:
    for template in ("<P>one two</P>{text}", "<P*3><P>one two</P>{text}"):
        assert init_tokens(template, family) == alone("one two", family)


@pytest.mark.parametrize("family", BYTE_LEVEL)
@pytest.mark.parametrize("text", ["one two", " answer", "\nанswer:", ".", " — да"])
def test_byte_level_tokenizers_read_a_text_the_same_everywhere(family: str, text: str) -> None:
    for template in (f"<P>{text}</P>", f"{{text}}<P>{text}</P>", f"{{text}} question: <P>{text}</P><P*2>"):
        assert init_tokens(template, family) == alone(text, family)


SENTENCEPIECE = ["metaspace_first", "prepending_normalizer"]


def spelled(ids: list[int], family: str) -> str:
    return "".join(shared(family).convert_ids_to_tokens(ids))


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_a_text_after_others_has_no_word_boundary_of_its_own(family: str) -> None:
    for before in ("{text}", "{text} question"):
        assert spelled(init_tokens(f"{before}<P> answer</P>", family), family) == "▁answer"
        assert spelled(init_tokens(f"{before}<P>answer</P>", family), family) == "answer"
    assert spelled(init_tokens("<P>one two</P><P> three</P>", family), family) == "▁one▁two▁three"


@pytest.mark.parametrize("family", [*SENTENCEPIECE, "byte_level"])
def test_rows_of_labels_that_begin_with_a_space(family: str) -> None:
    tokenizer = shared(family)
    embedding = nn.Embedding(len(tokenizer), 4)
    provider = TensorPromptProvider("labels", labels=[" answer", " two"], tokenizer=tokenizer)
    provider.initialize(prompt_length=2, embedding_dim=4, embedding=embedding, init_tokens={})
    ids = init_tokens("{text}<P> answer</P>", family)
    assert torch.allclose(provider().detach()[0], embedding(torch.tensor(ids)).mean(0))
