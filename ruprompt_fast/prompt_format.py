"""ruPrompts' module of this name: formats."""

from ruprompt_fast.prompts.format.base_format import BasePromptFormat
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.ranges import FormatStringWithRanges as _FormatStringWithRanges
from ruprompt_fast.prompts.format.template import PROMPT_TOKEN, PROMPT_TOKEN_FOR_KEY, PROMPT_TOKEN_SHORT

__all__ = [
    "PROMPT_TOKEN",
    "PROMPT_TOKEN_FOR_KEY",
    "PROMPT_TOKEN_SHORT",
    "BasePromptFormat",
    "PromptFormat",
    "_FormatStringWithRanges",
]
