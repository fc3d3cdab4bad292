"""SmolLM2-135M on the engine against transformers' eager forward and generate."""

from __future__ import annotations

import copy
import random
from typing import NamedTuple

import pytest
import torch
from engine.reference import Reference, assert_at_rest
from real_models import smollm2
from tolerances import LOGITS_ERROR
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.dispatch.dispatcher import Dispatcher
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.embedding import attach_prompts
from ruprompt_fast.requests.inputs import encode_requests
from ruprompt_fast.requests.registry import PromptRegistry

pytestmark = [pytest.mark.slow, pytest.mark.every_backend]

ROWS = (0, 1, 7, 15, 16, 17, 33, 60)
NUM_REQUESTS = 64
PER_BATCH = 32
# So little apart, the reference's own rounding decides between two tokens.
NEAR_TIE = 1e-3

ENGLISH = (
    "The old harbour was quiet in the early morning, and only a few fishermen were mending their nets on the pier. "
    "A small boat came in from the sea with the first light, carrying more salt than fish. Nobody asked where it had "
    "been, because in that town questions were thought to bring bad weather. The captain walked slowly up the hill to "
    "the bakery, bought three loaves of bread and a newspaper, and sat down on the steps of the church to read about "
    "the election, the price of coal, and a new bridge that would connect the two banks of the river before winter."
)


class Request(NamedTuple):
    text: str
    prompt: str | None
    num_new: int


def make_prompts(reference_table: Tensor, tokenizer: PreTrainedTokenizerFast) -> dict[str, Prompt]:
    """Prompts whose rows are drawn from the embedding table: what the model has learnt to read."""
    generator = torch.Generator().manual_seed(0)
    prompts = {}
    for num_rows in filter(None, ROWS):
        format = PromptFormat(f"<P*{num_rows}>{{text}}", tokenizer=tokenizer)
        rows = reference_table[torch.randint(len(reference_table), (num_rows,), generator=generator)].clone()
        prompts[f"rows{num_rows}"] = Prompt(format, TensorPromptProvider.from_pretrained(rows))
    return prompts


@pytest.fixture(scope="module")
def reference() -> Reference:
    model, tokenizer = smollm2()
    return Reference(model, tokenizer, make_prompts(model.get_input_embeddings().weight, tokenizer))


def draw_requests(tokenizer: PreTrainedTokenizerFast) -> list[Request]:
    """English of 5 to 60 tokens after one prompt after another, shorter ones more often."""
    rng = random.Random(1)
    ids = tokenizer(ENGLISH)["input_ids"]
    requests = []
    for index in range(NUM_REQUESTS):
        length = min(60, 5 + int(rng.expovariate(1 / 12)))
        start = rng.randrange(len(ids) - length)
        text = tokenizer.decode(ids[start : start + length])
        num_rows = ROWS[index % len(ROWS)]
        requests.append(Request(text, f"rows{num_rows}" if num_rows else None, rng.randint(12, 24)))
    return requests


def padded_generate(reference: Reference, requests: list[Request]) -> list[list[int]]:
    """Transformers' greedy ids of every request, in padded batches of requests of like length."""
    embeds = [reference.embeds(request.text, request.prompt) for request in requests]
    order = sorted(range(len(requests)), key=lambda index: len(embeds[index]))
    found: list[list[int]] = [[] for _ in requests]
    end = reference.model.generation_config.eos_token_id
    for start in range(0, len(order), PER_BATCH):
        batch = order[start : start + PER_BATCH]
        masks = [torch.ones(len(embeds[index]), dtype=torch.long) for index in batch]
        ids = reference.model.generate(
            inputs_embeds=pad_sequence([embeds[index] for index in batch], batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(masks, batch_first=True, padding_side="left"),
            max_new_tokens=max(requests[index].num_new for index in batch),
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        ).tolist()
        for index, row in zip(batch, ids, strict=True):
            row = row[: requests[index].num_new]
            found[index] = row[: row.index(end) + 1] if end in row else row
    return found


def assert_near_tie(reference: Reference, request: Request, found: list[int], expected: list[int]) -> None:
    """Where the texts part, the reference's logits of both tokens are equal but for rounding."""
    pairs = enumerate(zip(found, expected, strict=False))
    step = next((step for step, (ours, theirs) in pairs if ours != theirs), None)
    assert step is not None, f"one text is the beginning of the other: {found} and {expected}"
    logits = reference.logits(request.text, request.prompt, expected[:step])[-1]
    gap = float((logits[expected[step]] - logits[found[step]]).abs())
    assert gap < NEAR_TIE, f"token {step} differs, {gap:.3g} apart: {request}"


def test_logits(reference: Reference) -> None:
    model = copy.deepcopy(smollm2().model)
    embedding = attach_prompts(model, [], len(reference.tokenizer))
    registry = PromptRegistry(embedding.row_width, model.config, lambda: embedding.weight)
    for name, prompt in reference.prompts.items():
        registry.add(name, prompt)
    options = EngineOptions(max_batch_size=8, max_step_tokens=64, kv_cache_bytes=1 << 26)
    dispatcher = Dispatcher(model, reference.tokenizer, embedding, options)
    texts = ["The capital of France is", "Once upon a time,", ENGLISH[:200], "def add(a, b):\n    return", "a", "Water"]
    names = [None, "rows16", "rows33", "rows1", "rows17", "rows60"]
    encoded = encode_requests(texts, names, registry, reference.tokenizer, embedding.first_row_id)
    continuation = reference.tokenizer(" and then the")["input_ids"]
    found = dispatcher.continuation_logits(encoded, continuation)
    assert dispatcher.stats().path == "engine"
    for logits, text, name in zip(found, texts, names, strict=True):
        expected = reference.logits(text, name, continuation)
        # The logits reach 30 here, and their rounding with them: in units of their spread, they are of order 1.
        assert (logits - expected).abs().max() <= LOGITS_ERROR * expected.std()
    dispatcher.check_integrity()
    dispatcher.close()


@pytest.mark.cpu_backend("the other one would take a minute")
def test_greedy_text_of_64_mixed_requests(reference: Reference) -> None:
    requests = draw_requests(reference.tokenizer)
    lengths = [len(reference.tokenizer(request.text)["input_ids"]) for request in requests]
    assert min(lengths) <= 6
    assert max(lengths) >= 40
    expected = padded_generate(reference, requests)
    served = FastPromptModel.from_pretrained(
        copy.deepcopy(smollm2().model), reference.prompts, reference.tokenizer, kv_cache_bytes=1 << 28
    )
    assert served.stats().path == "engine"
    configs = [GenerationConfig(max_new_tokens=request.num_new, do_sample=False) for request in requests]
    outputs = served.generate(
        [request.text for request in requests],
        [request.prompt for request in requests],
        configs,
        eos_token_id=reference.model.generation_config.eos_token_id,
    )
    num_ties = 0
    for request, output, ids in zip(requests, outputs, expected, strict=True):
        if output.token_ids != ids:
            assert_near_tie(reference, request, output.token_ids, ids)
            num_ties += 1
        else:
            assert output.text == reference.tokenizer.decode(ids, skip_special_tokens=True)
    assert num_ties <= 2
    assert_at_rest(served)
