"""Freezing a model around its prompts."""

from __future__ import annotations

from torch import nn

PROVIDER_NAME = "prompt_provider"
"""What the names of the providers' parameters have in common in a patched model."""


def freeze_model(model: nn.Module) -> int:
    """Let only the prompts' providers train: every other parameter is frozen, the output layer's too.

    Args:
        model: a model that prompts are attached to.

    Returns:
        The number of parameters (numbers, not tensors) that train.
    """
    trained = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(PROVIDER_NAME in name)
        trained += parameter.numel() if parameter.requires_grad else 0
    return trained
