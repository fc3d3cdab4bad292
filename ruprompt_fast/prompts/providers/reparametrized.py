"""Providers whose rows are the output of a small network; it trains with them and is not saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import PromptInitError
from ruprompt_fast.precision import training_dtype
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider
from ruprompt_fast.prompts.providers.row_init import RowInit, check_prompt_length


class LSTMPromptProvider(BasePromptProvider):
    """Rows from a bidirectional LSTM and a two-layer network over trained inputs, as in P-tuning (Liu et al. 2021).

    Args:
        hidden_dim: width of the hidden layers; -1 takes the model's.
        input_dim: width of the inputs; -1 takes the model's.
        num_lstm_layers: layers of the LSTM.
        seed: makes the first values repeatable.
    """

    input: nn.Parameter | None

    def __init__(
        self, hidden_dim: int = -1, input_dim: int = -1, num_lstm_layers: int = 2, *, seed: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(hidden_dim=hidden_dim, input_dim=input_dim)
        if num_lstm_layers < 1:
            raise PromptInitError(f"num_lstm_layers must be at least 1; found {num_lstm_layers}.")
        self.hidden_dim = hidden_dim
        self.input_dim = input_dim
        self.num_lstm_layers = num_lstm_layers
        self._seed = seed
        self.register_parameter("input", None)
        self.lstm: nn.LSTM | None = None
        self.mlp: nn.Sequential | None = None

    def initialize(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> None:
        """Make the network, see :meth:`BasePromptProvider.initialize`."""
        if self.is_initialized:
            return
        check_prompt_length(prompt_length)
        _refuse_init_tokens(self, init_tokens)
        self.hidden_dim = embedding_dim if self.hidden_dim == -1 else self.hidden_dim
        self.input_dim = embedding_dim if self.input_dim == -1 else self.input_dim
        with seeded(self._seed):
            self.input = nn.Parameter(torch.rand(1, prompt_length, self.input_dim))
            self.lstm = nn.LSTM(
                self.input_dim, self.hidden_dim, self.num_lstm_layers, bidirectional=True, batch_first=True
            )
            self.mlp = two_layers(2 * self.hidden_dim, self.hidden_dim, embedding_dim)
        follow(self, embedding)

    def forward(self) -> Tensor:
        """The rows, [rows, width]."""
        if self.input is None or self.lstm is None or self.mlp is None:
            raise self._uninitialized()
        hidden, _ = self.lstm(self.input)
        return cast(Tensor, self.mlp(hidden)).squeeze(0)

    @property
    def is_initialized(self) -> bool:
        """Whether the network exists."""
        return self.lstm is not None


class MLPPromptProvider(BasePromptProvider):
    """Rows from a two-layer network over trained inputs, one input for each row.

    With ``residual`` the inputs start as embeddings of tokens drawn from the vocabulary and the network's output is
    added to them, as in residual prompt tuning (Razdaibiedina et al. 2023); the last layer starts at zero, so training
    starts from those embeddings.

    Args:
        hidden_dim: width of the hidden layer; -1 takes the model's.
        input_dim: width of the inputs; -1 takes the model's, as ``residual`` requires.
        residual: whether to add the inputs to the output.
        seed: makes the first values repeatable.
    """

    input: nn.Parameter | None

    def __init__(
        self, hidden_dim: int = -1, input_dim: int = -1, residual: bool = False, *, seed: int | None = None
    ) -> None:
        super().__init__()
        check_sizes(hidden_dim=hidden_dim, input_dim=input_dim)
        self.hidden_dim = hidden_dim
        self.input_dim = input_dim
        self.residual = residual
        self._seed = seed
        self.register_parameter("input", None)
        self.mlp: nn.Sequential | None = None

    def initialize(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> None:
        """Make the network, see :meth:`BasePromptProvider.initialize`."""
        if self.is_initialized:
            return
        check_prompt_length(prompt_length)
        if self.residual and self.input_dim not in (-1, embedding_dim):
            raise PromptInitError(
                f"a residual provider adds its inputs to rows of width {embedding_dim}; "
                f"found input_dim={self.input_dim}. Leave it at -1."
            )
        if self.residual:
            rows = RowInit(seed=self._seed).make_rows(prompt_length, embedding_dim, embedding, init_tokens)
        else:
            _refuse_init_tokens(self, init_tokens)
        self.hidden_dim = embedding_dim if self.hidden_dim == -1 else self.hidden_dim
        self.input_dim = embedding_dim if self.input_dim == -1 else self.input_dim
        with seeded(self._seed):
            self.input = nn.Parameter(rows if self.residual else torch.rand(prompt_length, self.input_dim))
            self.mlp = two_layers(self.input_dim, self.hidden_dim, embedding_dim, from_zero=self.residual)
        follow(self, embedding)

    def forward(self) -> Tensor:
        """The rows, [rows, width]."""
        if self.input is None or self.mlp is None:
            raise self._uninitialized()
        rows = cast(Tensor, self.mlp(self.input))
        return self.input + rows if self.residual else rows

    @property
    def is_initialized(self) -> bool:
        """Whether the network exists."""
        return self.mlp is not None


def two_layers(input_dim: int, hidden_dim: int, output_dim: int, *, from_zero: bool = False) -> nn.Sequential:
    """The network of a reparametrized prompt; with ``from_zero`` its output starts as zeros."""
    first, last = nn.Linear(input_dim, hidden_dim), nn.Linear(hidden_dim, output_dim)
    if from_zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.ReLU(), last)


def _refuse_init_tokens(provider: BasePromptProvider, init_tokens: dict[int, int]) -> None:
    if init_tokens:
        raise PromptInitError(
            f"{type(provider).__name__} cannot initialize rows from the template's <P>text</P>: they come out of a "
            "network. Write <P*N>, or use TensorPromptProvider."
        )


def check_sizes(**sizes: int) -> None:
    """Refuse widths that are neither positive nor -1.

    Raises:
        PromptInitError: one is.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
            raise PromptInitError(f"{name} must be a positive number, or -1 for the model's width; found {size!r}.")


def follow(provider: nn.Module, embedding: nn.Module) -> None:
    """Put a provider where the embedding is, in its dtype or float32 if that is wider."""
    weight = cast(Tensor, embedding.weight)
    provider.to(device=weight.device, dtype=training_dtype(weight.dtype))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw with this seed and leave torch's global generator as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
