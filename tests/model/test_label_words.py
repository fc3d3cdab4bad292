"""Label words have the tokens of a target in their place: scores are those of plain transformers on the joined text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_tokenizer import TOKENIZERS
from tiny_models import CONTEXT, tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ruprompt_fast import FastPromptModel, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.errors import ContextLengthError, LabelError
from ruprompt_fast.training.examples import ExampleEncoder
from ruprompt_fast.training.task import Task

FIRST_ROW = 10_000
TEMPLATES = ["<P*2>{text}", "{text}<P*2>", "<P*2>{text} answer:", "<P>question: {text}", "<P>{text}<P> the"]
TEXTS = ["one two", "what is the answer", "день", "one ", "а" * 70 + " two three"]
WORDS = [" two", " three", "\nyes no", "два"]


def llama(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return model


def make_prompt(template: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    prompt = Prompt(PromptFormat(template), TensorPromptProvider("random", seed=1))
    prompt.initialize(model, tokenizer)
    return prompt


def task_of(prompt: Prompt, **arguments: Any) -> Task:
    return Task(prompt.format.template, **arguments)


def encoder(task: Task, prompt: Prompt, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> ExampleEncoder:
    return ExampleEncoder(task, prompt.format, tokenizer, model_config=model.config, first_row_id=FIRST_ROW)


@torch.no_grad()
def log_probability(model: PreTrainedModel, rows: torch.Tensor, ids: list[int], start: int) -> float:
    """Of the ids from ``start`` on, by one pass of the plain model."""
    table = model.get_input_embeddings()
    embeds = torch.stack([rows[i - FIRST_ROW] if i >= FIRST_ROW else table.weight[i] for i in ids])
    logprobs = model(inputs_embeds=embeds[None]).logits[0].log_softmax(-1)
    return sum(logprobs[position - 1, ids[position]].item() for position in range(start, len(ids)))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "python_bytes"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_label_word_is_a_target_that_is_trained(name: str, template: str) -> None:
    """The served scores, the ids of training, and the targets of text2text agree."""
    tokenizer = TOKENIZERS[name]
    words = [word for word in WORDS if name not in ("unigram", "wordpiece") or not word.startswith("\n")]
    model = llama(tokenizer)
    prompt = make_prompt(template, model, tokenizer)
    rows = prompt.rows().detach()
    trained = encoder(task_of(prompt, target="{out}"), prompt, model, tokenizer)
    expected = []
    for text in TEXTS:
        joined = [trained.encode([{"text": text, "out": word}])[0]["input_ids"][:-1] for word in words]
        start = next(i for i, column in enumerate(zip(*joined, strict=False)) if len(set(column)) > 1)
        expected.append([log_probability(model, rows, ids, start) for ids in joined])
    served = FastPromptModel.from_pretrained(model, prompts={"p": prompt}, tokenizer=tokenizer)
    for output, scores in zip(served.classify(TEXTS, "p", labels=words), expected, strict=True):
        probabilities = torch.tensor(scores).softmax(-1).tolist()
        assert list(output.probabilities.values()) == pytest.approx(probabilities, abs=2e-4)


@pytest.mark.parametrize("name", ["llama2", "mistral", "gemma", "unigram", "byte_level", "wordpiece"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_training_reads_the_words_that_are_served(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]
    model = llama(tokenizer)
    prompt = make_prompt(template, model, tokenizer)
    labels = {"a": " two", "b": " nine"}
    task = task_of(prompt, objective="classification", label_field="k", labels=labels)
    examples = encoder(task, prompt, model, tokenizer).encode([{"text": text, "k": "b"} for text in TEXTS])
    rows = prompt.rows().detach()
    served = FastPromptModel.from_pretrained(model, prompts={"p": prompt}, tokenizer=tokenizer)
    for example, output in zip(examples, served.classify(TEXTS, "p", labels=labels), strict=True):
        ids = example["input_ids"]
        scores = [log_probability(served.model, rows, [*ids, *word], len(ids)) for word in example["candidates"]]
        probabilities = torch.tensor(scores).softmax(-1).tolist()
        assert list(output.probabilities.values()) == pytest.approx(probabilities, abs=2e-4)
        assert example["gold"] == 1


def test_a_boundary_in_front_of_all_words_does_not_make_them_equal() -> None:
    tokenizer = TOKENIZERS["llama2"]
    model = llama(tokenizer)
    prompt = make_prompt("{text}<P>", model, tokenizer)
    labels = {"a": "\none", "b": "\ntwo"}
    task = task_of(prompt, objective="classification", label_field="k", labels=labels)
    [example] = encoder(task, prompt, model, tokenizer).encode([{"text": "one", "k": "a"}])
    assert example["candidates"][0][0] == example["candidates"][1][0]
    same = task_of(prompt, objective="classification", label_field="k", labels={"a": "\nthe", "b": "\nten"})
    with pytest.raises(LabelError, match="begin with the same token, 't'"):
        encoder(same, prompt, model, tokenizer)


# classes with words


@pytest.fixture(scope="module")
def served() -> FastPromptModel:
    return FastPromptModel.from_pretrained(tiny_model("llama"), tokenizer=tiny_tokenizer())


def test_a_mapping_gives_classes(served: FastPromptModel) -> None:
    labels = {"positive": "да", 0: "нет", 0.5: "может быть"}
    by_word = served.classify(["привет", "а"], labels=list(labels.values()))
    for output, expected in zip(served.classify(["привет", "а"], labels=labels), by_word, strict=True):
        assert list(output.probabilities) == list(labels)
        assert list(output.probabilities.values()) == pytest.approx(list(expected.probabilities.values()), abs=1e-6)
        assert labels[output.label] == expected.label


def test_the_probabilities_of_a_classes_words_add_up(served: FastPromptModel) -> None:
    words = ["да", "ага", "нет", "не"]
    (apart,) = served.classify("привет", labels=words)
    (output,) = served.classify("привет", labels={"yes": words[:2], "no": words[2:]})
    assert output.probabilities["yes"] == pytest.approx(
        apart.probabilities["да"] + apart.probabilities["ага"], abs=1e-6
    )
    assert sum(output.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert output.label == max(output.probabilities, key=lambda name: output.probabilities[name])


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ({"a": "да"}, "at least two"),
        ({"a": "да", "b": []}, "every class needs a word; the list of the class 'b' is empty"),
        ({"a": "да", "b": ["нет", 5]}, "a word of the class 'b' must be a string; found 5"),
        ({"a": "да", "b": "да"}, "differ in their tokens"),
        ({"a": "да", ("b",): "нет"}, "a class must be named"),
        ({"a": "да", "b": ["нет", ""]}, "a word of the class 'b'.* has 0"),
    ],
)
def test_mappings_that_cannot_work(served: FastPromptModel, labels: Any, match: str) -> None:
    with pytest.raises(LabelError, match=match):
        served.classify("привет", labels=labels)


def test_a_text_that_is_too_long_is_said_to_be(served: FastPromptModel) -> None:
    text = "а" * (CONTEXT + 5)
    with pytest.raises(ContextLengthError, match=rf"input 1 has {CONTEXT + 5} tokens.*Shorten the input by 5 tokens"):
        served.classify(["а", text], labels=["д", "н"])
    with pytest.raises(ContextLengthError, match="longest label, 'нет', has 3.*Shorten the input by 1 tokens"):
        served.classify("а" * (CONTEXT - 1), labels=["да", "нет"])
    assert served.classify("а" * (CONTEXT - 2), labels=["да", "нет"])
    with pytest.raises(ContextLengthError, match=rf"input 0 has {CONTEXT + 5} tokens.*Shorten the input by 5 tokens"):
        served.generate(text, max_new_tokens=1)
