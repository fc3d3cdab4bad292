"""What every provider offers: a module that owns a prompt's parameters and makes its rows from them."""

from __future__ import annotations

import abc
import os
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from ruprompt_fast.errors import NotInitializedError
from ruprompt_fast.prompts.files.rows_file import write_rows
from ruprompt_fast.prompts.providers.kv_shape import KVShape

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
            UnsupportedModelError: the prompt cannot come before this model's text.
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
