"""A model's context length, and what fits into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast.errors import ContextLengthError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNBOUNDED_CONTEXT = 1 << 15
"""Positions of a request where the model sets no limit: every request must end."""


def context_length(config: PretrainedConfig) -> int | None:
    """The number of positions of the model, or None where it is unbounded (T5)."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None  # XLNet says -1


def check_fits(model_config: PretrainedConfig, input_len: int, num_new: int, index: int) -> None:
    """Refuse a request that the model has no positions for.

    Raises:
        ContextLengthError: ``input_len + num_new`` exceeds the context.
    """
    limit = context_length(model_config) or UNBOUNDED_CONTEXT
    if input_len > limit:
        raise ContextLengthError(
            f"input {index} has {input_len} tokens, virtual tokens included; the model's context is {limit}. Shorten "
            f"the input by {input_len - limit} tokens."
        )
    if input_len + num_new > limit:
        raise ContextLengthError(
            f"input {index} has {input_len} tokens, virtual tokens included, and asks for {num_new} new ones; the "
            f"model's context is {limit}. Shorten the input, or ask for at most {limit - input_len} new tokens."
        )
