"""Special tokens of requests are where the template says, never come from data; decoders go on with their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import sharp_model, tiny_tokenizer
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, pipeline

from ruprompt_fast import FastPromptModel, PrefixTuningProvider, Prompt, PromptEnsemble, PromptFormat
from ruprompt_fast import TensorPromptProvider as Rows

NEW = 6
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


def tokenizer_with(single: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


def prompt_for(template: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Prompt:
    prompt = Prompt(PromptFormat(template), Rows("random", seed=1))
    prompt.initialize(model, tokenizer)
    return prompt


def served_with(
    tokenizer: PreTrainedTokenizerFast, template: str = "<P*3>{text}", family: str = "llama"
) -> FastPromptModel:
    model = sharp_model(family)
    return FastPromptModel.from_pretrained(model, {"it": prompt_for(template, model, tokenizer)}, tokenizer)


def ids(text: str) -> list[int]:
    return [token for character in text for token in tiny_tokenizer()(character).input_ids]


@torch.no_grad()
def continuation(model: PreTrainedModel, input_ids: list[int]) -> list[int]:
    found: list[int] = []
    while len(found) < NEW and found[-1:] != [2]:
        logits = model(torch.tensor([input_ids + found])).logits[0, -1]
        found.append(int(logits[: len(tiny_tokenizer())].argmax()))
    return found


def test_a_decoder_goes_on_with_a_text() -> None:
    """The tokenizer puts an end token after every text, which the text to go on with has not."""
    tokenizer = tokenizer_with("<s> $A </s>")
    served = served_with(tokenizer)
    [output] = served.generate("да", **GREEDY, eos_token_id=2)
    expected = continuation(sharp_model("llama"), [1, *ids("да")])
    assert output.token_ids == [token for token in expected if token != 2]
    assert served.count_tokens("да") == [3]
    assert served.count_tokens("да", "it") == [6]
    assert served_with(tokenizer, "<P*3>{text}<|trailing|>").count_tokens("да", "it") == [7]
    assert served_with(tokenizer, "<P*3>{text}<eos>").count_tokens("да", "it") == [7]


def test_an_encoder_reads_the_whole_text() -> None:
    served = served_with(tokenizer_with("<s> $A </s>"), family="t5")
    assert served.count_tokens("да", "it") == [7]
    assert served.count_tokens("да") == [4]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_control_text_is_data_after_a_prompt_and_the_callers_own_without_one(family: str) -> None:
    served = served_with(tokenizer_with("<s> $A"), family=family)
    assert served.count_tokens("да</s>", "it") == [3 + 1 + 2 + 4]
    assert served.count_tokens("да</s>") == [1 + 2 + 1]


@pytest.mark.parametrize("template", ["<P*3>{text}", "<P*3><bos>{text}", "<|leading|><P*3>{text}", "<P*3>"])
def test_pipelines_read_what_is_served(template: str) -> None:
    tokenizer = tokenizer_with("<s> $A </s>")
    model = sharp_model("llama")
    prompt = prompt_for(template, model, tokenizer)
    served = FastPromptModel.from_pretrained(sharp_model("llama"), {"it": prompt}, tokenizer_with("<s> $A </s>"))
    texts = ["да", "нет</s>"]
    expected = [output.text for output in served.generate(texts, "it", **GREEDY, min_new_tokens=1)]
    pipe = pipeline("text-generation-with-prompt", prompt=prompt, model=model, tokenizer=tokenizer)
    unknown = list(range(len(tiny_tokenizer()), 60))
    found = pipe(texts, return_full_text=False, suppress_tokens=unknown, **GREEDY)
    assert [item[0]["generated_text"] for item in found] == expected


def test_ensembles_keep_the_layout(tmp_path: Path) -> None:
    tokenizer, model = tokenizer_with("<s> $A"), sharp_model("llama")
    ensemble = PromptEnsemble.of("<P*2><|leading|>{text}<eos>", lambda seed: Rows("random", seed=seed), seeds=[0, 1])
    ensemble.initialize(model, tokenizer)
    ensemble.save_pretrained(tmp_path)
    loaded = PromptEnsemble.from_pretrained(tmp_path)
    for member in loaded.members:
        encoded = member.format.encode({"text": "да</s>"}, tokenizer, 100)
        assert encoded.input_ids == [100, 101, 1, *ids("да</s>"), 2]
        assert encoded.prefix_len == 3


@pytest.mark.parametrize("template", ["<P*3>{text}", "<P*3><bos>{text}", "<P*3><|leading|>{text}"])
def test_deep_prompts_stand_before_the_leading_tokens(template: str) -> None:
    tokenizer, model = tokenizer_with("<s> $A </s>"), sharp_model("llama")
    prompt = Prompt(PromptFormat(template), PrefixTuningProvider(seed=0))
    prompt.initialize(model, tokenizer)
    format = prompt.format.without_leading_rows()
    encoded = format.encode({"text": "да</s>"}, tokenizer, is_continued=True)
    assert encoded.input_ids == [1, *ids("да</s>")]
    served = FastPromptModel.from_pretrained(model, {"it": prompt}, tokenizer)
    assert served.count_tokens("да</s>", "it") == [3 + 1 + 2 + 4]
