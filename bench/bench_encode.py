"""From fields to ids: ``PromptFormat.encode`` against formatting the text form and tokenizing it.

Both give the same ids, which is checked before they are timed. The tokenizer is the bundled model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import ruprompt_fast
from ruprompt_fast.prompts import PromptFormat

SENTENCE = "Мороз и солнце; день чудесный! Ещё ты дремлешь, друг прелестный. "
CASES = {
    "60+20 rows, 1 word": ("<P*60>{text}<P*20>", "Мороз"),
    "60+20 rows, 2 sentences": ("<P*60>{text}<P*20>", SENTENCE * 2),
    "60+20 rows, 40 sentences": ("<P*60>{text}<P*20>", SENTENCE * 40),
    "100 rows, 2 sentences": ("<P*100>{text}", SENTENCE * 2),
    "24 rows and literal text, 2 sentences": ("<P*20>Текст: {text}\nОтвет:<P*4>", SENTENCE * 2),
    "24 rows and literal text, 40 sentences": ("<P*20>Текст: {text}\nОтвет:<P*4>", SENTENCE * 40),
    "4 rows, 1 word": ("<P*3>{text}<P>", "Мороз"),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    model = Path(next(iter(ruprompt_fast.__path__))) / "bundled" / "model"
    return PreTrainedTokenizerFast.from_pretrained(model)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("candidate", ["encode", "text form"])
def bench_encode(benchmark: Any, tokenizer: PreTrainedTokenizerFast, case: str, batch: int, candidate: str) -> None:
    template, text = CASES[case]
    format = PromptFormat(template, tokenizer=tokenizer)
    [marker] = format.add_tokens(tokenizer)
    first = len(tokenizer)
    items: list[dict[str, str]] = [{"text": text}] * batch

    def encode() -> list[list[int]]:
        if batch == 1:
            return [format.encode(items[0], tokenizer).input_ids]
        return [encoded.input_ids for encoded in format.encode_batch(items, tokenizer)]

    def text_form() -> list[list[int]]:
        return tokenizer(format(items))["input_ids"] if batch > 1 else [tokenizer(format(items[0]))["input_ids"]]

    assert [[marker if token >= first else token for token in ids] for ids in encode()] == text_form()
    benchmark.group = f"ids of {batch} x {case}"
    benchmark.pedantic(encode if candidate == "encode" else text_form, rounds=200, iterations=3, warmup_rounds=20)
