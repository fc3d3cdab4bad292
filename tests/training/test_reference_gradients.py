"""Loss and gradient of a batch, against plain transformers on each example alone, with its own copy of the prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from tiny_models import FAMILIES, PADDED_FAMILIES, sharp_model, tiny_model, tiny_tokenizer
from tolerances import GRADIENT_ERROR, LOSS_ERROR, assert_close, relative_error
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ruprompt_fast import LSTMPromptProvider, MLPPromptProvider, Prompt, TensorPromptProvider
from ruprompt_fast.embedding import PromptSlot, SplicedEmbedding, attach_prompts, original_embedding
from ruprompt_fast.prompts import BasePromptProvider, ModulePromptProvider
from ruprompt_fast.prompts.format.preprocessing import IGNORED_LABEL
from ruprompt_fast.training.examples import Example, ExampleEncoder
from ruprompt_fast.training.packed import PackedRunner
from ruprompt_fast.training.prompts import prompt_for
from ruprompt_fast.training.runners import Runner, make_runner
from ruprompt_fast.training.task import Task

TOKENIZER = tiny_tokenizer()
ROUTED = [family for family in FAMILIES if family != "t5"]

# The first text is longer than the windows of the families that have one; nothing fits a page or a block.
ROWS = [
    {"a": "жили были дед и баба, ели кашу с молоком", "b": "рассердился дед на бабу", "c": "хлоп", "kind": "v"},
    {"a": "а", "b": "снег", "c": "да", "kind": "p"},
    {"a": "мороз и солнце", "b": "день чудесный", "c": "ещё ты дремлешь", "kind": "v"},
]

TEXTS = {
    "leading": Task("<P*5>{a}", target=" {b}"),
    "longer than a window": Task("<P*20>{a}", target=" {b}"),
    "trailing": Task("{a}<P*4>", target=" {b}"),
    "between fields": Task("{a}<P*3>{b}", target="-{c}"),
    "within literal text": Task("да <P*3>нет {a}", target=" {b}"),
    "everywhere": Task("ах <P*6>и {a} ух <P*2>{b}<P*3>", target=" {c}"),
    "style": Task("<P*6>{a}<P>", "style", target="{b}"),
    # The first token to generate follows the prefix's last row.
    "style without a field": Task("<P*6>", "style", target="{a}"),
    "special tokens after the rows": Task("<P*5><bos>{a}<eos>", target=" {b}"),
    "a special token before the target": Task("<P*5><bos>", "style", target="{a}"),
}
CHOICES = {
    "letters": Task("<P*4>{a}<P*2>", "classification", label_field="kind", labels={"v": " ", "p": "п"}),
    "words": Task("да <P*5>{a}", "classification", label_field="kind", labels={"v": " стих", "p": "проза"}),
}


@dataclass
class Training:
    """Prompts that train over one model, and examples of them."""

    model: PreTrainedModel
    embedding: SplicedEmbedding
    prompts: list[Prompt]
    examples: list[Example]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for prompt in self.prompts for parameter in prompt.provider.parameters()]

    def found(self, runner: Runner) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients of all examples as one batch of the runner."""
        with runner.routing():
            loss = runner.loss(self.model, runner.collate(self.examples))
            grads = torch.autograd.grad(loss.total, self.parameters)
        num_labels = sum(label != IGNORED_LABEL for example in self.examples for label in example["labels"])
        assert loss.num_items == (num_labels or len(self.examples))
        return loss.total.detach(), list(grads)

    def expected(self) -> tuple[Tensor, list[Tensor]]:
        """The same, summed over examples that run one at a time."""
        losses, grads = [], [torch.zeros_like(parameter) for parameter in self.parameters]
        for example in self.examples:
            loss = self._loss_alone(example)
            for total, grad in zip(grads, torch.autograd.grad(loss, self.parameters, allow_unused=True), strict=True):
                if grad is not None:  # another prompt's
                    total += grad
            losses.append(loss.detach())
        return torch.stack(losses).sum(), grads

    def _loss_alone(self, example: Example) -> Tensor:
        ids, labels = example["input_ids"], example["labels"]
        if example["candidates"]:
            scores = [self._logprobs(ids, word).sum() for word in example["candidates"]]
            return -torch.stack(scores).log_softmax(-1)[example["gold"]]
        if self.model.config.is_encoder_decoder:
            return -self._logprobs(ids, labels).sum()
        logprobs = self._logits(ids, []).log_softmax(-1)
        places = [position for position, label in enumerate(labels) if label != IGNORED_LABEL]
        return -torch.stack([logprobs[position - 1, labels[position]] for position in places]).sum()

    def _logprobs(self, ids: list[int], generated: list[int]) -> Tensor:
        """Log-probabilities of the generated ids after the others, [generated]."""
        logprobs = self._logits(ids, generated[:-1]).log_softmax(-1)
        return logprobs[-len(generated) :].gather(-1, torch.tensor(generated)[:, None])

    def _logits(self, ids: list[int], generated: list[int]) -> Tensor:
        """The model's logits, [ids and generated ones, vocabulary]; of an encoder-decoder its decoder's."""
        if not self.model.config.is_encoder_decoder:
            output = self.model(inputs_embeds=self._embeds([*ids, *generated]), use_cache=False)
        else:
            start = self.model.config.decoder_start_token_id
            output = self.model(
                inputs_embeds=self._embeds(ids), decoder_input_ids=torch.tensor([[start, *generated]]), use_cache=False
            )
        logits: Tensor = output.logits[0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _embeds(self, ids: list[int]) -> Tensor:
        """[1, ids, width]; every virtual token is copied to where its id is."""
        table = original_embedding(self.model)
        rows = torch.cat([prompt.provider() for prompt in self.prompts]).to(self.embedding.weight.dtype)
        first = self.embedding.first_prompt_id
        return torch.stack([rows[i - first] if i >= first else table(torch.tensor(i)) for i in ids])[None]


def training(
    model: PreTrainedModel,
    tasks: Sequence[Task],
    make: Callable[[], BasePromptProvider] = lambda: TensorPromptProvider(init="random"),
    rows: Sequence[dict[str, str]] = ROWS,
) -> Training:
    """A prompt for each task, of random rows, attached to the frozen model."""
    torch.manual_seed(1)
    model.requires_grad_(False)
    prompts = [prompt_for(task, make()) for task in tasks]
    for prompt in prompts:
        prompt.initialize(model, TOKENIZER)
        for parameter in prompt.provider.to(model.dtype).parameters():
            nn.init.normal_(parameter, std=0.3)
    slots = [PromptSlot(prompt.provider, prompt.format.prompt_length) for prompt in prompts]
    embedding = attach_prompts(model, slots, len(TOKENIZER))
    examples: list[Example] = []
    for index, (task, prompt) in enumerate(zip(tasks, prompts, strict=True)):
        first_row_id = embedding.prompt_ids(index)[0]
        encoder = ExampleEncoder(
            task,
            prompt.format,
            TOKENIZER,
            model_config=model.config,
            prompt_index=index,
            first_row_id=first_row_id,
        )
        examples += encoder.encode(rows)
    # Neighbours in a batch are of different prompts.
    return Training(model, embedding, prompts, [*examples[::2], *examples[1::2]])


def assert_as_alone(case: Training, runner: Runner) -> None:
    found, expected = case.found(runner), case.expected()
    assert relative_error(found[0], expected[0]) <= LOSS_ERROR[case.embedding.weight.dtype]
    for grad, expected_grad in zip(found[1], expected[1], strict=True):
        assert_close(grad, expected_grad, GRADIENT_ERROR)


def packed(case: Training) -> Runner:
    runner = make_runner(case.model, case.embedding)
    assert runner.name == "packed"
    return runner


@pytest.mark.parametrize("tasks", [TEXTS, CHOICES], ids=["texts", "choices"])
@pytest.mark.parametrize("family", ROUTED)
def test_several_prompts_in_one_batch(family: str, tasks: dict[str, Task]) -> None:
    case = training(sharp_model(family), list(tasks.values()))
    assert_as_alone(case, packed(case))


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
@pytest.mark.parametrize("name", [*TEXTS, *CHOICES])
def test_one_prompt(family: str, name: str) -> None:
    case = training(sharp_model(family), [{**TEXTS, **CHOICES}[name]])
    assert_as_alone(case, packed(case))


@pytest.mark.parametrize("row", ROWS, ids=["long", "short", "middle"])
@pytest.mark.parametrize("name", ["everywhere", "style without a field", "words"])
def test_a_batch_of_one(name: str, row: dict[str, str]) -> None:
    case = training(sharp_model("gpt_neox"), [{**TEXTS, **CHOICES}[name]], rows=[row])
    assert_as_alone(case, packed(case))


class Rows(nn.Module):
    """A module of a user's own that makes rows."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(num_rows, 8))
        self.out = nn.Linear(8, 32)

    def forward(self) -> Tensor:
        out: Tensor = self.out(self.weights).tanh()
        return out


PROVIDERS: dict[str, Callable[[], BasePromptProvider]] = {
    "tensor": TensorPromptProvider,
    "lstm": LSTMPromptProvider,
    "mlp": MLPPromptProvider,
    "residual mlp": lambda: MLPPromptProvider(residual=True),
    "module": lambda: ModulePromptProvider(Rows(11)),
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider(provider: str) -> None:
    case = training(sharp_model("qwen2"), [TEXTS["everywhere"]], PROVIDERS[provider])
    assert_as_alone(case, packed(case))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_checkpointed_layers(family: str) -> None:
    case = training(sharp_model(family), list(TEXTS.values()))
    expected = case.expected()
    enable = getattr(case.model, "activation_checkpointing_enable", None)  # its newer name
    (enable or case.model.gradient_checkpointing_enable)()
    for module in case.model.modules():
        # Checkpoints are made in training mode, in which other modules drop out.
        module.training = isinstance(module, GradientCheckpointingLayer)
    found = case.found(packed(case))
    assert relative_error(found[0], expected[0]) <= LOSS_ERROR[torch.float32]
    for grad, expected_grad in zip(found[1], expected[1], strict=True):
        assert_close(grad, expected_grad, GRADIENT_ERROR)


def test_float64() -> None:
    case = training(sharp_model("gpt2").double(), [TEXTS["everywhere"], TEXTS["style without a field"]])
    runner = PackedRunner(case.model)
    assert_as_alone(case, runner)
    batch = runner.collate(case.examples)

    def loss(*_: Tensor) -> Tensor:
        with runner.routing():
            return runner.loss(case.model, batch).total

    assert torch.autograd.gradcheck(loss, case.parameters, fast_mode=True)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_bfloat16_is_close(family: str) -> None:
    case = training(sharp_model(family).bfloat16(), list(TEXTS.values()))
    found = case.found(packed(case))
    case.model.float()
    expected = case.expected()
    assert relative_error(found[0], expected[0]) <= LOSS_ERROR[torch.bfloat16]
    for grad, expected_grad in zip(found[1], expected[1], strict=True):
        assert relative_error(grad, expected_grad) <= GRADIENT_ERROR[torch.bfloat16]


@pytest.mark.parametrize("tasks", [TEXTS, CHOICES], ids=["texts", "choices"])
@pytest.mark.parametrize("family", PADDED_FAMILIES)
def test_models_that_cannot_be_routed_train_padded(
    family: str, tasks: dict[str, Task], caplog: pytest.LogCaptureFixture
) -> None:
    case = training(sharp_model(family), list(tasks.values()))
    assert_padded(case, caplog)


SEQUENCE_TO_SEQUENCE = [TEXTS["leading"], TEXTS["everywhere"], TEXTS["style without a field"]]


@pytest.mark.parametrize("tasks", [SEQUENCE_TO_SEQUENCE, list(CHOICES.values())], ids=["texts", "choices"])
def test_encoder_decoders_train_padded(tasks: list[Task], caplog: pytest.LogCaptureFixture) -> None:
    # T5 does not scale its attention, so sharp weights would make it magnify roundings.
    case = training(tiny_model("t5"), tasks)
    assert_padded(case, caplog)


def assert_padded(case: Training, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ruprompt_fast"):
        runner = make_runner(case.model, case.embedding)
    assert runner.name == "padded"
    assert type(case.model).__name__ in caplog.text
    assert runner.reason is not None
    assert runner.reason in caplog.text
    assert_as_alone(case, runner)
