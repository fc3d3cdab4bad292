"""How many tokens a request may generate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ruprompt_fast.errors import ContextLengthError
from ruprompt_fast.integration.context_length import UNBOUNDED_CONTEXT, check_fits, context_length
from ruprompt_fast.requests.values import Limits

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

DEFAULT_NEW_TOKENS = 20
"""What transformers generates when neither ``max_new_tokens`` nor ``max_length`` is given."""


def limits_of(model_config: PretrainedConfig) -> Limits:
    """What settings may ask of a model."""
    return Limits(model_config.get_text_config().vocab_size, context_length(model_config) or UNBOUNDED_CONTEXT)


@dataclass(frozen=True)
class NewTokens:
    """Bounds on the new tokens of a request."""

    least: int
    most: int


def new_tokens(model_config: PretrainedConfig, input_ids: list[int], config: GenerationConfig, index: int) -> NewTokens:
    """The bounds for one request; ``max_length`` and ``min_length`` count its own input, without padding.

    Raises:
        ContextLengthError: input and new tokens together exceed the context, or ``max_length`` leaves no new token.
    """
    input_len = 1 if model_config.is_encoder_decoder else len(input_ids)
    if config.max_new_tokens is not None:
        most = config.max_new_tokens
    elif config.max_length is not None:
        most = config.max_length - input_len
    else:
        most = DEFAULT_NEW_TOKENS
    least = config.min_new_tokens if config.min_new_tokens is not None else (config.min_length or 0) - input_len
    if most < 1:
        raise ContextLengthError(
            f"input {index} has {input_len} tokens, virtual tokens included; max_length={config.max_length} leaves "
            "none to generate. Raise max_length, or give max_new_tokens."
        )
    if model_config.is_encoder_decoder:
        check_fits(model_config, len(input_ids), 0, index)
    check_fits(model_config, input_len, most, index)
    return NewTokens(min(max(0, least), most), most)
