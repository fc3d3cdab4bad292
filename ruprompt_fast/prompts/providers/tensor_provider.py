"""The provider whose parameters are the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import NonFiniteRowsError, PromptInitError
from ruprompt_fast.precision import are_finite
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider
from ruprompt_fast.prompts.providers.init_mode import InitMode
from ruprompt_fast.prompts.providers.row_init import RowInit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    if not are_finite([weights]):
        raise NonFiniteRowsError("the rows contain NaN or infinity; take them from an earlier checkpoint.")
    return nn.Parameter(weights.detach().clone())
