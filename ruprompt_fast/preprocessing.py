"""ruPrompts' module of this name: preprocessing."""

from ruprompt_fast.prompts.format.preprocessing import BasePreprocessor, Text2TextPreprocessor

__all__ = ["BasePreprocessor", "Text2TextPreprocessor"]
