"""ruPrompts' module of this name: providers."""

from ruprompt_fast.prompts.providers.providers import BasePromptProvider, ModulePromptProvider, TensorPromptProvider
from ruprompt_fast.prompts.providers.reparametrized import LSTMPromptProvider, MLPPromptProvider

__all__ = [
    "BasePromptProvider",
    "LSTMPromptProvider",
    "MLPPromptProvider",
    "ModulePromptProvider",
    "TensorPromptProvider",
]
