"""Providers train in float32 whatever the dtype of the model: when it is loaded, converted later, or autocast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import sharp_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import (
    FastPromptModel,
    LSTMPromptProvider,
    MLPPromptProvider,
    MultiPrompt,
    Prompt,
    PromptFormat,
    TensorPromptProvider,
)
from ruprompt_fast.prompts import freeze_model

TEMPLATE = "<P*3>{text}"
WIDTH = 32


class Scaled(nn.Module):
    """A provider of a user's own, made in half precision, with a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Parameter(torch.randn(3, WIDTH).to(dtype))
        self.register_buffer("scale", torch.full((1,), 0.5, dtype=dtype))

    def forward(self) -> Tensor:
        return self.table * self.scale


class Loaded(TensorPromptProvider):
    """Rows out of a file in half precision."""

    def __new__(cls) -> TensorPromptProvider:
        rows = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(4))
        return TensorPromptProvider.from_pretrained(rows.to(torch.float16))


PROVIDERS: dict[str, Callable[[], nn.Module]] = {
    "vocab": lambda: TensorPromptProvider(seed=0),
    "random": lambda: TensorPromptProvider("random", seed=0),
    "lstm": lambda: LSTMPromptProvider(seed=0),
    "mlp": lambda: MLPPromptProvider(seed=0),
    "residual": lambda: MLPPromptProvider(residual=True, seed=0),
    "module": Scaled,
    "loaded": Loaded,
}
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=list(PROVIDERS))
def make(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    return PROVIDERS[request.param]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def patched(
    make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, family: str = "llama"
) -> tuple[Prompt, PreTrainedModel]:
    model = sharp_model(family).to(dtype)
    prompt = Prompt(PromptFormat(TEMPLATE), make())
    prompt.patch(model, tokenizer)
    return prompt, model


def numbers(prompt: Prompt) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in prompt.provider.state_dict().items()}


def assert_float32(prompt: Prompt) -> None:
    assert {value.dtype for value in prompt.provider.state_dict().values()} == {torch.float32}


def loss_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> Tensor:
    ids = torch.tensor([tokenizer(prompt("привет мир"))["input_ids"]])
    return model(input_ids=ids, labels=ids.masked_fill(ids >= 60, -100)).loss


def train(prompt: Prompt, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, steps: int) -> list[float]:
    freeze_model(model)
    optimizer = torch.optim.AdamW(prompt.provider.parameters(), lr=0.003, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, tokenizer, prompt)
        loss.backward()
        assert all(value.grad.dtype == torch.float32 for value in prompt.provider.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", HALVES)
def test_a_small_step_changes_every_number(
    make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> None:
    prompt, model = patched(make, tokenizer, dtype)
    assert_float32(prompt)
    assert model.get_input_embeddings()(torch.tensor([0])).dtype == dtype
    before = {name: value.detach().clone() for name, value in prompt.provider.named_parameters()}
    for value in prompt.provider.parameters():
        value.grad = torch.ones_like(value)
    torch.optim.AdamW(prompt.provider.parameters(), lr=1e-4, weight_decay=0.0).step()
    for name, value in prompt.provider.named_parameters():
        assert bool((value != before[name]).all()), name


@pytest.mark.parametrize("dtype", HALVES)
def test_training_goes_as_over_a_float32_model(
    make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> None:
    exact = train(*patched(make, tokenizer, torch.float32), tokenizer, steps=12)
    found = train(*patched(make, tokenizer, dtype), tokenizer, steps=12)
    assert found == pytest.approx(exact, rel=0.03)
    assert found[-1] < found[0]


@pytest.mark.parametrize("dtype", HALVES)
def test_converting_a_patched_model_leaves_the_providers_alone(
    make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> None:
    prompt, model = patched(make, tokenizer, torch.float32)
    before, parameters = numbers(prompt), list(prompt.provider.parameters())
    model.to(dtype)
    assert model.get_output_embeddings().weight.dtype == dtype
    assert all(torch.equal(value, before[name]) for name, value in numbers(prompt).items())
    assert_float32(prompt)
    assert [id(value) for value in prompt.provider.parameters()] == [id(value) for value in parameters]
    assert train(prompt, model, tokenizer, steps=3)
    model.double()
    assert {value.dtype for value in prompt.provider.state_dict().values()} == {torch.float64}
    model.half()
    assert_float32(prompt)


def test_gradients_are_converted_with_the_parameters(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, model = patched(PROVIDERS["lstm"], tokenizer, torch.float32)
    loss_of(model, tokenizer, prompt).backward()
    model.half()
    for value in prompt.provider.parameters():
        assert value.grad.dtype == value.dtype == torch.float32
    model.to("meta")
    assert {value.device.type for value in prompt.provider.parameters()} == {"meta"}


@pytest.mark.parametrize("assign", [False, True])
def test_half_checkpoints_load_into_float32(
    make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast, assign: bool
) -> None:
    prompt, model = patched(make, tokenizer, torch.float16)
    state = {name: value.half() * 2 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    assert_float32(prompt)
    for name, value in prompt.provider.state_dict().items():
        assert torch.equal(value, next(value for key, value in state.items() if key.endswith(f".0.{name}")).float())


@pytest.mark.parametrize("autocast", HALVES)
def test_autocast(make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast, autocast: torch.dtype) -> None:
    prompt, model = patched(make, tokenizer, torch.float32)
    with torch.autocast("cpu", autocast):
        loss = loss_of(model, tokenizer, prompt)
    loss.backward()
    assert all(value.grad.dtype == torch.float32 for value in prompt.provider.parameters())


def test_scaled_gradients(make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast) -> None:
    """torch's scaler refuses to unscale gradients in half precision."""
    prompt, model = patched(make, tokenizer, torch.float16)
    before = prompt.rows()
    optimizer = torch.optim.AdamW(prompt.provider.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    scaler.scale(loss_of(model, tokenizer, prompt)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert not torch.equal(prompt.rows(), before)


@pytest.mark.parametrize("family", ["t5", "gpt2", "gemma3"])
def test_several_prompts_and_shared_embeddings(tokenizer: PreTrainedTokenizerFast, family: str) -> None:
    model = sharp_model(family).bfloat16()
    prompts = MultiPrompt({name: Prompt(PromptFormat(TEMPLATE), make()) for name, make in PROVIDERS.items()})
    prompts.patch(model, tokenizer)
    prompts.add_prompt("late", Prompt(PromptFormat(TEMPLATE), TensorPromptProvider()))
    model.half()
    for prompt in prompts.prompts.values():
        assert_float32(prompt)


def test_what_is_saved_is_what_was_trained(
    make: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    prompt, model = patched(make, tokenizer, torch.bfloat16)
    train(prompt, model, tokenizer, steps=2)
    prompt.save_pretrained(tmp_path)
    loaded = Prompt.from_pretrained(tmp_path)
    assert loaded.rows().dtype == torch.float32
    assert torch.equal(loaded.rows(), prompt.rows())
    served = FastPromptModel.from_pretrained(sharp_model("llama").bfloat16(), {"p": loaded}, tokenizer=tokenizer)
    assert torch.equal(served.prompts["p"].rows(), loaded.rows())
