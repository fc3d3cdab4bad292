"""Soft prompts: templates and formats, providers of rows, prompts and their files, preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast._lazy import lazy_names

if TYPE_CHECKING:
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

_HOMES = {
    "BasePreprocessor": "preprocessing",
    "BasePromptFormat": "base_format",
    "BasePromptProvider": "providers",
    "EncodedPrompt": "encoding",
    "KVShape": "kv_shape",
    "LSTMPromptProvider": "reparametrized",
    "MLPPromptProvider": "reparametrized",
    "ModulePromptProvider": "providers",
    "MultiPrompt": "multi",
    "PROMPT_TOKEN": "template",
    "PROMPT_TOKEN_FOR_KEY": "template",
    "PROMPT_TOKEN_SHORT": "template",
    "PrefixTuningProvider": "deep",
    "Prompt": "prompt",
    "PromptConfig": "config",
    "PromptContext": "context",
    "PromptEnsemble": "ensemble",
    "PromptFormat": "format",
    "TensorPromptProvider": "providers",
    "Text2TextPreprocessor": "preprocessing",
    "check_kv_shape": "kv_shape",
    "freeze_model": "freeze",
    "is_marker": "template",
    "kv_shape_of": "kv_shape",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
