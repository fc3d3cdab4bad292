"""Transformers' own modules on packed tokens, with our attention: what serving and training have in common."""

from ruprompt_fast.integration.attention import NAME, Attending, AttentionSwitch
from ruprompt_fast.integration.compatibility import batch_dependence, probe
from ruprompt_fast.integration.context_length import check_fits, context_length
from ruprompt_fast.integration.frozen_layers import FrozenLayers
from ruprompt_fast.integration.output_layer import OutputLayer

__all__ = [
    "NAME",
    "Attending",
    "AttentionSwitch",
    "FrozenLayers",
    "OutputLayer",
    "batch_dependence",
    "check_fits",
    "context_length",
    "probe",
]
