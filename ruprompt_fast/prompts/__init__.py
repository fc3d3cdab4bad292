"""Soft prompts: templates and formats, providers of rows, prompts and their files, preprocessing."""

from ruprompt_fast.prompts.base_format import BasePromptFormat
from ruprompt_fast.prompts.config import PromptConfig
from ruprompt_fast.prompts.context import PromptContext
from ruprompt_fast.prompts.deep import PrefixTuningProvider
from ruprompt_fast.prompts.encoding import EncodedPrompt
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.prompts.format import PromptFormat
from ruprompt_fast.prompts.freeze import freeze_model
from ruprompt_fast.prompts.kv_shape import KVShape, check_kv_shape, kv_shape_of
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
    "KVShape",
    "LSTMPromptProvider",
    "MLPPromptProvider",
    "ModulePromptProvider",
    "MultiPrompt",
    "PrefixTuningProvider",
    "Prompt",
    "PromptConfig",
    "PromptContext",
    "PromptEnsemble",
    "PromptFormat",
    "TensorPromptProvider",
    "Text2TextPreprocessor",
    "check_kv_shape",
    "freeze_model",
    "is_marker",
    "kv_shape_of",
]
