"""ruPrompts' module of this name: prompts."""

from ruprompt_fast.prompts.files.prompt_config import PromptConfig
from ruprompt_fast.prompts.files.prompt_folder import PROMPT_FILE_NAME, PROMPT_PROVIDER_FILE_NAME
from ruprompt_fast.prompts.multi import MultiPrompt
from ruprompt_fast.prompts.prompt import Prompt
from ruprompt_fast.prompts.prompt_context import PromptContext

__all__ = [
    "PROMPT_FILE_NAME",
    "PROMPT_PROVIDER_FILE_NAME",
    "MultiPrompt",
    "Prompt",
    "PromptConfig",
    "PromptContext",
]
