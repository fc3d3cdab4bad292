"""Transformers' own modules on packed tokens, with our attention: what serving and training have in common."""

from ruprompt_fast.routing.attention import NAME, Attending, AttentionSwitch
from ruprompt_fast.routing.context import check_fits, context_length
from ruprompt_fast.routing.frozen_layers import FrozenLayers
from ruprompt_fast.routing.output_layer import OutputLayer
from ruprompt_fast.routing.probe import batch_dependence, probe

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
