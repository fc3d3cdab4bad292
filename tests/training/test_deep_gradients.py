"""Deep prompts in packed batches: loss and gradient equal to one sample at a time after its own keys and values."""

from __future__ import annotations

import pytest
import torch
from tiny_models import sharp_model, tiny_tokenizer
from tolerances import relative_error
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from ruprompt_fast import PrefixTuningProvider, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.embedding import PromptSlot, attach_prompts
from ruprompt_fast.prompts import freeze_model
from ruprompt_fast.training.examples import Example, ExampleEncoder
from ruprompt_fast.training.runners import make_runner
from ruprompt_fast.training.task import Task

FAMILIES = ["gpt2", "gpt_neox", "llama", "qwen2", "gemma3"]
PROVIDERS = {
    "direct": lambda: PrefixTuningProvider(seed=0),
    "mlp": lambda: PrefixTuningProvider(seed=0, hidden_dim=24),
}
NUM_ROWS = 7
TEMPLATE = f"<P*{NUM_ROWS}><s>{{text}}"
DATA = [{"text": "абв где жзи", "out": "й кл"}, {"text": "м", "out": ""}, {"text": "где жзий клмн опр", "out": "с"}]
CLASSES = [{"text": "абв где", "kind": "1"}, {"text": "", "kind": "0"}]
TASKS = {
    "text2text": (Task(TEMPLATE, target=" {out}"), DATA),
    "style": (Task(TEMPLATE, "style"), DATA),
    "classification": (
        Task(TEMPLATE, "classification", label_field="kind", labels={"1": "да", "0": "нет"}),
        CLASSES,
    ),
}
TOKENIZER = tiny_tokenizer()


def logits_alone(model: PreTrainedModel, provider: PrefixTuningProvider, ids: list[int]) -> Tensor:
    """Logits [tokens, vocabulary] of one sequence after the keys and values, by transformers alone."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(provider.keys_values()):
        cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], layer)
    positions = torch.arange(NUM_ROWS, NUM_ROWS + len(ids))[None]
    return model(torch.tensor([ids]), position_ids=positions, past_key_values=cache).logits[0]


def loss_alone(model: PreTrainedModel, provider: PrefixTuningProvider, example: Example) -> Tensor:
    ids = example["input_ids"]
    if not example["candidates"]:
        logits = logits_alone(model, provider, ids)
        return F.cross_entropy(logits[:-1], torch.tensor(example["labels"][1:]), reduction="sum")
    scores = []
    for word in example["candidates"]:
        logprobs = logits_alone(model, provider, [*ids, *word]).log_softmax(-1)
        scores.append(sum(logprobs[len(ids) - 1 + offset, token] for offset, token in enumerate(word)))
    return F.cross_entropy(torch.stack(scores)[None], torch.tensor([example["gold"]]))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("objective", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_sample_at_a_time(family: str, objective: str, provider: str) -> None:
    task, data = TASKS[objective]
    model = sharp_model(family)
    deep, flat = (
        Prompt(PromptFormat(TEMPLATE), PROVIDERS[provider]()),
        Prompt(PromptFormat("<P*3>{text}"), TensorPromptProvider(seed=1)),
    )
    for prompt in (deep, flat):
        prompt.initialize(model, TOKENIZER)
    embedding = attach_prompts(model, [PromptSlot(flat.provider, 3)], len(TOKENIZER))
    embedding.add_deep_provider(deep.provider)
    freeze_model(model)
    parameters = list(deep.provider.parameters())
    if provider == "mlp":  # the network's last layer starts at zero, and so would the gradients before it
        torch.nn.init.normal_(deep.provider.mlp[-1].weight, std=0.1)
    settings = {"model_config": model.config, "first_row_id": embedding.first_prompt_id}
    examples = ExampleEncoder(task, deep.format, TOKENIZER, num_deep_rows=NUM_ROWS, **settings).encode(data)

    runner = make_runner(model, embedding, [deep.provider, None])
    batch = runner.collate(examples)
    with runner.routing():
        actual = runner.loss(model, batch)
        grads = torch.autograd.grad(actual.total, parameters)
    expected = torch.stack([loss_alone(model, deep.provider, example) for example in examples]).sum()
    expected_grads = torch.autograd.grad(expected, parameters)

    assert relative_error(actual.total.detach(), expected.detach()) <= 1e-5
    for grad, other in zip(grads, expected_grads, strict=True):
        assert relative_error(grad, other) <= 1e-5


def test_deep_and_flat_prompts_share_a_batch() -> None:
    model = sharp_model("llama")
    deep = Prompt(PromptFormat(TEMPLATE), PrefixTuningProvider(seed=0))
    flat = Prompt(PromptFormat("<P*3>{text}"), TensorPromptProvider(seed=1))
    for prompt in (deep, flat):
        prompt.initialize(model, TOKENIZER)
    embedding = attach_prompts(model, [PromptSlot(flat.provider, 3)], len(TOKENIZER))
    embedding.add_deep_provider(deep.provider)
    freeze_model(model)
    settings = {"model_config": model.config, "first_row_id": embedding.first_prompt_id}
    of_deep = ExampleEncoder(
        Task(TEMPLATE, target=" {out}"), deep.format, TOKENIZER, num_deep_rows=NUM_ROWS, prompt_index=1, **settings
    ).encode(DATA)
    of_flat = ExampleEncoder(Task("<P*3>{text}", target=" {out}"), flat.format, TOKENIZER, **settings).encode(DATA)
    runner = make_runner(model, embedding, [None, deep.provider])

    def total(examples: list[Example]) -> Tensor:
        with runner.routing(), torch.no_grad():
            return runner.loss(model, runner.collate(examples)).total

    mixed = [example for pair in zip(of_deep, of_flat, strict=True) for example in pair]
    assert relative_error(total(mixed), total(of_deep) + total(of_flat)) <= 1e-5
