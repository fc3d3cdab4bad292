"""ruPrompts' module of this name: providers."""

from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider
from ruprompt_fast.prompts.providers.module_provider import ModulePromptProvider
from ruprompt_fast.prompts.providers.reparametrized import LSTMPromptProvider, MLPPromptProvider
from ruprompt_fast.prompts.providers.tensor_provider import TensorPromptProvider

__all__ = [
    "BasePromptProvider",
    "LSTMPromptProvider",
    "MLPPromptProvider",
    "ModulePromptProvider",
    "TensorPromptProvider",
]
