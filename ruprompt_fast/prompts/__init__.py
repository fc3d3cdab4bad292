"""Soft prompts: formats, providers of rows, and their files.

format      from fields to texts and ids
providers   modules that own a prompt's parameters and make its rows
files       prompts on disk and on the hub
limits      how large a prompt and its files may be

prompt          a format and a provider that belong together; multi several of them over one model, ensemble several
                for one task
prompt_context  what a prompt is in use with
patching        attaching prompts to a model
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast._lazy import lazy_names

if TYPE_CHECKING:
    from ruprompt_fast.prompts.ensemble import PromptEnsemble
    from ruprompt_fast.prompts.files.prompt_config import PromptConfig
    from ruprompt_fast.prompts.format.base_format import BasePromptFormat
    from ruprompt_fast.prompts.format.encoding import EncodedPrompt
    from ruprompt_fast.prompts.format.preprocessing import BasePreprocessor, Text2TextPreprocessor
    from ruprompt_fast.prompts.format.prompt_format import PromptFormat
    from ruprompt_fast.prompts.format.template import PROMPT_TOKEN, PROMPT_TOKEN_FOR_KEY, PROMPT_TOKEN_SHORT, is_marker
    from ruprompt_fast.prompts.multi import MultiPrompt
    from ruprompt_fast.prompts.prompt import Prompt
    from ruprompt_fast.prompts.prompt_context import PromptContext
    from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider
    from ruprompt_fast.prompts.providers.freeze import freeze_model
    from ruprompt_fast.prompts.providers.kv_shape import KVShape, check_kv_shape, kv_shape_of
    from ruprompt_fast.prompts.providers.module_provider import ModulePromptProvider
    from ruprompt_fast.prompts.providers.prefix_tuning import PrefixTuningProvider
    from ruprompt_fast.prompts.providers.reparametrized import LSTMPromptProvider, MLPPromptProvider
    from ruprompt_fast.prompts.providers.tensor_provider import TensorPromptProvider

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
    "BasePromptProvider": "providers.base_provider",
    "EncodedPrompt": "format.encoding",
    "KVShape": "providers.kv_shape",
    "LSTMPromptProvider": "providers.reparametrized",
    "MLPPromptProvider": "providers.reparametrized",
    "ModulePromptProvider": "providers.module_provider",
    "MultiPrompt": "multi",
    "PROMPT_TOKEN": "format.template",
    "PROMPT_TOKEN_FOR_KEY": "format.template",
    "PROMPT_TOKEN_SHORT": "format.template",
    "PrefixTuningProvider": "providers.prefix_tuning",
    "Prompt": "prompt",
    "PromptConfig": "files.prompt_config",
    "PromptContext": "prompt_context",
    "PromptEnsemble": "ensemble",
    "PromptFormat": "format.prompt_format",
    "TensorPromptProvider": "providers.tensor_provider",
    "Text2TextPreprocessor": "format.preprocessing",
    "check_kv_shape": "providers.kv_shape",
    "freeze_model": "providers.freeze",
    "is_marker": "format.template",
    "kv_shape_of": "providers.kv_shape",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
