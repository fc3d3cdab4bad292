"""Soft prompts: templates and formats, providers of rows, prompts and their files, preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast._lazy import lazy_names

if TYPE_CHECKING:
    from ruprompt_fast.prompts.ensemble import PromptEnsemble
    from ruprompt_fast.prompts.files.config import PromptConfig
    from ruprompt_fast.prompts.format.base_format import BasePromptFormat
    from ruprompt_fast.prompts.format.encoding import EncodedPrompt
    from ruprompt_fast.prompts.format.preprocessing import BasePreprocessor, Text2TextPreprocessor
    from ruprompt_fast.prompts.format.prompt_format import PromptFormat
    from ruprompt_fast.prompts.format.template import PROMPT_TOKEN, PROMPT_TOKEN_FOR_KEY, PROMPT_TOKEN_SHORT, is_marker
    from ruprompt_fast.prompts.in_use import PromptContext
    from ruprompt_fast.prompts.multi import MultiPrompt
    from ruprompt_fast.prompts.prompt import Prompt
    from ruprompt_fast.prompts.providers.deep import PrefixTuningProvider
    from ruprompt_fast.prompts.providers.freeze import freeze_model
    from ruprompt_fast.prompts.providers.kv_shape import KVShape, check_kv_shape, kv_shape_of
    from ruprompt_fast.prompts.providers.providers import BasePromptProvider, ModulePromptProvider, TensorPromptProvider
    from ruprompt_fast.prompts.providers.reparametrized import LSTMPromptProvider, MLPPromptProvider

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
    "BasePreprocessor": "format.preprocessing",
    "BasePromptFormat": "format.base_format",
    "BasePromptProvider": "providers.providers",
    "EncodedPrompt": "format.encoding",
    "KVShape": "providers.kv_shape",
    "LSTMPromptProvider": "providers.reparametrized",
    "MLPPromptProvider": "providers.reparametrized",
    "ModulePromptProvider": "providers.providers",
    "MultiPrompt": "multi",
    "PROMPT_TOKEN": "format.template",
    "PROMPT_TOKEN_FOR_KEY": "format.template",
    "PROMPT_TOKEN_SHORT": "format.template",
    "PrefixTuningProvider": "providers.deep",
    "Prompt": "prompt",
    "PromptConfig": "files.config",
    "PromptContext": "in_use",
    "PromptEnsemble": "ensemble",
    "PromptFormat": "format.prompt_format",
    "TensorPromptProvider": "providers.providers",
    "Text2TextPreprocessor": "format.preprocessing",
    "check_kv_shape": "providers.kv_shape",
    "freeze_model": "providers.freeze",
    "is_marker": "format.template",
    "kv_shape_of": "providers.kv_shape",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
