"""Soft prompts: templates and formats, providers of rows, prompts and their files, preprocessing."""

from ruprompt_fast.prompts.base_format import BasePromptFormat
from ruprompt_fast.prompts.config import PromptConfig
from ruprompt_fast.prompts.context import PromptContext
from ruprompt_fast.prompts.encoding import EncodedPrompt
from ruprompt_fast.prompts.format import PromptFormat
from ruprompt_fast.prompts.freeze import freeze_model
from ruprompt_fast.prompts.multi import MultiPrompt
from ruprompt_fast.prompts.preprocessing import BasePreprocessor, Text2TextPreprocessor
from ruprompt_fast.prompts.prompt import Prompt
from ruprompt_fast.prompts.providers import BasePromptProvider, ModulePromptProvider, TensorPromptProvider
from ruprompt_fast.prompts.reparametrized import LSTMPromptProvider, MLPPromptProvider
from ruprompt_fast.prompts.template import PROMPT_TOKEN, PROMPT_TOKEN_FOR_KEY, PROMPT_TOKEN_SHORT, is_marker

__all__ = [
    "PROMPT_TOKEN",
    "PROMPT_TOKEN_FOR_KEY",
    "PROMPT_TOKEN_SHORT",
    "BasePreprocessor",
    "BasePromptFormat",
    "BasePromptProvider",
    "EncodedPrompt",
    "LSTMPromptProvider",
    "MLPPromptProvider",
    "ModulePromptProvider",
    "MultiPrompt",
    "Prompt",
    "PromptConfig",
    "PromptContext",
    "PromptFormat",
    "TensorPromptProvider",
    "Text2TextPreprocessor",
    "freeze_model",
    "is_marker",
]
