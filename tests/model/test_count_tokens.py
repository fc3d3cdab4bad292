"""How many positions of the context a request takes."""

from __future__ import annotations

import pytest
from model_cases import make_prompt
from tiny_models import CONTEXT, tiny_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import ContextLengthError, UnknownPromptError


def test_rows_count() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    served = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
    served.add_prompt("around", make_prompt("<P*7>{text}<P*4>", model, tokenizer, 0))
    assert served.count_tokens(["привет", "да", "да"], ["around", "around", None]) == [17, 13, 2]
    assert served.count_tokens({"text": "привет"}, "around") == [17]
    with pytest.raises(UnknownPromptError):
        served.count_tokens("да", "other")
    longest = CONTEXT - 11 - 5
    assert served.generate("а" * longest, "around", max_new_tokens=5)
    with pytest.raises(ContextLengthError):
        served.generate("а" * (longest + 1), "around", max_new_tokens=5)
