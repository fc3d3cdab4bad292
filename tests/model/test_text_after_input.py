"""Input and output, one after the other, read as the tokenizer decodes all tokens; on every path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from every_tokenizer import TOKENIZERS
from model.test_label_words import llama, make_prompt
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerBase

from ruprompt_fast import FastPromptModel, PromptFormat
from ruprompt_fast.training.examples import ExampleEncoder
from ruprompt_fast.training.task import Task

TEXTS = ["one two", "question:", "день"]
GREEDY = {"do_sample": False, "max_new_tokens": 12}
SAMPLED = {"do_sample": True, "temperature": 2.0, "seed": 3, "max_new_tokens": 12}
BEAMS = {"num_beams": 3, "max_new_tokens": 8}
PATHS = {
    "engine": {},
    "fallback": {"assistant_lookbehind": 11},
}
NAMES = ["llama2", "mistral", "gemma", "unigram", "byte_level", "wordpiece"]


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest) -> FastPromptModel:
    tokenizer = TOKENIZERS[request.param]
    model = llama(tokenizer)
    prompts = {name: make_prompt(template, model, tokenizer) for name, template in TEMPLATES.items()}
    return FastPromptModel.from_pretrained(model, prompts=prompts, tokenizer=tokenizer)


TEMPLATES = {"before": "<P*2>{text}", "literal": "<P>{text} answer:"}


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_input_and_output_read_as_one(served: FastPromptModel, path: dict[str, Any], settings: dict[str, Any]) -> None:
    tokenizer = served.tokenizer
    for prompt in (None, *TEMPLATES):
        outputs = served.generate(TEXTS, prompt, **settings, **path)
        for text, output in zip(TEXTS, outputs, strict=True):
            before = text + (" answer:" if prompt == "literal" else "")
            ids = list(tokenizer(before, add_special_tokens=False)["input_ids"])
            assert decode(tokenizer, ids) + output.text == decode(tokenizer, [*ids, *output.token_ids])
            if settings is not BEAMS:
                assert "".join(served.stream(text, prompt, **settings, **path)) == output.text


def test_astream_gives_the_same(served: FastPromptModel) -> None:
    async def read() -> str:
        return "".join([piece async for piece in served.astream("one two", "before", **SAMPLED)])

    assert asyncio.run(read()) == served.generate("one two", "before", **SAMPLED)[0].text


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_stop_strings_see_the_first_space(path: dict[str, Any], settings: dict[str, Any]) -> None:
    """The model writes `two` at once: ` two` is found after a text, and not where a text begins."""
    tokenizer = TOKENIZERS["llama2"]
    model = llama(tokenizer)
    served = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
    two = tokenizer.convert_tokens_to_ids("▁two")
    settings = {**settings, "logit_bias": {two: 100.0}, "stop_strings": [" two"]}
    if path:
        settings.pop("logit_bias")
        settings["sequence_bias"] = [[[two], 100.0]]
    (output,) = served.generate("one", **settings, **path)
    assert (output.text, output.token_ids, output.finish_reason) == (" two", [two], "stop")


def bart(tokenizer: PreTrainedTokenizerBase) -> BartForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2}
    config = BartConfig(vocab_size=len(tokenizer), d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, **sizes, **ids)
    return BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("name", ["unigram", "metaspace_always"])
def test_an_encoder_decoder_begins_a_text(name: str) -> None:
    """Its output is the decoding of its tokens; its label words are the targets that it is trained on."""
    tokenizer = TOKENIZERS[name]
    model = bart(tokenizer)
    prompt = make_prompt("<P*2>{text}", model, tokenizer)
    served = FastPromptModel.from_pretrained(model, prompts={"p": prompt}, tokenizer=tokenizer)
    outputs = served.generate(TEXTS[:2], "p", **SAMPLED)
    for text, output in zip(TEXTS, outputs, strict=False):
        assert output.text == decode(tokenizer, output.token_ids)
        assert "".join(served.stream(text, "p", **SAMPLED)) == output.text
    words = ["two", "question: one"]
    format = PromptFormat("<P*2>{text}", tokenizer=tokenizer)
    encoder = ExampleEncoder(
        Task("<P*2>{text}", target="{out}"), format, tokenizer, model_config=model.config, first_row_id=10_000
    )
    targets = [encoder.encode([{"text": "one", "out": word}])[0]["labels"] for word in words]
    with torch.no_grad():
        encoded = torch.cat([prompt.rows(), model.get_input_embeddings()(torch.tensor(tokenizer("one")["input_ids"]))])
        scores = []
        for target in targets:
            end = target.index(tokenizer.eos_token_id)
            logits = model(
                inputs_embeds=encoded[None], decoder_input_ids=torch.tensor([[2, *target[: end - 1]]])
            ).logits
            logprobs = logits[0].log_softmax(-1)
            scores.append(sum(logprobs[k, token].item() for k, token in enumerate(target[:end])))
    (output,) = served.classify("one", "p", labels=words)
    assert list(output.probabilities.values()) == pytest.approx(torch.tensor(scores).softmax(-1).tolist(), abs=1e-4)
