"""Transformers' own modules on packed tokens, with our attention; used by serving and training."""

from ruprompt_fast.integration.attention import NAME, Attending, AttentionCall, AttentionSwitch, refuse_position_bias
from ruprompt_fast.integration.compatibility import batch_dependence, check_compatibility
from ruprompt_fast.integration.context_length import check_fits, context_length
from ruprompt_fast.integration.frozen_layers import FrozenLayers
from ruprompt_fast.integration.output_layer import OutputLayer

__all__ = [
    "NAME",
    "Attending",
    "AttentionCall",
    "AttentionSwitch",
    "FrozenLayers",
    "OutputLayer",
    "batch_dependence",
    "check_compatibility",
    "check_fits",
    "context_length",
    "refuse_position_bias",
]
