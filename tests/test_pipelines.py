"""The two pipelines, under ruPrompts' task names."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from every_tokenizer import TOKENIZERS
from model.test_label_words import llama
from model_cases import make_prompt
from tiny_models import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast, pipeline

from ruprompt_fast import (
    FastPromptModel,
    Prompt,
    PromptEnsemble,
    Text2TextGenerationWithPromptPipeline,
    TextGenerationWithPromptPipeline,
)
from ruprompt_fast.errors import ContextLengthError, MissingFieldError, PromptInitError

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("gpt2")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def expected(prompt: Prompt, text: str | dict[str, str], tokenizer: PreTrainedTokenizerFast) -> str:
    """What FastPromptModel says on a fresh copy of the model."""
    served = FastPromptModel.from_pretrained(tiny_model("gpt2"), prompts={"it": prompt}, tokenizer=tiny_tokenizer())
    return served.generate(text, prompt="it", **GREEDY)[0].text


def test_text_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = make_prompt("<P*5>", model, tokenizer, seed=0)
    pipe = pipeline("text-generation-with-prompt", prompt=prompt, model=model, tokenizer=tokenizer)
    assert isinstance(pipe, TextGenerationWithPromptPipeline)
    found = pipe("привет", **GREEDY)[0]["generated_text"]
    assert found == "привет" + expected(prompt, "привет", tokenizer)


def test_text2text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = make_prompt("<P*3>{text}<P*2>", model, tokenizer, seed=1)
    pipe = pipeline("text2text-generation-with-prompt", prompt=prompt, model=model, tokenizer=tokenizer)
    assert isinstance(pipe, Text2TextGenerationWithPromptPipeline)
    wanted = expected(prompt, "привет", tokenizer)
    assert pipe("привет", **GREEDY)[0]["generated_text"] == wanted
    assert pipe({"text": "привет"}, **GREEDY)[0]["generated_text"] == wanted
    assert pipe(text="привет", **GREEDY)[0]["generated_text"] == wanted
    assert pipe("привет", return_full_text=True, **GREEDY)[0]["generated_text"] == "привет" + wanted


@pytest.mark.parametrize("template", ["<P*3>{text}", "{text}<P*3>", "<P*3>"])
@pytest.mark.parametrize("name", ["llama2", "mistral", "gemma", "unigram", "byte_level"])
def test_text_keeps_its_first_space(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]
    settings = {**GREEDY, "min_new_tokens": 2}
    prompt = make_prompt(template, llama(tokenizer), tokenizer, seed=1)
    served = FastPromptModel.from_pretrained(llama(tokenizer), prompts={"it": prompt}, tokenizer=tokenizer)
    copied = copy.deepcopy(tokenizer)
    pipe = TextGenerationWithPromptPipeline(prompt=prompt, model=llama(tokenizer), tokenizer=copied)
    for text in ("one two", "question:", "день "):
        wanted = served.generate(text, "it", **settings)[0].text
        assert pipe(text, **settings)[0]["generated_text"] == text + wanted
        assert pipe([text], batch_size=1, return_full_text=False, **settings)[0][0]["generated_text"] == wanted
    raw = pipe("one two", skip_special_tokens=True, return_full_text=False, **settings)[0]["generated_text"]
    assert raw == served.tokenizer.decode(served.generate("one two", "it", **settings)[0].token_ids)


def test_batches_of_padded_requests(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = make_prompt("<P*3>{text}<P*2>", model, tokenizer, seed=1)
    pipe = Text2TextGenerationWithPromptPipeline(prompt=prompt, model=model, tokenizer=tokenizer)
    texts = ["привет", "да", "как твои дела сегодня"]
    found = [result[0]["generated_text"] for result in pipe(texts, batch_size=3, **GREEDY)]
    assert found == [expected(prompt, text, tokenizer) for text in texts]


def test_two_pipelines_over_one_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [make_prompt("<P*3>{text}", model, tokenizer, seed=seed) for seed in (5, 6)]
    pipes = [
        Text2TextGenerationWithPromptPipeline(prompt=prompt, model=model, tokenizer=tokenizer) for prompt in prompts
    ]
    for _ in range(2):
        for pipe, prompt in zip(pipes, prompts, strict=True):
            assert pipe("привет", **GREEDY)[0]["generated_text"] == expected(prompt, "привет", tokenizer)


def test_several_fields(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = make_prompt("<P*2>{context}<P>{question}<P>", model, tokenizer, seed=2)
    pipe = Text2TextGenerationWithPromptPipeline(prompt=prompt, model=model, tokenizer=tokenizer)
    fields = {"context": "трава зелёная", "question": "какая трава"}
    assert pipe(**fields, **GREEDY)[0]["generated_text"] == expected(prompt, fields, tokenizer)
    with pytest.raises(KeyError):
        pipe({"context": "трава"}, **GREEDY)
    with pytest.raises(MissingFieldError, match="context, question"):
        pipe(**GREEDY)


def test_defaults_stay_inside_the_context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = make_prompt("<P*3>{text}", model, tokenizer, seed=3)
    pipe = Text2TextGenerationWithPromptPipeline(prompt=prompt, model=model, tokenizer=tokenizer, eos_token_id=None)
    torch.manual_seed(0)
    assert pipe("а" * 100)[0]["generated_text"]
    with pytest.raises(ContextLengthError):
        pipe("а" * 130)
    with pytest.raises(ContextLengthError):
        pipe("а" * 100, max_new_tokens=50)


def test_prompt_from_a_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    prompt = make_prompt("<P*3>{text}", model, tokenizer, seed=4)
    prompt.save_pretrained(tmp_path)
    pipe = pipeline("text2text-generation-with-prompt", prompt=str(tmp_path), model=model, tokenizer=tokenizer)
    assert pipe("да", **GREEDY)[0]["generated_text"] == expected(prompt, "да", tokenizer)


@pytest.mark.parametrize("first", ["import ruprompt_fast", "import transformers.pipelines; import ruprompt_fast"])
def test_importing_the_package_registers_the_tasks(first: str) -> None:
    code = (
        f"{first}\n"
        "from transformers.pipelines import check_task\n"
        "print(check_task('text-generation-with-prompt')[0], check_task('text2text-generation-with-prompt')[0])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["text-generation-with-prompt", "text2text-generation-with-prompt"]


def test_an_ensemble_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    ensemble = PromptEnsemble([make_prompt("<P*3>{text}", model, tokenizer, seed) for seed in range(2)])
    ensemble.save_pretrained(tmp_path)
    for source in (ensemble, str(tmp_path)):
        with pytest.raises(PromptInitError, match=r"found an ensemble of 2\. .* FastPromptModel"):
            pipeline("text2text-generation-with-prompt", prompt=source, model=model, tokenizer=tokenizer)
