"""Providers: modules that own a prompt's parameters and make its rows from them."""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import NonFiniteRowsError, NotInitializedError, PromptInitError, PromptMismatchError
from ruprompt_fast.prompts.files.reading.rows import all_finite
from ruprompt_fast.prompts.files.rows_file import write_rows
from ruprompt_fast.prompts.providers.init_mode import InitMode
from ruprompt_fast.prompts.providers.kv_shape import KVShape
from ruprompt_fast.prompts.providers.row_init import RowInit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BasePromptProvider(nn.Module, abc.ABC):
    """A module that returns a prompt's rows, [rows, width], when called without arguments.

    Attributes:
        is_deep: whether the rows are keys and values of every layer, instead of what the embedding gives.
        kv_shape: the sizes of a deep prompt's keys and values; None before initialization, and of other prompts.
    """

    is_deep: ClassVar[bool] = False
    kv_shape: KVShape | None = None

    @abc.abstractmethod
    def initialize(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> None:
        """Make the parameters; does nothing to a provider that has them.

        Args:
            prompt_length: the number of rows.
            embedding_dim: their width.
            embedding: the model's own input embedding.
            init_tokens: tokens to initialize certain rows from, by row.

        Raises:
            PromptLengthError: ``prompt_length`` is less than one.
            PromptInitError: this provider cannot be initialized in this way.
        """

    @abc.abstractmethod
    def forward(self) -> Tensor:
        """The rows, [rows, width]."""

    @property
    @abc.abstractmethod
    def is_initialized(self) -> bool:
        """Whether the provider has its parameters."""

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Tell the provider which tokenizer the ids are of, before :meth:`initialize`; most need not know."""

    def bind_model(self, model: PreTrainedModel) -> None:
        """Tell the provider which model the prompt is for, before :meth:`initialize`; deep prompts need to know.

        Raises:
            UnsupportedModelError: the prompt cannot stand before this model's text.
            PromptMismatchError: the provider has rows already, which are for another model.
        """

    def row_width(self, embedding_dim: int) -> int:
        """How wide the rows are for a model whose embeddings have a width of ``embedding_dim``."""
        return embedding_dim if self.kv_shape is None else self.kv_shape.row_width

    def save_pretrained(self, output_file: str | os.PathLike[str]) -> None:
        """Write the rows to a file, which holds one tensor whatever the provider.

        Args:
            output_file: ``*.safetensors``, with the key ``prompt_embeddings``; any other name, such as
                ``prompt_provider.bin``, gets ``torch.save`` of the bare tensor, which ruPrompts reads.

        Raises:
            NotInitializedError: there are no rows yet.
        """
        if not self.is_initialized:
            raise NotInitializedError(f"{type(self).__name__} must be initialized before it is saved.")
        # Not under no_grad: an LSTM takes another path there and gives rows that differ in their last bits.
        write_rows(self(), output_file)

    def _uninitialized(self) -> NotInitializedError:
        return NotInitializedError(
            f"{type(self).__name__} has no rows yet; call initialize() on its prompt, or patch() a model with it."
        )


class TensorPromptProvider(BasePromptProvider):
    """The rows themselves are the parameters.

    Args:
        init: first values of the rows: ``vocab``, ``random``, ``frequent``, ``text`` or ``labels``; see
            :class:`~ruprompt_fast.prompts.providers.row_init.RowInit` for this and the other arguments.
        text: the text of ``init="text"``.
        labels: the class labels of ``init="labels"``.
        tokenizer: the tokenizer of text and labels; a prompt brings its own.
        seed: makes random first values repeatable.
        generator: a CPU generator for them, instead of ``seed``.
        std: standard deviation of ``init="random"``.
        most_frequent: how many tokens ``init="frequent"`` draws from.

    Attributes:
        weights: the parameter, [rows, width]; None before initialization.

    Raises:
        PromptInitError: ``init`` is not known, or the arguments do not belong together.
    """

    weights: nn.Parameter | None

    def __init__(
        self,
        init: InitMode = "vocab",
        *,
        text: str | None = None,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        std: float = 1.0,
        most_frequent: int = 5000,
    ) -> None:
        super().__init__()
        self.init = init
        self._row_init: RowInit | None = RowInit(init, text, labels, tokenizer, seed, generator, std, most_frequent)
        self.register_parameter("weights", None)

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take this tokenizer unless the constructor was given one."""
        if self._row_init is not None and self._row_init.tokenizer is None:
            self._row_init.tokenizer = tokenizer

    def initialize(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> None:
        """Make the rows, see :meth:`RowInit.make_rows`; does nothing to a provider that has them."""
        if self._row_init is None or self.is_initialized:
            return
        self.weights = nn.Parameter(self._row_init.make_rows(prompt_length, embedding_dim, embedding, init_tokens))
        self._row_init = None  # it holds the tokenizer, which copies of the model should not carry

    def forward(self) -> Tensor:
        """The rows, [rows, width]."""
        if self.weights is None:
            raise self._uninitialized()
        return self.weights

    @property
    def is_initialized(self) -> bool:
        """Whether the rows exist."""
        return self.weights is not None

    @classmethod
    def from_pretrained(cls, weights: Tensor) -> TensorPromptProvider:
        """A provider with a copy of these rows.

        Raises:
            PromptInitError: ``weights`` is not a dense floating-point tensor [rows, width].
            NonFiniteRowsError: it contains NaN or infinity.
        """
        provider = cls()
        provider._row_init = None
        provider.weights = given_rows(weights)
        return provider


def given_rows(weights: Tensor) -> nn.Parameter:
    """A parameter with a copy of rows that a caller brought.

    Raises:
        PromptInitError: ``weights`` is not a dense floating-point tensor [rows, width].
        NonFiniteRowsError: it contains NaN or infinity.
    """
    if not isinstance(weights, Tensor) or weights.layout is not torch.strided:
        raise PromptInitError(f"rows must be a dense tensor [rows, width]; found {type(weights).__name__}.")
    if weights.ndim != 2 or 0 in weights.shape or not weights.is_floating_point():
        raise PromptInitError(
            f"rows must be floating-point numbers [rows, width]; found {weights.dtype} {list(weights.shape)}."
        )
    if not all_finite(weights):
        raise NonFiniteRowsError("the rows contain NaN or infinity; take them from an earlier checkpoint.")
    return nn.Parameter(weights.detach().clone())


class ModulePromptProvider(BasePromptProvider):
    """Any module that returns [rows, width] when called without arguments.

    Args:
        module: the module; it must be complete, nothing is initialized here.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._shape: tuple[int, int] | None = None

    def initialize(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> None:
        """Check what the module returns.

        Raises:
            PromptMismatchError: it is not [prompt_length, embedding_dim].
            PromptInitError: the template wants rows to be initialized from a text.
        """
        if init_tokens:
            raise PromptInitError(
                f"{type(self.module).__name__} makes its own rows and cannot initialize them from the template's "
                "<P>text</P>; write <P*N>, or use TensorPromptProvider."
            )
        self._shape = (prompt_length, embedding_dim)
        try:
            with torch.no_grad():
                self.forward()
        except PromptMismatchError:
            self._shape = None
            raise

    def forward(self) -> Tensor:
        """The module's rows, [rows, width].

        Raises:
            PromptMismatchError: the module returned something else.
        """
        if self._shape is None:
            raise self._uninitialized()
        rows = self.module()
        if not isinstance(rows, Tensor) or not rows.is_floating_point() or rows.shape != self._shape:
            found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise PromptMismatchError(
                f"{type(self.module).__name__} must return floating-point rows {list(self._shape)}; found {found}."
            )
        return rows

    @property
    def is_initialized(self) -> bool:
        """Whether the module's rows were checked."""
        return self._shape is not None


def as_provider(module: nn.Module) -> BasePromptProvider:
    """The module itself if it is a provider, else a provider around it.

    Raises:
        PromptInitError: it is not a module.
    """
    if isinstance(module, BasePromptProvider):
        return module
    if not isinstance(module, nn.Module):
        raise PromptInitError(f"a provider must be a torch module; found {type(module).__name__}.")
    return ModulePromptProvider(module)
