"""ruPrompts' module of this name: prompts."""

from ruprompt_fast.prompts.files.config import PromptConfig
from ruprompt_fast.prompts.files.files import PROMPT_FILE_NAME, PROMPT_PROVIDER_FILE_NAME
from ruprompt_fast.prompts.in_use import PromptContext
from ruprompt_fast.prompts.multi import MultiPrompt
from ruprompt_fast.prompts.prompt import Prompt

__all__ = [
    "PROMPT_FILE_NAME",
    "PROMPT_PROVIDER_FILE_NAME",
    "MultiPrompt",
    "Prompt",
    "PromptConfig",
    "PromptContext",
]
